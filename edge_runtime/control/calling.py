"""Whether somebody who may steer this gateway has spoken to it where its broker is now (decides).

A change that moves the broker is no good because a broker answers there: it can be one where nobody ever looks. What counts is a
command, or a document that is not older than what we have; not what the broker remembers that we host ourselves. Until then we
say no document there (Control.waits): it would look like a call.
"""

from __future__ import annotations

from collections.abc import Callable


class Calling:
    """Of one gateway, since it was built: a broker that is elsewhere builds it anew."""

    def __init__(self) -> None:
        self.called = False
        self.then: list[Callable[[], None]] = []
        """To be called once, when it is."""
        self._kept: dict[str, bytes] = {}

    def kept(self, target: str, payload: bytes) -> None:
        """Our own broker remembers this document: nobody need have spoken for it to be there."""
        self._kept[target] = payload

    def document(self, target: str, payload: bytes) -> None:
        """One that counts has come."""
        if self._kept.pop(target, None) != payload:
            self.call()

    def call(self) -> None:
        if not self.called:
            self.called = True
            for each in self.then:
                each()
