"""What every engine must do. Subclass it in a test module:

class TestMyEngine(EngineSuite):
    engine = MyEngine()
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.inference import store
from edge_runtime.inference.engine import PROBE_FILE, PROBE_INPUT, PROBE_OUTPUT, Engine, EngineError, Session, Tensor
from edge_runtime.inference.manifest import Artefact
from edge_runtime.inference.store import Stored
from edge_runtime.inference.trial import Candidate, Prepared, check

PARALLEL_RUNS = 1_000


class EngineSuite:
    """The promises of inference/engine.py, on a real library, with the models that are shipped."""

    engine: ClassVar[Engine]
    accelerator: ClassVar[str] = "cpu"
    executed_on: ClassVar[str] = "tflite:cpu"
    probe_file: ClassVar[Path] = PROBE_FILE

    def shipped(self) -> Iterator[tuple[Stored, Artefact]]:
        """Every artefact of every shipped model that this engine can load."""
        for name in store.names([]):
            stored = store.load(store.find(name, []))
            for artefact in stored.manifest.artefacts:
                if artefact.file.endswith(self.engine.suffixes):
                    yield stored, artefact

    def session(self) -> Session:
        return self.engine.load(self.probe_file, self.accelerator)

    def feed(self, session: Session, scale: float = 1.0) -> dict[str, Tensor]:
        return {session.inputs[0].name: np.asarray(PROBE_INPUT * np.float32(scale))}

    def answer(self, session: Session, scale: float = 1.0) -> NDArray[np.float32]:
        return _float32(session.run(self.feed(session, scale))[session.outputs[0].name])

    def test_probe_proves_what_works_and_names_the_version(self) -> None:
        probe = self.engine.probe(self.accelerator)
        assert probe.works, probe.reason
        assert any(char.isdigit() for char in probe.version)

    def test_probe_of_what_is_not_there_says_why(self) -> None:
        probe = self.engine.probe("abacus")
        assert not probe.works
        assert "abacus" in probe.reason

    def test_known_answers_of_every_shipped_artefact(self) -> None:
        checked = 0
        for stored, artefact in self.shipped():
            prepared = Prepared(stored, Candidate(self.engine, artefact, self.accelerator))
            check(prepared, stored.manifest, stored.known)
            prepared.session.close()
            checked += 1
        assert checked

    def test_says_where_it_ran(self) -> None:
        assert self.session().executed_on == self.executed_on

    def test_a_later_run_does_not_change_an_earlier_output(self) -> None:
        session = self.session()
        first = self.answer(session)
        kept = first.copy()
        self.answer(session, 5.0)
        np.testing.assert_array_equal(first, kept)

    def test_an_output_may_be_written_to(self) -> None:
        session = self.session()
        before = self.answer(session)
        kept = before.copy()
        before.fill(99)
        np.testing.assert_array_equal(self.answer(session), kept)

    def test_the_same_input_gives_the_same_output(self) -> None:
        first, second = self.session(), self.session()
        wanted = self.answer(first).tobytes()
        assert all(self.answer(session).tobytes() == wanted for session in (first, second) for _ in range(100))

    def test_another_shape_dtype_or_name_is_refused(self) -> None:
        session = self.session()
        name = session.inputs[0].name
        good = self.feed(session)[name]
        for feeds in (
            {name: good[:, :3]},
            {name: good.reshape(4)},
            {name: good.astype(np.float64)},
            {name: good.astype(np.int8)},
            {"nobody": good},
            {},
            {name: good, "more": good},
        ):
            with pytest.raises(EngineError, match="wants"):
                session.run(feeds)
        np.testing.assert_allclose(self.answer(session), PROBE_OUTPUT, atol=1e-5)

    def test_an_input_that_is_not_contiguous_is_read_right(self) -> None:
        session = self.session()
        strided = np.repeat(PROBE_INPUT, 2, axis=1)[:, ::2]
        answer = _float32(session.run({session.inputs[0].name: strided})[session.outputs[0].name])
        np.testing.assert_allclose(answer, PROBE_OUTPUT, atol=1e-5)

    @pytest.mark.parametrize("damage", ["missing", "empty", "garbage", "folder"])
    def test_a_file_that_is_no_model_is_refused_with_a_hint(self, tmp_path: Path, damage: str) -> None:
        for suffix in self.engine.suffixes:
            path = tmp_path / f"broken{suffix}"
            if damage == "folder":
                path.mkdir()
            elif damage != "missing":
                path.write_bytes(b"no model" * 100 if damage == "garbage" else b"")
            with pytest.raises(EngineError) as caught:
                self.engine.load(path, self.accelerator)
            assert path.name in caught.value.cause
            assert caught.value.hint

    def test_a_file_that_was_cut_off_is_refused(self, tmp_path: Path) -> None:
        for stored, artefact in self.shipped():
            content = stored.path(artefact).read_bytes()
            path = tmp_path / artefact.file
            path.write_bytes(content[: len(content) // 2])
            with pytest.raises(EngineError, match=artefact.file):
                self.engine.load(path, self.accelerator)

    def test_an_unknown_accelerator_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(EngineError, match="abacus") as caught:
            self.engine.load(self.probe_file, "abacus")
        assert "cpu" in caught.value.hint

    def test_an_accelerator_that_is_not_here_is_refused_with_the_reason(self) -> None:
        for accelerator in self.engine.accelerators:
            probe = self.engine.probe(accelerator)
            if not probe.works:
                assert probe.reason
                with pytest.raises(EngineError):
                    self.engine.load(self.probe_file, accelerator)

    def test_two_threads_cannot_share_a_session(self) -> None:
        session = self.session()
        self.answer(session)
        errors: list[EngineError] = []

        def other() -> None:
            try:
                self.answer(session)
            except EngineError as error:
                errors.append(error)

        _in_thread(other)
        assert len(errors) == 1
        assert "belongs to thread" in errors[0].cause
        assert "each thread" in errors[0].hint

    def test_a_session_can_be_handed_over(self) -> None:
        session = self.session()
        self.answer(session)
        session.hand_over()
        answers: list[NDArray[np.float32]] = []
        _in_thread(lambda: answers.append(self.answer(session)))
        np.testing.assert_allclose(answers[0], PROBE_OUTPUT, atol=1e-5)
        with pytest.raises(EngineError, match="belongs to thread"):
            self.answer(session)

    def test_two_threads_with_a_session_each_get_their_own_answers(self) -> None:
        wrong: list[int] = []
        done: list[int] = []

        def runs(scale: float) -> None:
            session = self.session()
            wanted = PROBE_INPUT * scale * 2 + 1
            answers = (self.answer(session, scale) for _ in range(PARALLEL_RUNS))
            wrong.append(sum(not np.allclose(answer, wanted, atol=1e-3) for answer in answers))
            done.append(PARALLEL_RUNS)

        threads = [threading.Thread(target=runs, args=(scale,)) for scale in (1.0, 7.0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(done) == 2 * PARALLEL_RUNS
        assert sum(wrong) == 0

    def test_a_closed_session_says_so(self) -> None:
        session = self.session()
        session.close()
        session.close()
        with pytest.raises(EngineError, match="closed"):
            self.answer(session)


def _float32(tensor: Tensor) -> NDArray[np.float32]:
    assert tensor.dtype == np.float32
    return cast("NDArray[np.float32]", tensor)


def _in_thread(function: Callable[[], object]) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()
