"""A gateway's models with planned faults, without models (ports_mesh.Executor): slow, failing, stuck.

executor = FakeExecutor({"m@1": 0.010})          # a window of m@1 takes 10 ms; 0: it computes on the event loop
executor.stuck = True                            # windows that begin from now on do not end before `release`
"""

from __future__ import annotations

import asyncio

from edge_runtime.ports import EdgeError
from edge_runtime.ports_mesh import Offer
from edge_runtime.records import Inference, Tensor


class FakeExecutor:
    """Output `sum`: of the tensor's bytes."""

    def __init__(self, takes_s: dict[str, float]) -> None:
        self.takes_s = takes_s
        self.fail = ""
        """A window fails with this."""
        self.stuck = False
        self.withdrawn = False
        self.known = True
        """It says beforehand how long a window takes."""
        self.outputs = 1
        """How many; beside `sum` they are zeros."""
        self.computed: list[str] = []
        """Models, in the order in which windows began; beside it the first byte of each tensor."""
        self.marks: list[int] = []
        self.running = self.running_max = 0
        self._released = asyncio.Event()

    def release(self) -> None:
        self.stuck = False
        self._released.set()

    def offers(self) -> list[Offer]:
        return [found for name in sorted(self.takes_s) if (found := self.offer(name)) is not None]

    def offer(self, model: str) -> Offer | None:
        if self.withdrawn or model not in self.takes_s:
            return None
        return Offer(model, "fake:cpu", round(self.takes_s[model] * 1e9) if self.known else 0)

    def withdraw(self) -> None:
        self.withdrawn = True

    def resume(self) -> None:
        self.withdrawn = False

    async def execute(self, model: str, tensor: Tensor) -> Inference:
        if model not in self.takes_s:
            raise EdgeError(f"model {model} is not offered here")
        self.computed.append(model)
        self.marks.append(bytes(tensor.data[:1])[0] if tensor.data else 0)
        self.running += 1
        self.running_max = max(self.running, self.running_max)
        try:
            if self.stuck:
                await self._released.wait()
            if self.takes_s[model]:
                await asyncio.sleep(self.takes_s[model])
        finally:
            self.running -= 1
        if self.fail:
            raise EdgeError(self.fail, "this is a test")
        outputs = {"sum": float(sum(bytes(tensor.data)))} | {f"zero-{number}": 0.0 for number in range(1, self.outputs)}
        return Inference(outputs, "fake:cpu", "f" * 64)
