"""What came of a document (decides): from what the gateways report after it was published."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from edge_runtime.bus.control import LayerState, Reported

FIRST_WORD_S = 15.0
"""A gateway that is there has said something by then."""
MARGIN_S = 30.0
"""To stop and start what changed, beside the trial."""
TRIAL_S = 60.0
"""Of a gateway that does not report its own."""
REFUSED = "refused: "
OVER = ("active", "reverted", "rejected")


@dataclass(frozen=True)
class Followed:
    """A document, as a report tells of it. The same content may have been tried before: then as an earlier revision."""

    digest: str
    layer: str
    revision: int

    def is_in(self, report: Reported) -> bool:
        held = any(each.name == self.layer and each.revision >= self.revision for each in report.layers)
        return report.document == self.digest and held

    def newer_in(self, report: Reported) -> int:
        """The revision of another document that has come after this one; 0: there is none."""
        return max((each.revision for each in report.layers if self._is_before(each)), default=0)

    def _is_before(self, held: LayerState) -> bool:
        return held.name == self.layer and held.revision > self.revision and held.hash != self.digest

    def is_held(self, report: Reported) -> bool:
        """What is refused then is not this one: a report does not say whose it was."""
        return any(
            (each.name, each.hash) == (self.layer, self.digest) and each.revision >= self.revision for each in report.layers
        )


class Following:
    """`document` None: whatever is reported next (a rollback has none). `busy`: with another layer's document, which is judged
    first."""

    def __init__(
        self, document: Followed | None, gateways: Iterable[str], trial_s: float = TRIAL_S, *, busy: bool = False
    ) -> None:
        self.waiting = dict.fromkeys(gateways)
        self.last: dict[str, Reported] = {}
        """The newest report of each about this document."""
        self.beside: dict[str, Reported] = {}
        """The newest report of each that is about something else, and has a cause: a full disk, say."""
        self.outcome: dict[str, str] = {}
        self._document, self._trial_s, self._busy = document, trial_s, busy

    @property
    def taken_everywhere(self) -> bool:
        return not self.waiting and all(state == "active" for state in self.outcome.values())

    @property
    def was_tried(self) -> bool:
        """By anybody, as far as is known: what was refused has moved nobody."""
        return bool(self.waiting) or any(state in ("active", "reverted") for state in self.outcome.values())

    @property
    def patience_s(self) -> float:
        """How long the next word may take. Others wait for their canaries' trial."""
        if not self.last:
            return self._trial_s + MARGIN_S if self._busy else FIRST_WORD_S
        waits = any(report.state == "validating" for report in self.last.values())
        return self._trial_s * (2 if waits else 1) + MARGIN_S

    def take(self, report: Reported) -> str:
        """A new report. Returns a line for people; "": it says nothing about this document, or nothing new."""
        name = report.gateway
        if name not in self.waiting:
            return ""
        refused = report.cause.startswith(REFUSED) and not report.document
        refused = refused and not (self._document is not None and self._document.is_held(report))
        if self._document is not None and (newer := self._document.newer_in(report)):
            return self._superseded(report, newer)
        if not refused and self._document is not None and not self._document.is_in(report):
            if report.cause:
                self.beside[name] = report
            return ""
        before = self.last.get(name)
        if self._document is None and before is None and report.state in OVER:
            return ""  # of before
        self.last[name] = report
        state = "refused" if refused else report.state
        if refused or state in OVER:
            self.outcome[name] = state
            del self.waiting[name]
        if before is not None and (before.state, before.cause) == (report.state, report.cause):
            return ""
        return f"{name}: {state}{_more(report, refused)}"

    def _superseded(self, report: Reported, newer: int) -> str:
        """Nothing is said of this document any more."""
        name, cause = report.gateway, f"revision {newer} came before it was judged"
        hint = "somebody else changes it at the same time: `edge-runtime config history` says who, `config get` what counts"
        self.last[name] = msgspec.structs.replace(report, cause=cause, hint=hint, errors=())
        self.outcome[name] = "superseded"
        del self.waiting[name]
        return f"{name}: superseded: {cause}"


def _more(report: Reported, refused: bool) -> str:
    if refused:
        return f": {report.cause.removeprefix(REFUSED)}"
    if report.state == "trial":
        return f" (restarts {', '.join(report.restarts)})" if report.restarts else " (nothing restarts)"
    if report.state == "active" and report.mode == "normal":
        return ""
    return f": {report.cause}" if report.cause else ""
