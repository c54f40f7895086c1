"""Models that a gateway computes for its peers."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
import structlog
from worlds import until

from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.offering import FAILURES_MAX, Offering, tensor_of, values_of
from edge_runtime.records import Tensor
from edge_runtime.testing.loop import SeededDice, VirtualLoop, run
from edge_runtime.testing.model import FakeModels


def offering(models: FakeModels, references: list[str], changed: list[int], log: list[str]) -> Offering:
    def note(_logger: Any, _level: str, event: Any) -> Any:
        log.append(event["event"])
        raise structlog.DropEvent

    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    told = structlog.wrap_logger(None, processors=[note])
    made = Offering(lambda: changed.append(1), SeededDice(loop.rng("dice")), told)
    made.use(references, models.open)
    return made


def test_it_offers_what_opens_and_keeps_trying_the_rest() -> None:
    async def scenario() -> None:
        models, changed, log = FakeModels(points=("a", "b")), list[int](), list[str]()
        models.faults.refuse = "no such file"
        found = offering(models, ["m", "m", "n"], changed, log)
        running = asyncio.create_task(found.run(), name="offering")
        await asyncio.sleep(300)
        assert (found.offers(), changed, log) == ([], [], ["model_not_offered"] * 2), "told once a model, not at each attempt"
        with pytest.raises(EngineError, match="m@1 is not offered here"):
            await found.execute("m@1", Tensor("float64", (1, 2), bytes(16)))
        models.faults.refuse = ""
        await until(lambda: len(found.offers()) == 2)
        assert [offer.model for offer in found.offers()] == ["m@1", "n@1"]
        assert found.offers()[0].service_ns == 1_000_000
        assert len(changed) == 2
        values = np.array([[3.0, 4.0]])
        assert (await found.execute("m@1", tensor_of(values))).outputs == {"score": 43.0}
        running.cancel()
        await asyncio.wait([running])
        assert models.opened == models.closed == 2
        assert found.offers() == []

    run(scenario, seed=1)


@pytest.mark.parametrize(
    "tensor", [Tensor("float32", (1, 2), bytes(8)), Tensor("float64", (2,), bytes(16)), Tensor("float64", (1, 1, 2), bytes(16))]
)
def test_another_shape_or_type_is_told(tensor: Tensor) -> None:
    with pytest.raises(EngineError, match="a window is float64"):
        values_of(tensor)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_is_told(value: float) -> None:
    """`mesh submit` sends what stands in a file; an int8 artefact would compute something of it."""
    with pytest.raises(EngineError, match="nan or infinite"):
        values_of(tensor_of(np.array([[1.0, value]])))


def test_a_window_travels_as_it_is() -> None:
    values = np.arange(12.0).reshape(3, 4)[:, ::2]  # not contiguous
    tensor = tensor_of(values)
    assert (tensor.dtype, tensor.shape, len(tensor.data)) == ("float64", (3, 2), 48)
    assert np.array_equal(values_of(Tensor(tensor.dtype, tensor.shape, bytes(tensor.data))), values)


def test_a_model_that_fails_again_and_again_is_opened_again_but_not_for_ever() -> None:
    """It may be the model (an accelerator that is gone), or the windows: whoever sends those must not keep us busy."""

    async def scenario() -> None:
        models, changed, log = FakeModels(points=("a", "b")), list[int](), list[str]()
        found = offering(models, ["m"], changed, log)
        running = asyncio.create_task(found.run(), name="offering")
        await until(lambda: found.offers())
        window = tensor_of(np.array([[3.0, 4.0]]))

        async def fail(times: int) -> None:
            for _ in range(times):
                with pytest.raises(EngineError):
                    await found.execute("m@1", window)

        models.faults.poison = lambda values: True
        await fail(FAILURES_MAX - 1)
        models.faults.poison = lambda values: False
        assert (await found.execute("m@1", window)).outputs == {"score": 43.0}
        models.faults.poison = lambda values: True
        await fail(FAILURES_MAX - 1)
        await asyncio.sleep(300)
        assert models.opened == 1, "a window that worked stood between them"
        await fail(1)
        await until(lambda: models.opened == 2 and found.offers())
        assert models.closed == 1
        began_s = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - began_s < 600:
            if found.offers():
                await fail(1)
            await asyncio.sleep(0.1)
        assert models.opened < 20, "in ten minutes of windows that cannot be computed"
        models.faults.poison = lambda values: False
        await until(lambda: found.offers())
        assert (await found.execute("m@1", window)).outputs == {"score": 43.0}
        running.cancel()
        await asyncio.wait([running])
        assert models.opened == models.closed

    run(scenario, seed=1)


def test_a_gateway_that_stops_offers_nothing() -> None:
    async def scenario() -> None:
        models, changed, log = FakeModels(points=("a", "b")), list[int](), list[str]()
        found = offering(models, ["m"], changed, log)
        running = asyncio.create_task(found.run(), name="offering")
        await until(lambda: found.offers())
        changed.clear()
        found.withdraw()
        assert (found.offers(), len(changed)) == ([], 1)
        running.cancel()
        await asyncio.wait([running])

    run(scenario, seed=1)
