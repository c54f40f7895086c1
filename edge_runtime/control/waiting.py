"""Documents that came and have not had their turn (decides): by target, in the order in which they came.

Not only the newest of a target: a broker may say an old one after it, and what is newer shows only when they are read.
"""

from __future__ import annotations

from collections import deque

from edge_runtime.control.layers import layer_name

TARGETS_MAX = 64
"""Groups whose documents wait at once."""
OF_TARGET_MAX = 4
"""Of one; who says more at once loses the oldest."""


class Waiting:
    def __init__(self) -> None:
        self._all: dict[str, deque[bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._all)

    @property
    def layers(self) -> frozenset[str]:
        return frozenset(layer_name(target) for target in self._all)

    def put(self, target: str, payload: bytes) -> None:
        if target in self._all or len(self._all) < TARGETS_MAX:
            held = self._all.setdefault(target, deque(maxlen=OF_TARGET_MAX))
            if not held or held[-1] != payload:  # each connection brings what is retained once more
                held.append(payload)

    def put_back(self, target: str, payload: bytes) -> None:
        """Before those that came meanwhile; of too many it is the oldest."""
        held = self._all.setdefault(target, deque(maxlen=OF_TARGET_MAX))
        if len(held) < OF_TARGET_MAX:
            held.appendleft(payload)

    def take(self, layer: str) -> tuple[str, bytes] | None:
        """The next one. `layer`: of this one alone; "": of any."""
        target = next((each for each in self._all if layer in ("", layer_name(each))), None)
        if target is None:
            return None
        payload = self._all[target].popleft()
        if not self._all[target]:
            del self._all[target]
        return target, payload
