"""A bus that asks for the password when it connects (runs): of `secret:NAME` what NAME is now. So nobody above it ever holds a
secret, one that was replaced counts from the next connection on, and one that is missing is the state of that connection alone.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from edge_runtime.ports import Address, BrokerError, Bus, Connection, EdgeError, Will


class UnsealingBus:
    """ports.Bus. `reveal`: a text, or what it refers to; raises EdgeError."""

    def __init__(self, bus: Bus, reveal: Callable[[str], str]) -> None:
        self._bus, self._reveal = bus, reveal

    async def connect(self, address: Address, *, will: Will | None = None, timeout_s: float = 5.0) -> Connection:
        """Raises BrokerError, also for a secret that is not there."""
        if address.password:
            try:
                address = replace(address, password=self._reveal(address.password))
            except EdgeError as error:
                raise BrokerError(error.cause, error.hint) from None
        return await self._bus.connect(address, will=will, timeout_s=timeout_s)
