"""Waiting for what has no event to wait for: the state of a store, another process, a file. How long it takes is the machine's
affair, so the limit is there only to end a test that would never end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

LIMIT_S = 30.0
POLL_S = 0.01


async def until(holds: Callable[[], object], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
