"""What counts as healthy, degraded and failed, and what systemd and a liveness probe are told."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from watched import full, source

from edge_runtime.mesh.membership import State
from edge_runtime.outbox.database import Trouble
from edge_runtime.outbox.delivery import DeliveryState
from edge_runtime.outbox.store import StoreState
from edge_runtime.pipeline.steady import PipelineState
from edge_runtime.watching.health import RULES, STATUSES, WRITING_S_MAX, judge, stuck
from edge_runtime.watching.seen import Belonging, Delivered, Failing, LocalBroker, Outbox, SafeMode, Seen, Together, Worked
from edge_runtime.watching.watching import sentence

STILL = Worked(PipelineState(cause="no such model", hint="install it"))
WORKS = Worked(PipelineState())
BUG = {"pipeline a": Failing(1, True, "KeyError at x.py:3")}


def troubled(trouble: Trouble, writing_s: float = 0.0) -> Outbox:
    return Outbox(StoreState(trouble, "the disk says so", "do this"), writing_s=writing_s)


CASES: list[tuple[str, dict[str, Any], str, list[str]]] = [
    ("all is well", {}, "ok", []),
    *((f"disk {each}", {"outbox": troubled(each)}, "failed", ["outbox"]) for each in Trouble),
    ("a write that does not end", {"outbox": Outbox(writing_s=WRITING_S_MAX + 1)}, "failed", ["outbox"]),
    ("a long write", {"outbox": Outbox(writing_s=WRITING_S_MAX)}, "ok", []),
    ("every pipeline", {"pipelines": {"a": STILL, "b": STILL}}, "failed", ["pipelines", "pipeline a", "pipeline b"]),
    ("one pipeline", {"pipelines": {"a": STILL, "b": WORKS}}, "degraded", ["pipeline a"]),
    ("no pipeline at all", {"pipelines": {}}, "ok", []),
    ("a bug in the only pipeline", {"pipelines": {"a": WORKS}, "failing": BUG}, "failed", ["pipelines", "pipeline a"]),
    ("a bug in one of two", {"pipelines": {"a": WORKS, "b": WORKS}, "failing": BUG}, "degraded", ["pipeline a"]),
    ("a bug a while ago", {"failing": {"pipeline wear": Failing(9, False, "x")}}, "ok", []),
    ("a bug elsewhere", {"failing": {"delivery cloud": Failing(1, True, "x")}}, "degraded", ["service delivery cloud"]),
    ("a device that is away", {"sources": {"press": source("waiting", "no answer")}}, "degraded", ["source press"]),
    ("every device away", {"sources": {"a": source("broken"), "b": source("unusable")}}, "degraded", ["source a", "source b"]),
    ("devices that begin and end", {"sources": {"a": source("connecting"), "b": source("ended")}}, "ok", []),
    ("the uplink", {"sinks": {"cloud": Delivered(DeliveryState(True, cause="refused"))}}, "degraded", ["sink cloud"]),
    ("our broker", {"broker": LocalBroker(True, False, "port in use")}, "degraded", ["broker"]),
    ("our broker, not yet started", {"broker": LocalBroker()}, "ok", []),
    ("somebody else's broker", {"broker": LocalBroker(False, False, "connection refused")}, "degraded", ["broker"]),
    ("somebody else's broker is there again", {"broker": LocalBroker(False, True, "connection refused")}, "ok", []),
    ("the site's broker", {"mesh": Together(State("guest"))}, "degraded", ["mesh"]),
    ("our name", {"mesh": Together(State("guest", connected=True), name_taken=True)}, "degraded", ["name"]),
    ("the last good configuration", {"safe": SafeMode(False, "the file is not valid")}, "degraded", ["configuration"]),
    ("no configuration", {"safe": SafeMode(True, "the file cannot be read")}, "failed", ["configuration"]),
    ("no mesh", {"mesh": None}, "ok", []),
    ("revoked", {"belonging": Belonging(8, 2, True, 1.0, "this gateway was revoked")}, "degraded", ["site"]),
    ("an old certificate", {"belonging": Belonging(8, 2, False, 89 * 86_400.0)}, "degraded", ["certificate"]),
    ("a certificate whose day is over", {"belonging": Belonging(8, 2, False, -1.0)}, "degraded", ["certificate"]),
    ("a certificate of which nobody knows", {"belonging": Belonging(8, 2)}, "ok", []),
    ("starting", {"phase": "starting"}, "starting", []),
    ("starting on a full disk", {"phase": "starting", "outbox": troubled(Trouble.FULL)}, "failed", ["outbox"]),
    ("stopping without uplink", {"phase": "stopping", "sinks": {"c": Delivered(DeliveryState(True))}}, "stopping", ["sink c"]),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "status", "whats"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_health(changes: dict[str, Any], status: str, whats: list[str]) -> None:
    found = judge(msgspec.structs.replace(full(), **changes))
    assert (found.status, [problem.what for problem in found.problems]) == (status, whats)
    assert found.code == (200 if status in ("ok", "degraded") else 503)
    assert all(problem.cause or problem.what.startswith("source") for problem in found.problems)


def test_every_status_and_every_rule_has_a_case() -> None:
    assert {status for status, *_ in STATUSES} == {case[2] for case in CASES}
    kinds = {what.split(" ")[0] for *_, whats in CASES for what in whats}
    assert {what.split(" ")[0] for _, what, _ in RULES} == kinds


def test_a_salvage_may_take_its_time() -> None:
    """Who ended it would make it begin again."""
    assert stuck(Outbox(writing_s=WRITING_S_MAX + 1))
    assert stuck(troubled(Trouble.FAILING, WRITING_S_MAX + 1))
    assert not stuck(troubled(Trouble.CORRUPT, WRITING_S_MAX + 1))
    assert not stuck(troubled(Trouble.FULL)), "a state that is waited out"


def test_the_sentence_for_systemctl() -> None:
    seen = full()
    assert sentence(judge(seen), seen) == "ok: 1 devices, 1 sinks, 2 records wait"
    seen = Seen(site="s", gateway="g", outbox=troubled(Trouble.FULL))
    assert sentence(judge(seen), seen) == "failed: outbox: full: the disk says so"
