"""open_model and Model.infer on real engines, with the faults that accelerators have."""

from __future__ import annotations

import asyncio
import functools
import gc
import hashlib
import itertools
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from edge_runtime.board.system import SystemClock, ThreadWorker
from edge_runtime.inference import store
from edge_runtime.inference.engine import Engine, EngineError, EngineMissing, Session
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.model import Model, Stuck, open_model
from edge_runtime.inference.store import KnownAnswers
from edge_runtime.testing.engine import FaultyEngine

THREADS = "engine-test"
NAME = "shuttle-anomaly"


@pytest.fixture
def known() -> KnownAnswers:
    return store.load(store.find(NAME, [])).known


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(store.find(NAME, []), tmp_path / NAME))


@pytest.fixture
def make_faulty() -> Iterator[Callable[..., FaultyEngine]]:
    """Released at the end, also of a test that fails: a thread that hangs would keep the process from ending."""
    made: list[FaultyEngine] = []

    def make(*accelerators: str) -> FaultyEngine:
        made.append(FaultyEngine(TfliteEngine(), *accelerators))
        return made[-1]

    yield make
    for faulty in made:
        faulty.release()
    _no_thread_is_left()


async def opened(
    engine: str = "auto",
    accelerator: str = "cpu",
    *,
    reference: str = NAME,
    available: Sequence[Engine] | None = None,
    infer_s_max: float = 5.0,
    attempt_s_max: float = 30.0,
) -> Model:
    return await open_model(
        reference,
        [],
        engine,
        accelerator,
        lambda: ThreadWorker(THREADS),
        SystemClock(),
        available=available,
        infer_s_max=infer_s_max,
        attempt_s_max=attempt_s_max,
    )


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = yaml.safe_load((folder / store.MANIFEST).read_text())
    change(data)
    (folder / store.MANIFEST).write_text(yaml.safe_dump(data))


async def decisions(model: Model, known: KnownAnswers) -> list[int]:
    assert model.threshold is not None
    return [int((await model.infer(window)).outputs["score"] > model.threshold) for window in known.windows]


@pytest.mark.parametrize(("engine", "executed_on"), [("auto", ""), ("tflite", "tflite:cpu"), ("openvino", "openvino:CPU")])
def test_it_opens_and_decides_the_known_answers(known: KnownAnswers, engine: str, executed_on: str) -> None:
    async def test() -> None:
        model = await opened(engine)
        assert model.version == store.read_manifest(store.find(NAME, [])).version
        assert (model.name, model.rows, model.points) == (NAME, 1, tuple(f"f{n}" for n in range(1, 10)))
        assert executed_on in model.executed_on
        assert await decisions(model, known) == known.decisions.tolist()
        inference = await model.infer(known.windows[0])
        assert (inference.executed_on, inference.artefact) == (model.executed_on, model.artefact)
        model.close()

    run(test)


def test_auto_tries_every_artefact_with_every_engine_and_keeps_the_times() -> None:
    async def test() -> None:
        model = await opened()
        tried = {(trial.file, trial.engine) for trial in model.trials}
        everywhere = {
            ("fp32.tflite", "tflite"),
            ("int8.tflite", "tflite"),
            ("fp32.tflite", "openvino"),
            ("int8.tflite", "openvino"),
        }
        assert everywhere | {("fp32.xml", "openvino"), ("int8.xml", "openvino"), ("fp32.onnx", "openvino")} == tried
        assert all(trial.works and 0 < trial.p50_ns <= trial.p99_ns for trial in model.trials), model.trials
        taken = next(trial for trial in model.trials if trial.executed_on == model.executed_on and trial.file == model.file)
        same = [trial.p50_ns for trial in model.trials if trial.precision == taken.precision]
        assert taken.p50_ns == min(same)
        model.close()

    run(test)


@pytest.mark.parametrize(("file", "other"), [("fp32.tflite", "int8.xml"), ("int8.tflite", "fp32.xml")])
def test_each_artefact_brings_its_own_threshold(folder: Path, file: str, other: str) -> None:
    """The first in the manifest is one that the engine cannot load."""

    def two(data: dict[str, Any]) -> None:
        named = {artefact["file"]: artefact for artefact in data["artefacts"]}
        data["artefacts"] = [named[other], named[file]]

    async def test() -> None:
        edit(folder, two)
        first, artefact = store.read_manifest(folder).artefacts
        model = await opened("tflite", reference=str(folder))
        assert (model.file, model.threshold, model.artefact) == (file, artefact.threshold, artefact.sha256)
        assert model.threshold != first.threshold
        window = store.load(folder).known.windows[0]
        assert (await model.infer(window)).threshold == model.threshold
        model.close()

    run(test)


def test_what_is_taken_is_proved_as_it_runs_and_not_only_when_it_was_tried(
    folder: Path, make_faulty: Callable[..., FaultyEngine]
) -> None:
    """It is loaded once more then."""

    async def test() -> None:
        faulty = make_faulty("npu")
        load = faulty.load

        def worse(artefact: Path, accelerator: str, threads: int = 1) -> Session:
            session = load(artefact, accelerator, threads)
            faulty.faults["npu"].off = 100.0 * (faulty.loads - 1)
            return session

        faulty.load = worse  # type: ignore[method-assign]
        edit(folder, lambda data: data.update(artefacts=data["artefacts"][:1]))
        with pytest.raises(EngineError, match="known answer 0 is off by 100"):
            await opened(accelerator="npu", reference=str(folder), available=[faulty])
        assert faulty.loads == 2

    run(test)


@pytest.mark.parametrize(
    ("engine", "accelerator", "words"),
    [("onnx", "cpu", "unknown engine 'onnx'"), ("auto", "gpx", "unknown accelerator 'gpx'")],
)
def test_an_unknown_engine_or_accelerator_is_refused(engine: str, accelerator: str, words: str) -> None:
    async def test() -> None:
        with pytest.raises(EngineError, match=words):
            await opened(engine, accelerator)

    run(test)


def test_a_window_of_another_shape_is_refused_and_harms_nothing(known: KnownAnswers) -> None:
    async def test() -> None:
        model = await opened("tflite")
        before = await model.infer(known.windows[0])
        with pytest.raises(EngineError, match=r"model shuttle-anomaly wants a window of 1 x 9 float64 .*got 64 x 9"):
            await model.infer(np.zeros((64, 9)))
        assert await model.infer(known.windows[0]) == before
        model.close()

    run(test)


def test_a_file_that_is_not_the_one_of_the_manifest_is_refused(folder: Path) -> None:
    async def test() -> None:
        with (folder / "fp32.tflite").open("ab") as file:
            file.write(b"!")
        with pytest.raises(EngineError, match="is not the file that manifest"):
            await opened(reference=str(folder))

    run(test)


@pytest.mark.parametrize(("engine", "file"), [("tflite", "fp32.tflite"), ("openvino", "fp32.xml"), ("openvino", "fp32.onnx")])
def test_a_file_that_is_overwritten_while_it_is_in_use_changes_nothing(
    known: KnownAnswers, folder: Path, engine: str, file: str
) -> None:
    """`cp` of a new model onto the old one. Weights that are mapped would be other ones from then on; of a file that became
    shorter, the process would die of SIGBUS."""

    def only(data: dict[str, Any]) -> None:
        data["artefacts"] = [one for one in data["artefacts"] if one["file"] == file]

    def overwrite() -> None:
        for each in folder.glob("fp32.*"):
            with each.open("r+b") as there:
                there.write(bytes(each.stat().st_size))

    async def scenario() -> None:
        edit(folder, only)
        model = await opened(engine, reference=str(folder))
        before = [(await model.infer(window)).outputs for window in known.windows[:5]]
        overwrite()
        assert [(await model.infer(window)).outputs for window in known.windows[:5]] == before
        model.close()

    run(scenario)


def test_a_model_that_has_another_shape_than_its_manifest_is_refused_with_the_reason(folder: Path) -> None:
    def swap(data: dict[str, Any]) -> None:
        for artefact in data["artefacts"]:
            artefact["input"]["shape"] = [1, 3, 3]

    async def test() -> None:
        edit(folder, swap)
        with pytest.raises(EngineError, match="nothing computes it here") as caught:
            await opened(reference=str(folder))
        for file in ("fp32.tflite", "int8.tflite", "fp32.xml", "int8.xml", "fp32.onnx"):
            assert f"{file}: its input is" in caught.value.cause
        assert "the manifest says float32[1, 3, 3]" in caught.value.cause

    run(test)


def test_a_model_that_computes_something_else_fails_its_known_answers(folder: Path) -> None:
    # The right shape, a valid sha256, the wrong scaling: only running it shows that.
    async def test() -> None:
        edit(folder, lambda data: data["input"]["points"][0].update(mean=0.0))
        with pytest.raises(EngineError, match="known answer 0 is off by"):
            await opened("tflite", reference=str(folder))

    run(test)


@pytest.mark.parametrize("side", ["input", "output"])
@pytest.mark.parametrize("change", [{"scale": 0.03}, {"zero_point": 20}])
def test_a_quantisation_that_is_not_the_files_is_refused_by_every_engine(folder: Path, side: str, change: dict[str, Any]) -> None:
    """Its decisions may be right all the same: OpenVINO took it, after TFLite had found the mistake."""

    def wrong(data: dict[str, Any]) -> None:
        data["artefacts"] = [artefact for artefact in data["artefacts"] if artefact["file"] == "int8.tflite"]
        data["artefacts"][0][side].update(change)

    async def test() -> None:
        edit(folder, wrong)
        with pytest.raises(EngineError, match="nothing computes it here") as caught:
            await opened(reference=str(folder))
        for engine in ("tflite", "openvino"):
            assert f"int8.tflite by {engine} on cpu: int8.tflite: its {side} is quantised with" in caught.value.cause

    run(test)


def test_a_wrong_scaling_that_int8_decides_rightly_with_is_refused_all_the_same(folder: Path) -> None:
    """It ran int8 with every score wrong, and said that the model was loaded."""

    def wrong(data: dict[str, Any]) -> None:
        data["input"]["points"][1]["mean"] += 1.0

    async def test() -> None:
        edit(folder, wrong)
        with pytest.raises(EngineError, match="nothing computes it here") as caught:
            await opened(reference=str(folder))
        assert "fp32.tflite: known answer 0 is off by" in caught.value.cause
        assert "int8.tflite by tflite on cpu: decides as it should, but is not taken" in caught.value.cause

    run(test)


def test_a_single_known_answer_that_is_off_says_why_nothing_is_allowed(folder: Path) -> None:
    known = dict(np.load(folder / "known-answers.npz"))
    one = {"windows": known["windows"][:1], "outputs": np.ones_like(known["outputs"][:1]), "decisions": known["decisions"][:1]}
    np.savez(folder / "known-answers.npz", **one)
    digest = hashlib.sha256((folder / "known-answers.npz").read_bytes()).hexdigest()

    async def test() -> None:
        edit(folder, lambda data: data["known_answers"].update(sha256=digest))
        edit(folder, lambda data: data.update(artefacts=data["artefacts"][:1]))
        with pytest.raises(EngineError, match="allowed 0") as caught:
            await opened("tflite", reference=str(folder))
        assert "all known outputs are one number" in caught.value.cause

    run(test)


@pytest.mark.parametrize(
    ("tick_ns", "words"),
    [
        (3_000_000_000, r"fp32\.tflite: takes longer than 2 s for a window, and after that one is given up"),
        (1_000_000_000, r"fp32\.tflite: its 32 known answers take longer than the 30 s of an attempt"),
    ],
)
def test_a_model_that_is_too_slow_is_refused(folder: Path, tick_ns: int, words: str) -> None:
    """Before its known answers are tried: it would be given up in the midst of them, and go on in a thread, as the next try."""

    async def test() -> None:
        nonlocal tick_ns
        clock, asked = SystemClock(), itertools.count(1)
        clock.mono_ns = lambda: next(asked) * tick_ns
        only, worker = [TfliteEngine()], functools.partial(ThreadWorker, THREADS)
        edit(folder, lambda data: data.update(artefacts=data["artefacts"][:1]))
        with pytest.raises(EngineError, match=words) as first:
            await open_model(str(folder), [], "auto", "cpu", worker, clock, available=only)
        tick_ns += 900_000_000
        with pytest.raises(EngineError) as again:
            await open_model(str(folder), [], "auto", "cpu", worker, clock, available=only)
        assert again.value.cause == first.value.cause, "else the log would tell it at each attempt"
        assert next(asked) == 9, "two windows each"
        model = await open_model(str(folder), [], "auto", "cpu", worker, clock, available=only, infer_s_max=4, attempt_s_max=300)
        assert not model.inline
        model.close()

    run(test)


def test_a_refused_accelerator_and_one_that_computes_wrong_are_passed_over(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("edgetpu", "npu", "gpu")
        faulty.faults["edgetpu"].refuse = "the stick was pulled out"
        faulty.faults["npu"].off = 100
        faulty.faults["gpu"].fail = "out of memory"
        model = await opened(accelerator="edgetpu", available=[faulty, TfliteEngine()])
        assert model.executed_on == "tflite:cpu"
        reasons = {(trial.accelerator, trial.file): trial.reason for trial in model.trials if not trial.works}
        assert "pulled out" in reasons["edgetpu", "fp32.xml"]
        assert "is off by 100" in reasons["npu", "fp32.tflite"]
        assert "out of memory" in reasons["gpu", "fp32.tflite"]
        assert await decisions(model, known) == known.decisions.tolist()
        model.close()

    run(test)


def test_the_first_accelerator_that_is_right_is_taken_and_never_runs_inline(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="edgetpu", available=[faulty, TfliteEngine()])
        assert model.executed_on == "faulty:npu"
        assert not model.inline
        answers = await asyncio.gather(*(model.infer(window) for window in known.windows))
        assert [int(a.outputs["score"] > (model.threshold or 0)) for a in answers] == known.decisions.tolist()
        model.close()

    run(test)


def test_a_stuck_accelerator_is_left_behind_and_the_next_window_goes_to_the_next_in_the_chain(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="npu", available=[faulty, TfliteEngine()], infer_s_max=1.0, attempt_s_max=2.0)
        before = await model.infer(known.windows[0])
        faulty.faults["npu"].stuck = True
        stuck = asyncio.create_task(model.infer(known.windows[0]))
        await asyncio.to_thread(faulty.entered.wait)  # the loop goes on while the accelerator hangs
        with pytest.raises(Stuck, match="on faulty:npu did not answer within") as caught:
            await stuck
        assert caught.value.hint
        after = await model.infer(known.windows[0])
        assert model.executed_on == after.executed_on == "tflite:cpu"
        assert after.outputs == before.outputs
        assert any("did not answer" in trial.reason for trial in model.trials)
        model.close()

    run(test)


def test_an_accelerator_that_hangs_while_it_is_tried_is_passed_over(make_faulty: Callable[..., FaultyEngine]) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        faulty.faults["npu"].stuck = True
        model = await opened(accelerator="npu", available=[faulty, TfliteEngine()], attempt_s_max=2.0)
        assert model.executed_on == "tflite:cpu"
        assert faulty.loads == 1  # not every artefact in turn on what hangs
        model.close()

    run(test)


def test_closing_while_the_accelerator_hangs_does_not_wait_for_it(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="npu", available=[faulty], infer_s_max=60)
        faulty.faults["npu"].stuck = True
        hanging = asyncio.create_task(model.infer(known.windows[0]))
        await asyncio.to_thread(faulty.entered.wait)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        model.close()

    run(test)


def test_an_accelerator_that_hung_once_is_used_again_when_it_is_well(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="npu", available=[faulty, TfliteEngine()], infer_s_max=1.0)
        faulty.faults["npu"].stuck = True
        with pytest.raises(Stuck):
            await model.infer(known.windows[0])
        faulty.faults["npu"].stuck = False
        assert (await model.infer(known.windows[0])).executed_on == "faulty:npu"
        model.close()

    run(test)


def test_a_file_that_was_replaced_meanwhile_is_not_loaded_after_a_window_hung(
    known: KnownAnswers, folder: Path, make_faulty: Callable[..., FaultyEngine]
) -> None:
    """tflite-runtime ends the process with a segmentation fault where a file was cut off."""

    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(
            accelerator="npu", reference=str(folder), available=[faulty, TfliteEngine()], infer_s_max=1.0, attempt_s_max=2.0
        )
        faulty.faults["npu"].stuck = True
        with pytest.raises(Stuck):
            await model.infer(known.windows[0])
        with (folder / "fp32.tflite").open("ab") as file:
            file.write(b"more")
        with pytest.raises(EngineError, match=r"fp32\.tflite: is not the file that manifest\.yaml names"):
            await model.infer(known.windows[0])
        model.close()

    run(test)


def test_an_error_of_the_engine_is_told_and_the_session_stays(
    known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]
) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="npu", available=[faulty])
        loads = faulty.loads
        faulty.faults["npu"].fail = "bus error"
        with pytest.raises(EngineError, match="bus error"):
            await model.infer(known.windows[0])
        faulty.faults["npu"].fail = ""
        await model.infer(known.windows[0])
        assert faulty.loads == loads
        model.close()

    run(test)


def test_a_cancelled_window_does_not_disturb_the_next(known: KnownAnswers, make_faulty: Callable[..., FaultyEngine]) -> None:
    async def test() -> None:
        faulty = make_faulty("npu")
        model = await opened(accelerator="npu", available=[faulty])
        wanted = await model.infer(known.windows[-1])
        for _ in range(50):
            task = asyncio.create_task(model.infer(known.windows[0]))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            assert await model.infer(known.windows[-1]) == wanted
            assert task.cancelled() or task.done()
        model.close()

    run(test)


@pytest.mark.parametrize("accelerator", ["cpu", "npu"])
def test_a_closed_model_says_so(known: KnownAnswers, accelerator: str, make_faulty: Callable[..., FaultyEngine]) -> None:
    async def test() -> None:
        model = await opened(accelerator=accelerator, available=[make_faulty("npu"), TfliteEngine()])
        await model.infer(known.windows[0])
        model.close()
        model.close()
        with pytest.raises(EngineError, match="is closed"):
            await model.infer(known.windows[0])

    run(test)


def test_a_model_that_runs_inline_leaves_no_thread_behind() -> None:
    async def test() -> None:
        model = await opened("tflite")
        if model.inline:
            _no_thread_is_left()
        model.close()

    run(test)


def test_a_model_without_an_artefact_for_the_engine_says_which_there_are(folder: Path) -> None:
    async def test() -> None:
        edit(folder, lambda data: data.update(artefacts=[a for a in data["artefacts"] if a["file"].endswith(".xml")]))
        with pytest.raises(EngineError, match=r"no artefact for this engine \(\.tflite\), only fp32\.xml, int8\.xml"):
            await opened("tflite", reference=str(folder))

    run(test)


WITHOUT_ENGINES = """
import asyncio, sys
for name in ("ai_edge_litert", "tflite_runtime", "openvino"):
    sys.modules[name] = None
from edge_runtime.board.system import SystemClock, ThreadWorker
from edge_runtime.inference.engine import EngineMissing
from edge_runtime.inference.model import open_model
try:
    asyncio.run(open_model("shuttle-anomaly", [], sys.argv[1], "cpu", lambda: ThreadWorker("w"), SystemClock()))
except EngineMissing as error:
    print(error)
"""


@pytest.mark.parametrize("engine", ["auto", "tflite", "openvino"])
def test_without_any_engine_the_hint_says_what_to_install(engine: str) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_ENGINES, engine], capture_output=True, text=True, timeout=60, check=True)
    assert "is installed" in done.stdout or "not installed" in done.stdout
    extra = "openvino" if engine == "openvino" else "litert"
    assert f"pip install 'edge-runtime[{extra}]'" in done.stdout


def test_an_engine_that_is_here_and_cannot_work_is_not_called_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """tflite-runtime beside numpy 2: on a 32-bit ARM there is nothing else to install."""
    monkeypatch.setattr(TfliteEngine, "load", _numpy_2)
    monkeypatch.setitem(sys.modules, "openvino", None)

    async def test() -> None:
        with pytest.raises(EngineMissing) as caught:
            await opened()
        assert "does not work with numpy 2.4.6 (pip install 'numpy<2')" in str(caught.value)
        assert "no engine is installed" not in str(caught.value)

    run(test)


def _numpy_2(*_: object) -> Any:
    raise EngineMissing("tflite-runtime 2.14.0 does not work with numpy 2.4.6", "pip install 'numpy<2'")


def test_nothing_outside_is_imported_before_a_model_is_opened() -> None:
    code = "import sys, edge_runtime.inference.model; print([m for m in ('ai_edge_litert', 'openvino') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_openvino_is_found_by_name_only() -> None:
    async def test() -> None:
        model = await opened("openvino", "npu", available=[OpenvinoEngine()])
        assert model.executed_on in ("openvino:CPU", "openvino:NPU", "openvino:GPU")
        if model.executed_on == "openvino:CPU":
            assert any("sees no NPU" in trial.reason for trial in model.trials)
        model.close()

    run(test)


def _no_thread_is_left() -> None:
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith(THREADS):
            thread.join(10)
            assert not thread.is_alive(), thread
