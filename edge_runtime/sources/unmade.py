"""In the place of a device whose adapter cannot be made: it says why, and the others go on (runs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge_runtime import config
from edge_runtime.adapter import Adapter, Context, Unusable
from edge_runtime.ports import EdgeError
from edge_runtime.records import Sample


def tried(schema: type[Adapter], name: str, device: config.Device, context: Callable[[str], Context]) -> Adapter:
    """Made, and asked what is asked of it before it runs: then nothing that it raises can stop more than its own device. Raises
    whatever it raises. `context`: for a device on this line."""
    options = schema.Options.model_validate(device.options)
    _option, _key = schema.session(options)  # who cannot tell might take what is meant for another device
    adapter = schema(context(schema.line(name, options)))
    _ = adapter.redelivers, adapter.waits
    return adapter


class Unmade(Adapter):
    """Unusable, until the gateway starts with another adapter or other options."""

    def __init__(self, context: Context, error: EdgeError) -> None:
        super().__init__(context)
        self._error = error

    @property
    def redelivers(self) -> bool:
        """It may have: what was accepted of it stays in the journal, and what its windows need is read from there."""
        return True

    async def open(self) -> None:
        raise Unusable(self._error.cause, self._error.hint)

    async def read(self) -> Sequence[Sample]:
        raise Unusable(self._error.cause, self._error.hint)

    async def close(self) -> None:
        return
