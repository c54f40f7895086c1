"""Whose word counts without a signature: `control.require_signature`, for documents and for commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trusted import Site

from edge_runtime.config import Config
from edge_runtime.control.admitted import MAY, Context, NotAdmitted, Said, opened, wants_signature
from edge_runtime.trust.identity import Identity

PLAIN = b'{"id": "1"}'
CONTEXTS: tuple[Context, ...] = ("desired", "command")


def settings(wanted: Any) -> Config:
    return Config.model_validate({"site": "plant-1", "gateway": "press", "control": {"require_signature": wanted}})


@pytest.fixture
def press(tmp_path: Path) -> Identity:
    return Site(tmp_path).member("press")


@pytest.mark.parametrize(
    ("wanted", "unsigned"),
    [
        (True, ()),
        (False, CONTEXTS),
        (["engineer"], ("command",)),
        (["engineer", "operator"], ()),
        ([], CONTEXTS),
    ],
)
def test_what_counts_unsigned(press: Identity, wanted: Any, unsigned: tuple[Context, ...]) -> None:
    for context in CONTEXTS:
        assert wants_signature(settings(wanted), press, context) is (context not in unsigned)
        if context in unsigned:
            assert opened(PLAIN, context, settings(wanted), press, None) == Said(PLAIN, "", False)
        else:
            with pytest.raises(NotAdmitted, match="is not signed") as caught:
                opened(PLAIN, context, settings(wanted), press, None)
            assert caught.value.reason == "unsigned"


@pytest.mark.parametrize("wanted", [True, False, ["engineer"]])
def test_what_is_signed_is_judged_by_the_role_all_the_same(tmp_path: Path, wanted: Any) -> None:
    site = Site(tmp_path)
    people = {role: site.member(role, role) for role in ("viewer", "operator", "engineer")}  # type: ignore[arg-type]
    press = site.member("press")
    for context in CONTEXTS:
        for role, who in people.items():
            payload = who.sign(PLAIN, context)
            if role in MAY[context]:
                assert opened(payload, context, settings(wanted), press, None) == Said(PLAIN, f"person:{role}", True)
            else:
                with pytest.raises(NotAdmitted) as caught:
                    opened(payload, context, settings(wanted), press, None)
                assert caught.value.reason == "role"


def test_without_a_site_nobody_can_sign() -> None:
    for context in CONTEXTS:
        assert not wants_signature(settings(True), None, context)


def test_who_has_not_signed_never_looks_like_somebody_who_has() -> None:
    assert Said(PLAIN, "person:olaf", True).actor("alice") == "person:olaf"
    for claim in (
        "person:olaf",
        " person:olaf",
        "\u200bperson:olaf",
        "Person:olaf",
        "person\uff1aolaf",
        "x\nperson:olaf",
        "p\u0435rson:olaf",
    ):
        assert Said(PLAIN, "", False).actor(claim) == f"{claim} (not signed)"
    assert Said(PLAIN, "", False).actor("Olaf (shift 2)") == "Olaf (shift 2) (not signed)"
    assert Said(PLAIN, "", False).actor("o.laf@hall 2") == "o.laf@hall 2"
    assert Said(PLAIN, "", False).actor("olaf") == "olaf"
    assert Said(PLAIN, "", False).actor("") == "somebody on the broker"
