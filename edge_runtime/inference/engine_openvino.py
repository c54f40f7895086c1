"""IR, ONNX and TFLite artefacts through OpenVINO, on the CPU, GPU or NPU that is named.

AUTO, HETERO and the like are refused: `AUTO:NPU,CPU` falls back silently, `HETERO:NPU,CPU` raises; the fallback chain is ours,
and each step of it is proved. GPU and NPU have not been proved on hardware yet.
"""

from __future__ import annotations

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

    def __init__(self, compiled: Any, tensor_type: Any, executed_on: str) -> None:
        inputs = tuple(_spec(port, f"input{index}") for index, port in enumerate(compiled.inputs))
        outputs = tuple(_spec(port, f"output{index}") for index, port in enumerate(compiled.outputs))
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
        except RuntimeError as error:
            hint = "is the file there, complete and unchanged? An IR needs its .bin beside it"
            raise EngineError(f"{artefact}: {_reason(error)}", hint) from error
        return OpenvinoSession(compiled, library.Tensor, f"openvino:{executed_on}")

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


def _spec(port: Any, unnamed: str) -> TensorSpec:
    kind = port.get_element_type()
    if kind.get_type_name() not in ELEMENT_TYPES:
        raise EngineError(f"a tensor has the type {kind.get_type_name()}, which is not supported")
    name = port.get_any_name() if port.get_names() else unnamed
    return TensorSpec(name, tuple(port.get_shape()), np.dtype(kind.to_dtype()).name)


def _reason(error: Exception) -> str:
    """The last line of OpenVINO's own traceback, which says what happened."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
