"""What a log may say of an exception (pure): where it happened and its kind, never its words.

A log goes further than the points may: to a screen, a collector, a ticket. The words of an exception that is not ours can hold
a point's value ("could not convert string to float: '21.5'"), and so can the local variables that some renderers add. The words
of an EdgeError are ours, and are written without values.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from itertools import islice
from pathlib import PurePath

from edge_runtime.ports import EdgeError

LINES_MAX = 100
"""Of one trace; what was raised last stands first."""


def told(error: BaseException) -> str:
    """`ValueError at wind_station.py:54`; an EdgeError in its own words."""
    if isinstance(error, EdgeError):
        return str(error)
    frames = _frames(error)
    return f"{type(error).__name__} at {frames[-1].partition(' ')[0]}" if frames else type(error).__name__


def trace(error: BaseException) -> str:
    """The stack, innermost frame last, and what led to it: kinds and places."""
    return "\n".join(islice(("Traceback, without words:", *_lines(error, ())), LINES_MAX))


def _lines(error: BaseException, above: tuple[BaseException, ...]) -> Iterator[str]:
    yield f"{type(error).__name__}: {error}" if isinstance(error, EdgeError) else type(error).__name__
    for frame in _frames(error):
        yield f"  {frame}"
    members = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    reason = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    for each in (*members, *([reason] if reason else [])):
        if each not in above:
            before, *rest = _lines(each, (*above, error))
            yield f"because of {before}"
            yield from rest


def _frames(error: BaseException) -> list[str]:
    """`file.py:54 function`: without the source, which may hold a constant that is a secret elsewhere."""
    found = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), lookup_lines=False)
    return [f"{PurePath(frame.filename).name}:{frame.lineno} {frame.name}" for frame in found]
