"""IR, ONNX and TFLite artefacts through OpenVINO, on the CPU, GPU or NPU that is named.

AUTO, HETERO and the like are refused: `AUTO:NPU,CPU` falls back silently, `HETERO:NPU,CPU` raises; the fallback chain is ours,
and each step of it is proved. GPU and NPU have not been proved on hardware yet.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_runtime.inference.engine import EngineError, EngineMissing, Probe, Session, Tensor, TensorSpec, not_installed, prove

ELEMENT_TYPES = {"f32", "f16", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "boolean"}
"""That numpy knows too."""
TELEMETRY = "openvino_telemetry"
"""Comes with openvino, whose import forks the whole process to tell Google Analytics of it. Nobody has asked who runs a gateway;
and where there is no internet the child hangs: it keeps the lock of the data folder, so that the next start finds "another
gateway", and when it is terminated the signal comes out of the pipe that it shares with our event loop: the gateway stops."""
_LOADING = threading.Lock()
"""OpenVINO fills tables at their first use, and gives the GIL away meanwhile: two threads that open models at the same time (a
pipeline's, and the same one for peers) then wait for each other for ever."""


class OpenvinoSession(Session):
    """One InferRequest with tensors of our own bound to it: copying into them is 3 to 5 times faster than handing arrays over."""

    def __init__(self, model: Any, compiled: Any, tensor_type: Any, executed_on: str) -> None:
        """`model`: as it was read, before it was compiled."""
        inputs = tuple(
            _spec(port, f"input{index}", _quantised_input(model.inputs[index])) for index, port in enumerate(compiled.inputs)
        )
        outputs = tuple(
            _spec(port, f"output{index}", _quantised_output(model.outputs[index])) for index, port in enumerate(compiled.outputs)
        )
        super().__init__(inputs, outputs, executed_on)
        self._request = compiled.create_infer_request()
        self._ins = [(spec.name, np.zeros(spec.shape, spec.dtype)) for spec in self.inputs]
        self._outs = [(spec.name, np.zeros(spec.shape, spec.dtype)) for spec in self.outputs]
        for index, (_, array) in enumerate(self._ins):
            self._request.set_input_tensor(index, tensor_type(array, shared_memory=True))
        for index, (_, array) in enumerate(self._outs):
            self._request.set_output_tensor(index, tensor_type(array, shared_memory=True))

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._request is None:
            raise EngineError(f"{self.executed_on}: the session is closed")
        for name, bound in self._ins:
            bound[...] = feeds[name]
        try:
            self._request.infer()
        except RuntimeError as error:
            raise EngineError(f"{self.executed_on}: {_reason(error)}") from error
        return {name: bound.copy() for name, bound in self._outs}

    def close(self) -> None:
        self._request = None


class OpenvinoEngine:
    """See the module."""

    name: ClassVar[str] = "openvino"
    suffixes: ClassVar[tuple[str, ...]] = (".xml", ".onnx", ".tflite")
    accelerators: ClassVar[tuple[str, ...]] = ("npu", "gpu", "cpu")
    libraries: ClassVar[tuple[str, ...]] = ("openvino",)
    install: ClassVar[str] = "pip install 'edge-runtime[openvino]'"

    def __init__(self) -> None:
        self._core: Any = None

    def probe(self, accelerator: str) -> Probe:
        try:
            library, _ = self._library()
        except EngineError as error:
            return Probe(self.name, accelerator, works=False, reason=str(error))
        return prove(self, accelerator, f"openvino {library.__version__.split('-')[0]}", f"openvino:{accelerator.upper()}")

    def load(self, artefact: Path, accelerator: str, threads: int = 1) -> Session:
        with _LOADING:
            return self._load(artefact, accelerator, threads)

    def _load(self, artefact: Path, accelerator: str, threads: int) -> Session:
        library, core = self._library()
        device = self._device(core, accelerator)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            settings |= {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        if not device.startswith("NPU"):
            # Newer CPUs would compute in bf16 and GPUs in f16 without a word: fp32 artefacts would fail their known answers.
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        try:
            model = core.read_model(artefact)
            for port in (*model.inputs, *model.outputs):
                if port.get_partial_shape().is_dynamic:
                    raise EngineError(f"{artefact}: a tensor has no static shape", "convert it with fixed shapes")
            compiled = core.compile_model(model, device, settings)
            executed_on = ",".join(compiled.get_property("EXECUTION_DEVICES"))
        except (RuntimeError, UnicodeDecodeError) as error:  # the latter: a name in the file, and so in the error, is no text
            hint = "is the file there, complete and unchanged? An IR needs its .bin beside it"
            raise EngineError(f"{artefact}: {_reason(error)}", hint) from error
        return OpenvinoSession(model, compiled, library.Tensor, f"openvino:{executed_on}")

    def _device(self, core: Any, accelerator: str) -> str:
        kind = accelerator.split(".")[0]
        if kind not in self.accelerators:
            raise EngineError(f"engine openvino knows no accelerator {accelerator!r}", "it has: cpu, gpu, gpu.1, npu")
        device = accelerator.upper()
        there: list[str] = core.available_devices
        # One GPU is listed as GPU, two as GPU.0 and GPU.1; both times GPU means the first one.
        if not any(name in (device, f"{device}.0") for name in there):
            hint = {"gpu": "install intel-opencl-icd", "npu": "install the NPU driver and level-zero; group render"}.get(kind, "")
            raise EngineError(f"OpenVINO sees no {device} here, only {', '.join(there) or 'nothing'}", hint)
        return device

    def _library(self) -> tuple[Any, Any]:
        """The module and its Core, made once: it loads the plugins."""
        sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]
        try:
            import openvino  # type: ignore[import-untyped,unused-ignore]
        except ModuleNotFoundError as error:
            raise not_installed(self) from error
        except (ImportError, OSError) as error:
            raise EngineMissing(f"openvino cannot be loaded: {error}", "reinstall it") from error
        if self._core is None:
            self._core = openvino.Core()
            # Weights that stay mapped change with the file: somebody copies a new one over it, and the process dies of SIGBUS.
            self._core.set_property({"ENABLE_MMAP": False})
        return openvino, self._core


Quantisation = tuple[float, int]
"""scale and zero point; (0.0, 0): not quantised, or not to be seen."""
UNSEEN: Quantisation = 0.0, 0


def _quantised_input(port: Any) -> Quantisation:
    """OpenVINO reads the quantisation of a .tflite and keeps it as a node behind the tensor: Convert, then FakeQuantize."""
    for convert in _behind(port, "Convert"):
        for fake in _behind(convert.output(0), "FakeQuantize"):
            low, high, real_low, real_high = _limits(fake)
            return _quantisation(low, high, real_low, real_high)
    return UNSEEN


def _quantised_output(port: Any) -> Quantisation:
    """Before an output they stand the other way round."""
    convert = port.get_node().input_value(0).get_node()
    if convert.get_type_name() != "Convert":
        return UNSEEN
    fake = convert.input_value(0).get_node()
    if fake.get_type_name() != "FakeQuantize":
        return UNSEEN
    real_low, real_high, low, high = _limits(fake)
    return _quantisation(low, high, real_low, real_high)


def _behind(port: Any, kind: str) -> list[Any]:
    nodes = [each.get_node() for each in port.get_target_inputs()]
    return [node for node in nodes if node.get_type_name() == kind]


def _limits(fake: Any) -> list[float]:
    """Input low and high, output low and high; nan where there is one for each channel."""
    found = [fake.input_value(number).get_node() for number in range(1, 5)]
    constants = [node.get_data() if node.get_type_name() == "Constant" else np.zeros(0) for node in found]
    return [float(values.item()) if values.size == 1 else math.nan for values in constants]


def _quantisation(low: float, high: float, real_low: float, real_high: float) -> Quantisation:
    if not all(map(math.isfinite, (low, high, real_low, real_high))) or high <= low or real_high <= real_low:
        return UNSEEN
    scale = (real_high - real_low) / (high - low)
    return scale, round(low - real_low / scale)


def _spec(port: Any, unnamed: str, quantised: Quantisation) -> TensorSpec:
    kind = port.get_element_type()
    if kind.get_type_name() not in ELEMENT_TYPES:
        raise EngineError(f"a tensor has the type {kind.get_type_name()}, which is not supported")
    name = port.get_any_name() if port.get_names() else unnamed
    dtype = np.dtype(kind.to_dtype()).name
    return TensorSpec(name, tuple(port.get_shape()), dtype, *(quantised if dtype.endswith("int8") else UNSEEN))


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's own traceback, which says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
