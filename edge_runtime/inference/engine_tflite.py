"""TFLite artefacts through ai-edge-litert, or through tflite-runtime where that is installed (Coral, 32-bit ARM, old Pythons).

tflite-runtime does not check what it loads: a file that was cut off ends the process with a segmentation fault. So nothing may
come here whose sha256 was not compared with its manifest (store.load does it).

The Edge TPU path (libedgetpu as a delegate) is written after Coral's documentation and has not been proved on hardware yet.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from edge_runtime.inference.engine import EngineError, EngineMissing, Probe, Session, Tensor, TensorSpec, not_installed, prove

EDGETPU_LIBRARY = "libedgetpu.so.1"
EDGETPU_OP = b"edgetpu-custom-op"
"""Stands in every artefact that edgetpu_compiler made, and in no other. An artefact without it runs on the CPU even with the
delegate loaded, silently; one with it runs nowhere else."""


class TfliteSession(Session):
    """One Interpreter."""

    def __init__(self, interpreter: Any, executed_on: str) -> None:
        # get_*_details() costs twice a small model: asked once.
        inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
        super().__init__(tuple(map(_spec, inputs)), tuple(map(_spec, outputs)), executed_on)
        self._interpreter = interpreter
        self._sets = [(detail["name"], detail["index"]) for detail in inputs]
        self._gets = [(detail["name"], detail["index"]) for detail in outputs]

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        interpreter = self._interpreter
        if interpreter is None:
            raise EngineError(f"{self.executed_on}: the session is closed")
        try:
            for name, index in self._sets:
                interpreter.set_tensor(index, feeds[name])
            interpreter.invoke()
            return {name: interpreter.get_tensor(index) for name, index in self._gets}  # get_tensor copies
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{self.executed_on}: {error}") from error

    def close(self) -> None:
        self._interpreter = None


class TfliteEngine:
    """See the module."""

    name: ClassVar[str] = "tflite"
    suffixes: ClassVar[tuple[str, ...]] = (".tflite",)
    accelerators: ClassVar[tuple[str, ...]] = ("edgetpu", "cpu")
    libraries: ClassVar[tuple[str, ...]] = ("ai_edge_litert", "tflite_runtime")
    install: ClassVar[str] = "pip install 'edge-runtime[litert]'"

    def probe(self, accelerator: str) -> Probe:
        try:
            library, version = _library()
            if accelerator == "edgetpu":
                # No artefact for an Edge TPU can be made without Google's compiler, so none is shipped: that the delegate
                # opens the device is what can be shown here; the model's own known answers prove the rest.
                _edgetpu(library)
                return Probe(self.name, accelerator, works=True, reason="the delegate opens; no model was run", version=version)
        except EngineError as error:
            return Probe(self.name, accelerator, works=False, reason=str(error))
        return prove(self, accelerator, version, f"tflite:{accelerator}")

    def load(self, artefact: Path, accelerator: str, threads: int = 1) -> Session:
        library, _ = _library()
        if accelerator not in self.accelerators:
            raise EngineError(f"engine tflite knows no accelerator {accelerator!r}", "it has: cpu, edgetpu")
        content = _read(artefact)
        compiled = EDGETPU_OP in content
        if compiled and accelerator != "edgetpu":
            raise EngineError(f"{artefact}: compiled for the Edge TPU, cannot run on {accelerator}")
        if accelerator == "edgetpu" and not compiled:
            raise EngineError(f"{artefact}: not compiled for the Edge TPU", f"edgetpu_compiler {artefact.name}")
        delegates = [_edgetpu(library)] if accelerator == "edgetpu" else None
        try:
            interpreter = library.Interpreter(model_content=content, num_threads=threads, experimental_delegates=delegates)
            interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise EngineError(f"{artefact}: {_first_line(error)}", "is it a TFLite model, complete and unchanged?") from error
        for detail in (*interpreter.get_input_details(), *interpreter.get_output_details()):
            if -1 in detail.get("shape_signature", ()):
                raise EngineError(f"{artefact}: tensor {detail['name']!r} has no static shape", "convert it with fixed shapes")
        return TfliteSession(interpreter, f"tflite:{accelerator}")


def _library() -> tuple[Any, str]:
    """The interpreter's module and "name version". ai-edge-litert goes before tflite-runtime, its predecessor."""
    try:
        from ai_edge_litert import interpreter as litert  # type: ignore[import-untyped,unused-ignore]

        return litert, f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    except ModuleNotFoundError:
        pass
    except (ImportError, OSError) as error:
        raise EngineMissing(f"ai-edge-litert cannot be loaded: {error}", "reinstall it") from error
    try:
        from tflite_runtime import interpreter as tflite  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ModuleNotFoundError as error:
        raise not_installed(TfliteEngine()) from error
    except (ImportError, OSError) as error:
        raise EngineMissing(f"tflite-runtime cannot be loaded: {error}", "reinstall it") from error
    version = importlib.metadata.version("tflite-runtime")
    # It was built against numpy 1: with numpy 2 its import succeeds and its Interpreter crashes.
    if int(np.__version__.split(".")[0]) >= 2:
        raise EngineMissing(
            f"tflite-runtime {version} does not work with numpy {np.__version__}",
            f"pip install 'numpy<2', or {TfliteEngine.install}",
        )
    return tflite, f"tflite-runtime {version}"


def _edgetpu(library: Any) -> Any:
    try:
        ctypes.CDLL(EDGETPU_LIBRARY)  # first: load_delegate of a missing library leaves a broken object that prints a traceback
        return library.load_delegate(EDGETPU_LIBRARY)
    except (OSError, ValueError) as error:
        raise EngineError(
            f"no Edge TPU: {_first_line(error) or 'no device answered'}",
            "install libedgetpu1-std, plug the device in, and be in the group plugdev (USB) or apex (PCIe)",
        ) from error


def _read(artefact: Path) -> bytes:
    try:
        return artefact.read_bytes()
    except OSError as error:
        raise EngineError(f"{artefact}: {error.strerror}", "is the path right, and may we read it?") from error


def _spec(detail: Mapping[str, Any]) -> TensorSpec:
    scale, zero_point = detail["quantization"]
    shape = tuple(int(size) for size in detail["shape"])
    return TensorSpec(detail["name"], shape, np.dtype(detail["dtype"]).name, float(scale), int(zero_point))


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
