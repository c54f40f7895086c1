"""What we have learned of a peer by asking it: how far away it is, how long its models take, may it be asked at all (pure)."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Literal

from edge_runtime.mesh.admission import learned

FAILURES_MAX = 3
"""In a row; then the breaker opens."""
PROBE_NS_MIN, PROBE_NS_MAX = 1_000_000_000, 60_000_000_000
"""From opening until one task is sent there as a probe: doubled with each probe that fails."""
SAMPLES_MAX = 64
"""Of the links' times; the p50 is of the last so many."""
MODELS_MAX = 256

State = Literal["closed", "open", "half-open"]


class Breaker:
    """Keeps tasks from a peer that does not do them. closed: all go there; open: none; half-open: one, to find out."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row."""
        self.opened = 0
        """Times."""
        self._open_until_ns: int | None = None
        self._wait_ns = PROBE_NS_MIN
        self._probing = False

    def state(self, now_ns: int) -> State:
        if self._open_until_ns is None:
            return "closed"
        return "half-open" if now_ns >= self._open_until_ns and not self._probing else "open"

    def enter(self, now_ns: int) -> bool:
        """May a task go there now? If it is half-open, this one is the probe."""
        state = self.state(now_ns)
        self._probing = self._probing or state == "half-open"
        return state != "open"

    def succeeded(self) -> None:
        """It answered, if only that it will not."""
        self.failures = 0
        self._open_until_ns, self._wait_ns, self._probing = None, PROBE_NS_MIN, False

    def failed(self, now_ns: int) -> bool:
        """True: it opened with this one. What was under way when it opened, and fails too, does not count again."""
        self.failures += 1
        if self._open_until_ns is not None and not self._probing:
            return False
        if self._probing:
            self._wait_ns = min(PROBE_NS_MAX, 2 * self._wait_ns)
        elif self.failures < FAILURES_MAX:
            return False
        self._open_until_ns, self._probing = now_ns + self._wait_ns, False
        self.opened += 1
        return True

    def withdrawn(self) -> None:
        """A task that went there says nothing about it: the next one may be the probe."""
        self._probing = False


class Standing:
    """Of one peer."""

    def __init__(self) -> None:
        self.breaker = Breaker()
        self.link_ns = 0
        """Smoothed: the round trip without what the task took and waited there. 0: not yet known."""
        self.services: dict[str, int] = {}
        """Model -> smoothed time of a window, as the peer says."""
        self._links: deque[int] = deque(maxlen=SAMPLES_MAX)

    def measured(self, round_trip_ns: int, waited_ns: int, service_ns: int) -> None:
        """A peer that says it took longer than we waited is wrong (or repeats an old answer): that teaches nothing."""
        link_ns = round_trip_ns - waited_ns - service_ns
        if link_ns >= 0:
            self._links.append(link_ns)
            self.link_ns = learned(self.link_ns, link_ns)

    def served(self, model: str, service_ns: int) -> None:
        if model in self.services or len(self.services) < MODELS_MAX:
            self.services[model] = learned(self.services.get(model, 0), service_ns)

    def link_p50_ns(self) -> int:
        """0: not yet known."""
        return round(statistics.median(self._links)) if self._links else 0
