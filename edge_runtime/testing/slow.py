"""A gateway on a slow board, simulated: each window takes so long, on one worker, whatever machine this is.

python -m edge_runtime.testing.slow gateway.yaml --infer-ms 80
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime import config
from edge_runtime.cli.run import locked, logger, real_world, serve
from edge_runtime.inference.model import Model, open_model
from edge_runtime.lifetime import Lifetime
from edge_runtime.records import Inference
from edge_runtime.sources.registry import Registry


class SlowModel(Model):
    """Another model, slowed down. Its windows run one after the other."""

    def __init__(self, inner: Model, infer_s: float) -> None:
        self.__dict__.update(inner.__dict__)
        self._inner, self._infer_s, self._turn = inner, infer_s, asyncio.Lock()
        self.service_ns = inner.service_ns + round(infer_s * 1e9)
        self.inline = False

    async def infer(self, values: NDArray[np.float64]) -> Inference:
        async with self._turn:
            await asyncio.sleep(self._infer_s)
            return await self._inner.infer(values)

    def close(self) -> None:
        self._inner.close()


def slowed(infer_s: float) -> Callable[..., Awaitable[Model]]:
    """For World.open_model."""

    async def open_slowly(*args: Any, **more: Any) -> Model:
        return SlowModel(await open_model(*args, **more), infer_s)

    return open_slowly


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--infer-ms", type=float, required=True)
    args = parser.parse_args()
    registry = Registry()
    loaded = config.load_file(args.file, registry)
    world = real_world(registry, logger(loaded.config.log))
    data_dir = loaded.folder / loaded.config.data_dir
    with locked(data_dir):
        world = dataclasses.replace(world, open_model=slowed(args.infer_ms / 1e3))
        text = config.text_of(args.file)
        asyncio.run(serve(lambda: Lifetime(text, str(args.file), loaded.folder, data_dir, world), world.log))


if __name__ == "__main__":
    main()
