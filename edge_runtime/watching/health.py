"""Whether a gateway does what it is for (pure): the answer of /health, and what systemd is told.

An offline-first gateway whose uplink, broker or device is away does its work: it is degraded, not failed. Failed is what no
waiting of others would mend: its disk takes no records, or nothing computes. Who restarts what does not answer /health with 200
would restart a gateway with a full disk for ever; /live is for that, and says no only where a restart may help.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from edge_runtime.outbox.database import Trouble
from edge_runtime.watching.seen import Belonging, Outbox, Seen

WRITING_S_MAX = 30.0
"""The disk has so long for one transaction. Salvaging a corrupt file may take longer: who killed it would make it begin again."""

CERTIFICATE_DAYS_MIN = 90
"""It goes on to work after its day; but somebody has not renewed it for nine months."""

Status = Literal["ok", "degraded", "failed", "starting", "stopping"]

STATUSES: tuple[tuple[Status, int, str], ...] = (
    ("ok", 200, "everything works"),
    ("degraded", 200, "a part does not work, or somebody else is away; what is accepted is kept and goes on when it is back"),
    ("failed", 503, "what the gateway is for does not work"),
    ("starting", 503, "it does not read its devices yet"),
    ("stopping", 503, "it was told to stop, and brings to the disk what it has"),
)

RULES: tuple[tuple[Status, str, str], ...] = (
    ("failed", "outbox", "the disk is full, read-only, locked, failing or corrupt: records wait, sources are not acknowledged"),
    ("failed", "outbox", f"the disk has not answered for {WRITING_S_MAX:g} s"),
    ("failed", "pipelines", "every pipeline stands still (a model that cannot be loaded or run)"),
    ("failed", "configuration", "safe mode: nothing runs but the broker and what takes a configuration"),
    ("degraded", "configuration", "safe mode: what was configured does not run, but the last good configuration"),
    ("degraded", "pipeline NAME", "it stands still, others work"),
    ("degraded", "source NAME", "the device does not answer, or its settings cannot work"),
    ("degraded", "sink NAME", "the far end is away: records wait on the disk"),
    ("degraded", "broker", "without a mesh: the broker that this gateway hosts does not run, or the external one is away"),
    ("degraded", "mesh", "no connection to the site's broker: windows are computed here"),
    ("degraded", "name", "another gateway of the site has our name, and keeps it"),
    ("degraded", "site", "this gateway was revoked, or brokers of the site say so; or its disk does not take the newest roster"),
    ("degraded", "certificate", f"by a clock that is right, less than {CERTIFICATE_DAYS_MIN} days are left of it"),
    ("degraded", "service NAME", "a bug of ours ended a service less than a minute ago; it was started again"),
)
"""What is which: docs/metrics.md is generated from it."""


class Problem(msgspec.Struct, frozen=True):
    """`hint`: what to do about it."""

    what: str
    cause: str
    hint: str = ""


class Health(msgspec.Struct, frozen=True):
    """`problems`: what made it failed first."""

    status: Status
    problems: tuple[Problem, ...] = ()

    @property
    def code(self) -> int:
        """Of HTTP."""
        return next(code for status, code, _ in STATUSES if status == self.status)


def judge(seen: Seen) -> Health:
    """Every problem there is, and the worst of them as the status."""
    failed, degraded = list(_fatal(seen)), list(_minor(seen))
    if failed:
        return Health("failed", (*failed, *degraded))
    if seen.phase != "running":
        return Health(seen.phase, tuple(degraded))
    return Health("degraded" if degraded else "ok", tuple(degraded))


def stuck(outbox: Outbox) -> bool:
    """The disk does not come back from what it was told: no state that is waited out. A restart may help."""
    return outbox.writing_s > WRITING_S_MAX and outbox.state.trouble is not Trouble.CORRUPT


def standing_still(seen: Seen) -> dict[str, Problem]:
    """Pipelines, by name, that do not take samples."""
    found = {}
    for name, each in seen.pipelines.items():
        if each.state.cause:
            found[name] = Problem(f"pipeline {name}", each.state.cause, each.state.hint)
        elif (failing := seen.failing.get(f"pipeline {name}")) and failing.recent:
            found[name] = Problem(f"pipeline {name}", failing.cause, BUG)
    return found


MEND = "`edge-runtime config history` tells; then `config set` or a file that is right"
BUG = "a bug of ours: it is started again by itself; report it with the log"


def _fatal(seen: Seen) -> Iterator[Problem]:
    outbox = seen.outbox
    if stuck(outbox):
        yield Problem("outbox", f"the disk has not answered for {outbox.writing_s:.0f} s", "check the disk (dmesg, smartctl)")
    elif outbox.state.trouble:
        yield Problem("outbox", f"{outbox.state.trouble}: {outbox.state.cause}", outbox.state.hint)
    if seen.safe and seen.safe.bare:
        yield Problem("configuration", f"safe mode, nothing runs: {seen.safe.cause}", MEND)
    if seen.pipelines and len(standing_still(seen)) == len(seen.pipelines):
        yield Problem("pipelines", "every pipeline stands still", "see the causes of each")


def _minor(seen: Seen) -> Iterator[Problem]:
    still = standing_still(seen)
    if seen.safe and not seen.safe.bare:
        yield Problem("configuration", f"safe mode, the last good one runs: {seen.safe.cause}", MEND)
    yield from still.values()
    for name, source in seen.sources.items():
        if source.phase in ("waiting", "broken", "unusable"):
            yield Problem(f"source {name}", source.cause, source.hint)
    for name, sink in seen.sinks.items():
        if not sink.state.connected:
            yield Problem(f"sink {name}", sink.state.cause, sink.state.hint)
    if seen.broker is not None and not seen.broker.connected and seen.broker.cause:
        yield Problem("broker", seen.broker.cause, seen.broker.hint)
    if seen.mesh is not None:
        mesh = seen.mesh.state
        if not mesh.connected:
            yield Problem("mesh", mesh.cause or "no connection to the site's broker", mesh.hint or "see `edge-runtime mesh`")
        if seen.mesh.name_taken:
            yield Problem("name", "another gateway has our name", "give each gateway of the site a name of its own")
    if seen.belonging is not None:
        yield from _at_its_site(seen.belonging)
    for name, failing in seen.failing.items():
        if failing.recent and name.removeprefix("pipeline ") not in still:
            yield Problem(f"service {name}", failing.cause, BUG)


def _at_its_site(belonging: Belonging) -> Iterator[Problem]:
    if belonging.cause:
        yield Problem("site", belonging.cause, belonging.hint)
    if belonging.remaining_s is not None and not belonging.revoked:
        days = int(belonging.remaining_s // 86_400)
        if days < CERTIFICATE_DAYS_MIN:
            said = f"is to be renewed within {days} days" if days >= 0 else f"should have been renewed {-days} days ago"
            yield Problem("certificate", f"our certificate {said}", "edge-runtime site renew --broker URL")
