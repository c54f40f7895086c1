"""TFLite artefacts. The same module runs in an environment with tflite-runtime (test_engine_tflite_runtime.py)."""

from __future__ import annotations

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from edge_runtime.inference import store
from edge_runtime.inference.engine import PROBE_FILE, EngineError, EngineMissing
from edge_runtime.inference.engine_tflite import EDGETPU_OP, TfliteEngine
from edge_runtime.testing.engine_suite import EngineSuite

LIBRARY = os.environ.get("EDGE_TEST_TFLITE_LIBRARY", "ai-edge-litert")


class TestTflite(EngineSuite):
    engine = TfliteEngine()
    executed_on = "tflite:cpu"

    def test_the_library_is_the_one_that_this_environment_is_for(self) -> None:
        assert self.engine.probe("cpu").version.startswith(f"{LIBRARY} ")

    def test_a_file_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        if LIBRARY != "tflite-runtime":
            super().test_a_file_that_was_cut_off_is_refused(tmp_path)
            return
        # tflite-runtime checks no file and dies of this one (segmentation fault): the sha256 must stop it before.
        folder = Path(shutil.copytree(store.find("shuttle-anomaly", []), tmp_path / "copy"))
        content = (folder / "fp32.tflite").read_bytes()
        (folder / "fp32.tflite").write_bytes(content[: len(content) // 2])
        with pytest.raises(EngineError, match=r"fp32\.tflite: is not the file"):
            store.load(folder)

    def test_without_a_coral_the_probe_says_what_is_missing(self) -> None:
        probe = self.engine.probe("edgetpu")
        if probe.works:
            pytest.skip("an Edge TPU is here")
        assert "libedgetpu" in probe.reason

    def test_an_artefact_for_the_cpu_is_refused_on_an_edge_tpu(self) -> None:
        # It would run on the CPU without a word.
        with pytest.raises(EngineError, match="not compiled for the Edge TPU") as caught:
            self.engine.load(PROBE_FILE, "edgetpu")
        assert "edgetpu_compiler" in caught.value.hint

    def test_an_artefact_for_the_edge_tpu_is_refused_on_a_cpu(self, tmp_path: Path) -> None:
        path = tmp_path / "model_edgetpu.tflite"
        path.write_bytes(PROBE_FILE.read_bytes() + EDGETPU_OP)
        with pytest.raises(EngineError, match="compiled for the Edge TPU"):
            self.engine.load(path, "cpu")


def test_tflite_runtime_with_numpy_2_is_refused_before_it_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", None)
    package = types.ModuleType("tflite_runtime")
    package.interpreter = types.ModuleType("tflite_runtime.interpreter")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tflite_runtime", package)
    monkeypatch.setitem(sys.modules, "tflite_runtime.interpreter", package.interpreter)
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "2.14.0")
    monkeypatch.setattr(np, "__version__", "2.4.6")
    with pytest.raises(EngineMissing, match="does not work with numpy 2") as caught:
        TfliteEngine().load(PROBE_FILE, "cpu")
    assert "numpy<2" in caught.value.hint
