"""How long to wait before the next attempt: exponential with full jitter, and a circuit breaker at its end."""

from __future__ import annotations

from edge_runtime.ports import Dice

BASE_S = 0.5
"""The first wait is drawn from 0..this, the next from twice as much, and so on up to the cap."""

FLOOR_S = 0.01
"""Shortest wait: chance alone must not make a busy loop."""

BREAKER_FAILURES = 8
"""After so many failures in a row the breaker opens: one probe every cap/2..cap until something succeeds."""


class Backoff:
    """Of one device. Full jitter: devices that fell together do not come back together."""

    def __init__(self, dice: Dice, cap_s: float) -> None:
        self._dice = dice
        self._cap_s = cap_s
        self.failures = 0
        """In a row."""

    @property
    def open(self) -> bool:
        """The breaker: only probes at the cap."""
        return self.failures >= BREAKER_FAILURES

    def failed(self) -> float:
        """Counts a failure; seconds to wait before the next attempt."""
        self.failures += 1
        if self.open:
            return max(FLOOR_S, self._dice.uniform(self._cap_s / 2, self._cap_s))
        ceiling_s = min(self._cap_s, BASE_S * 2.0 ** (self.failures - 1))
        return max(FLOOR_S, self._dice.uniform(0.0, ceiling_s))

    def succeeded(self) -> None:
        self.failures = 0
