"""What the book tells of how a gateway came to its configuration (pure): for people, newest first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.bus import control as messages
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control.layers import FILE
from edge_runtime.control.pages import Configuration, LayerDocument
from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp
from edge_runtime.trust import envelope


def told(configurations: Sequence[Configuration], layers: Mapping[str, LayerDocument]) -> list[dict[str, Any]]:
    """The configurations, and before them the documents that were refused and never became one (`number` None). Each with its
    state, why it is in it, who asked for it and what they noted, and when it came."""
    refused = [
        {"number": None, "state": each.state, "why": each.cause, "hash": each.hash, **_author(each), **_when(each.stamp)}
        for each in layers.values()
        if each.state == "rejected"
    ]
    return refused + [
        {
            "number": one.number, "state": one.state, "why": one.why, "hash": one.hash,
            "by": one.terms.by or FILE, "note": one.terms.note, **_when(one.stamp),
        }
        for one in configurations
    ]  # fmt: skip


class _Signed(msgspec.Struct):
    by: str = ""


def _author(document: LayerDocument) -> dict[str, str]:
    if document.layer == FILE:
        return {"by": FILE, "note": ""}
    try:
        said = messages.desired(envelope.unwrap(document.payload), "")
    except (BadMessage, EdgeError):
        return {"by": "", "note": ""}
    by = msgspec.json.decode(document.payload, type=_Signed).by
    return {"by": f"person:{by}" if by else said.issuer, "note": said.note}


def _when(stamp: Stamp) -> dict[str, Any]:
    return {"wall_ns": stamp.wall_ns, "synced": stamp.synced}
