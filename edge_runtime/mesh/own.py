"""How long windows of one model take here, and how many there are now (pure). The caller brings the time."""

from __future__ import annotations

WEIGHT = 0.2
"""Of the newest measurement in the mean."""

STALE_NS = 30 * 10**9
"""A time that was not measured for so long is doubted: the next measurement replaces it."""


class Own:
    """They are computed one after the other, by one thread. `service_ns`: as known when it begins; 0: not at all."""

    def __init__(self, service_ns: int, now_ns: int) -> None:
        self.in_flight = 0
        self.service_ns = service_ns
        """Mean of what a window takes, without waiting."""
        self._measured_ns = now_ns
        self._free_ns = 0

    def stale(self, now_ns: int) -> bool:
        return not self.service_ns or now_ns - self._measured_ns > STALE_NS

    def finished(self, began_ns: int, now_ns: int) -> None:
        """A window that began while another one was computed had to wait for that."""
        taken_ns = max(1, now_ns - max(began_ns, self._free_ns))
        before_ns = taken_ns if self.stale(now_ns) else self.service_ns
        self.service_ns = round(before_ns + WEIGHT * (taken_ns - before_ns))
        self._measured_ns = self._free_ns = now_ns
