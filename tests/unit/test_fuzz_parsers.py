"""Whatever comes, every parser takes it or says what is wrong with it (EdgeError), and nothing else."""

from __future__ import annotations

import random

import pytest
from fuzzing import mutated, parsers
from hypothesis import given, settings
from hypothesis import strategies as st

NAMES = list(parsers())


@pytest.mark.parametrize("name", NAMES)
def test_the_messages_to_begin_with_are_taken(name: str) -> None:
    """Else what is spoiled was nothing before."""
    parser = parsers()[name]
    assert any(parser(seed) for seed in parser.seeds)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=150)
@given(seed=st.integers(0, 2**32), which=st.integers(0, 9))
def test_a_spoiled_message_is_taken_or_refused(name: str, seed: int, which: int) -> None:
    parser = parsers()[name]
    parser(mutated(random.Random(seed), parser.seeds[which % len(parser.seeds)]))


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60)
@given(payload=st.binary(max_size=300) | st.text(max_size=300).map(lambda each: each.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_taken_or_refused(name: str, payload: bytes) -> None:
    parsers()[name](payload)
