"""Whether somebody who may steer this gateway has spoken to it where its broker is now (decides).

A change that moves the broker is no good because a broker answers there: it can be one where nobody ever looks. What counts is a
command, or a document that is not older than what we have, as soon as it comes, whatever else is on trial. A document that the
broker only remembers counts if it says its revision and is signed, where that is asked for; on a broker that we host ourselves it
never does. Until then we say no document there (Control.waits): it would look like a call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from edge_runtime.control.origin import is_numbered

WORDS_MAX = 16
"""Documents that came and were not judged; who says more at once is not heard."""


class Word(NamedTuple):
    """A document that came. `kept`: the broker remembered it, nobody says it now."""

    target: str
    payload: bytes
    kept: bool


def leads_back(word: Word) -> bool:
    """Or may: on a broker to which a document of this layer has just brought us, one that was kept there, without a revision, is
    not known to be newer. Two brokers that keep one each, for the other, would send us to and fro for ever."""
    return word.kept and not is_numbered(word.payload)


class Calling:
    """Of one gateway, since it was built: a broker that is elsewhere builds it anew."""

    def __init__(self) -> None:
        self.called = False
        self.then: list[Callable[[], None]] = []
        """To be called once, when it is."""
        self._words: deque[Word] = deque(maxlen=WORDS_MAX)

    def came(self, word: Word, *, hosted: bool) -> None:
        """`hosted`: by ourselves."""
        if not self.called and not (word.kept and hosted):
            self._words.append(word)

    def judge(self, counts: Callable[[Word], bool]) -> None:
        while self._words and not self.called:
            if counts(self._words.popleft()):
                self.call()

    def call(self) -> None:
        if not self.called:
            self.called = True
            self._words.clear()
            for each in self.then:
                each()
