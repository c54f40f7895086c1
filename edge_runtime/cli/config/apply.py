"""`edge-runtime config apply`: a whole configuration, or a patch, from a file, in the place of what the layer said before."""

from __future__ import annotations

import argparse
import asyncio

from edge_runtime import config, document
from edge_runtime.cli.config.wanting import want, wanting
from edge_runtime.ports import EdgeError


def run(args: argparse.Namespace) -> int:
    """0: active; 1: it was not taken, or taken back. Raises EdgeError."""
    value = document.read(config.text_of(args.file), str(args.file)).value
    if not isinstance(value, dict):
        raise EdgeError(f"{args.file}: is no mapping (key: value)", "edge-runtime config example")
    return asyncio.run(_apply(args, {"patch" if args.patch else "config": value}))


async def _apply(args: argparse.Namespace, content: dict[str, dict[str, object]]) -> int:
    async with wanting(args) as wanted:
        return await want(wanted, content)
