"""Limits of a window's own settings that make it discard windows, perhaps every one: the first of each kind is told, all are
counted. What the device does (gaps, bad values) is told where its values turn bad."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_TOLD = {
    "overfull": (
        "more samples came in the time of a window than rows_max lets it have",
        "set rows_max of the pipeline's window higher, or make the window shorter",
    ),
    "filled": (
        "more values of a window were bad, and stood in for (bad: hold), than filled_max allows",
        "set filled_max of the pipeline's window to what a window may have of them",
    ),
}
"""Reason of the windowing -> cause and hint."""


def teller(log: Any) -> Callable[[Mapping[str, int]], None]:
    """Of the windows discarded so far, by reason."""
    untold = dict(_TOLD)

    def tell(discarded: Mapping[str, int]) -> None:
        for reason in [each for each in untold if discarded.get(each)]:
            cause, hint = untold.pop(reason)
            log.warning("window_discarded", cause=cause, hint=f"{hint}; the next ones are only counted")

    return tell
