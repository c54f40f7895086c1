"""What the outbox's file has to tell after a transaction: to the log, and counted for whoever watches."""

from __future__ import annotations

from collections import Counter
from typing import Any

from edge_runtime import trail
from edge_runtime.outbox.database import HINTS, Trouble
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.records import Lane


class News:
    """Of one file, in this run."""

    def __init__(self, file: OutboxFile, log: Any) -> None:
        self._file, self._log = file, log
        self._over_cap = False
        self.lost: Counter[Lane] = Counter()
        """Records that no sink will get, by kind."""
        self.samples_lost = self.replaced = 0
        """Rows of the journal that a corrupt file has cost; corrupt files that were set aside."""

    def tell_written(self) -> None:
        """The way of each record, where somebody wants to know it; and whether the cap is kept."""
        written, self._file.written = self._file.written, []
        if trail.on(self._log):
            epoch = self._file.books.epochs[-1].name
            for lane, first, drafts in written:
                for seq, draft in enumerate(drafts, first):
                    self._log.debug("committed", **trail.name(lane, draft), source=draft.source, lane=lane, epoch=epoch, seq=seq)
        over_bytes = self._file.over_bytes
        if bool(over_bytes) != self._over_cap:
            self._over_cap = bool(over_bytes)
            if over_bytes:
                hint = "samples that were accepted under a larger outbox.size_bytes_max stay until their windows are made"
                self._log.warning("outbox_over_cap", over_bytes=over_bytes, size_bytes_max=self._file.size_bytes_max, hint=hint)
            else:
                self._log.info("outbox_within_cap", size_bytes_max=self._file.size_bytes_max)

    def tell_losses(self) -> None:
        file = self._file
        if file.aside:
            self._log.error("outbox_replaced", cause="the file was corrupt", aside=str(file.aside), hint=HINTS[Trouble.CORRUPT])
        self.replaced += file.aside is not None
        self.samples_lost += file.samples_lost
        for gap in file.lost:
            self.lost[gap.lane.kind] += gap.count
            self._log.warning("records_lost", lane=gap.lane, first=gap.first, last=gap.last, count=gap.count, reason=gap.reason)
        if file.samples_lost:
            self._log.warning("samples_lost", rows=file.samples_lost, reason="the journal's pages could not be read")
        file.lost, file.samples_lost, file.aside = [], 0, None
