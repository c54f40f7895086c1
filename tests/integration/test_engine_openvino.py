"""IR, ONNX and TFLite artefacts through OpenVINO."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.inference import store
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
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

    def test_the_quantisation_of_a_file_is_seen_as_its_own_engine_sees_it(self) -> None:
        path = store.find("shuttle-anomaly", []) / "int8.tflite"
        session, known = self.engine.load(path, "cpu"), TfliteEngine().load(path, "cpu")
        for here, there in ((session.inputs[0], known.inputs[0]), (session.outputs[0], known.outputs[0])):
            assert there.scale > 0
            assert abs(here.scale - there.scale) < 1e-6 * there.scale
            assert here.zero_point == there.zero_point != 0
        session.close()
        known.close()

    def test_a_file_whose_names_are_no_text_is_refused(self, tmp_path: Path) -> None:
        """OpenVINO tells the name in its error, which cannot be made a text then."""
        content = (store.find("shuttle-anomaly", []) / "fp32.onnx").read_bytes()
        assert b"scaled" in content
        (tmp_path / "odd.onnx").write_bytes(content.replace(b"scaled", b"\xff\xfealed", 1))
        with pytest.raises(EngineError, match=r"odd\.onnx") as caught:
            self.engine.load(tmp_path / "odd.onnx", "cpu")
        assert "complete and unchanged" in caught.value.hint

    def test_an_ir_without_its_weights_is_refused(self, tmp_path: Path) -> None:
        shutil.copy(store.find("shuttle-anomaly", []) / "fp32.xml", tmp_path)
        with pytest.raises(EngineError, match=r"fp32\.xml") as caught:
            self.engine.load(tmp_path / "fp32.xml", "cpu")
        assert ".bin" in caught.value.hint


def test_two_threads_never_load_at_one_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline and the models for peers open together: OpenVINO hung then (in its first `to_dtype`), one start in nine."""
    inside, most = [0], [0]

    def load(self: OpenvinoEngine, artefact: Path, accelerator: str, threads: int) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.05)
        inside[0] -= 1

    monkeypatch.setattr(OpenvinoEngine, "_load", load)
    loading = [threading.Thread(target=OpenvinoEngine().load, args=(Path("m.xml"), "cpu")) for _ in range(3)]
    for each in loading:
        each.start()
    for each in loading:
        each.join()
    assert most == [1]


def test_it_forks_nothing_and_calls_nobody() -> None:
    """In a process of its own, for the module is imported once; its telemetry would do it in a thread, a moment later."""
    script = f"""
import sys, threading
from pathlib import Path
from edge_runtime.inference.engine_openvino import OpenvinoEngine

calls, seen, called = ("os.fork", "os.posix_spawn", "subprocess.", "socket.connect", "socket.getaddrinfo"), [], threading.Event()

def hook(event, _):
    if event.startswith(calls):
        seen.append(event)
        called.set()

sys.addaudithook(hook)
session = OpenvinoEngine().load(Path({str(store.find("shuttle-anomaly", []) / "fp32.xml")!r}), "cpu")
called.wait(1.0)
print(session.executed_on, seen)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "openvino:CPU []\n"
