"""Which engine, artefact and accelerator is taken."""

from __future__ import annotations

import pytest

from edge_runtime.inference import store
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.selection import candidates, chain, fastest
from edge_runtime.inference.trial import Trial


def trial(name: str, precision: str, p50_ns: int, works: bool = True) -> Trial:
    return Trial(engine=name, accelerator="cpu", file="f", precision=precision, works=works, p50_ns=p50_ns, p99_ns=p50_ns)


def grossly_wrong(accelerator: str) -> Trial:
    return Trial(engine="b", accelerator=accelerator, file="f", precision="fp32", works=False, mistaken=True)


@pytest.mark.parametrize(
    ("accelerator", "wanted"),
    [
        ("cpu", ("cpu",)),
        ("gpu", ("gpu", "cpu")),
        ("gpu.1", ("gpu.1", "cpu")),
        ("npu", ("npu", "gpu", "cpu")),
        ("edgetpu", ("edgetpu", "npu", "gpu", "cpu")),
    ],
)
def test_the_chain_goes_down_to_the_cpu(accelerator: str, wanted: tuple[str, ...]) -> None:
    assert chain(accelerator) == wanted


@pytest.mark.parametrize("accelerator", ["auto", "CPU", "tpu", ""])
def test_an_unknown_accelerator_is_refused(accelerator: str) -> None:
    with pytest.raises(EngineError, match="unknown accelerator") as caught:
        chain(accelerator)
    assert "edgetpu, npu, gpu, cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("trials", "wanted"),
    [
        ([], None),
        ([trial("a", "fp32", 10, works=False)], None),
        ([trial("a", "fp32", 10), trial("b", "fp32", 9)], "b"),
        ([trial("a", "fp32", 1, works=False), trial("b", "fp32", 9)], "b"),
        ([trial("a", "int8", 1, works=False), trial("b", "fp32", 9)], "b"),
        ([trial("a", "fp32", 149), trial("b", "int8", 100)], "a"),
        ([trial("a", "fp32", 150), trial("b", "int8", 100)], "b"),
        ([trial("a", "int8", 100), trial("b", "fp16", 50), trial("c", "fp32", 70)], "c"),
        ([trial("a", "int8", 100)], "a"),
        # A clock that stands still (a simulation) decides nothing: the manifest's order does, fp32 first.
        ([trial("a", "int8", 0), trial("b", "fp32", 0), trial("c", "fp32", 0)], "b"),
    ],
)
def test_the_fastest_wins_and_fp32_unless_others_are_half_as_fast_again(trials: list[Trial], wanted: str | None) -> None:
    best = fastest(trials)
    assert (best.engine if best else None) == wanted


def test_what_is_proved_by_its_decisions_only_is_not_taken_where_fp32_is_grossly_wrong() -> None:
    int8 = trial("a", "int8", 10)
    assert fastest([int8, grossly_wrong("cpu")]) is None
    assert fastest([int8, grossly_wrong("cpu"), trial("c", "fp32", 20)]) is int8, "another fp32 file gives the known answers"
    assert fastest([int8, trial("b", "fp32", 0, works=False)]) is int8, "it could not be loaded, or was off by a little"
    assert fastest([int8, grossly_wrong("npu")]) is int8, "it may compute in half precision"


def test_candidates_are_what_an_engine_can_load_where_it_can_run() -> None:
    manifest = store.read_manifest(store.find("shuttle-anomaly", []))
    engines = [TfliteEngine(), OpenvinoEngine()]

    def found(accelerator: str) -> list[tuple[str, str]]:
        return [(one.artefact.file, one.engine.name) for one in candidates(manifest, engines, accelerator)]

    assert ("fp32.tflite", "tflite") in found("cpu")
    assert ("fp32.tflite", "openvino") in found("cpu")
    assert ("fp32.xml", "tflite") not in found("cpu")
    assert {engine for _, engine in found("npu")} == {"openvino"}
    assert {engine for _, engine in found("gpu.1")} == {"openvino"}
    assert {engine for _, engine in found("edgetpu")} == {"tflite"}
