"""IR, ONNX and TFLite artefacts through OpenVINO."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_runtime.inference import store
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.testing.engine_suite import EngineSuite


class TestOpenvino(EngineSuite):
    engine = OpenvinoEngine()
    executed_on = "openvino:CPU"

    def test_every_kind_of_file_that_it_claims_is_among_the_known_answers(self) -> None:
        assert {Path(artefact.file).suffix for _, artefact in self.shipped()} == set(self.engine.suffixes)

    @pytest.mark.parametrize("name", ["auto", "hetero", "multi", "AUTO:NPU,CPU", "hetero:npu,cpu", "batch"])
    def test_openvinos_own_fallbacks_are_refused(self, name: str) -> None:
        path = store.find("shuttle-anomaly", []) / "fp32.xml"
        with pytest.raises(EngineError, match="knows no accelerator"):
            self.engine.load(path, name)

    def test_an_ir_without_its_weights_is_refused(self, tmp_path: Path) -> None:
        shutil.copy(store.find("shuttle-anomaly", []) / "fp32.xml", tmp_path)
        with pytest.raises(EngineError, match=r"fp32\.xml") as caught:
            self.engine.load(tmp_path / "fp32.xml", "cpu")
        assert ".bin" in caught.value.hint
