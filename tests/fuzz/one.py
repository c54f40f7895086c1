"""One parser under atheris: python one.py PARSER [libFuzzer's options]"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "adapters")]

with atheris.instrument_imports(include=["edge_runtime", "yaml"]):
    from fuzzing import mutated, parsers

MEANT = 0.5
"""Part of the inputs that are spoiled as what they mean; the others as bytes, by libFuzzer."""


def main() -> None:
    parser = parsers()[sys.argv.pop(1)]

    def one(payload: bytes) -> None:
        parser(payload)

    def spoil(payload: bytes, size_max: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < MEANT:
            return mutated(dice, payload)[:size_max]
        return bytes(atheris.Mutate(payload, size_max))

    atheris.Setup(sys.argv, one, custom_mutator=spoil)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
