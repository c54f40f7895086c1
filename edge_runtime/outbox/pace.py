"""Whether the disk is so quick that rows may be written on the event loop (decides).

To ask the writer's thread takes 60 to 150 us each way where a core has to be woken for it: on a disk that syncs in 200 us that is
half of the transaction. On any other it is nothing, and there the loop must not wait for the disk.
"""

from __future__ import annotations

QUICK_NS = 1_000_000
"""Of a small transaction, in the mean of the last dozen."""
QUICK_BYTES_MAX = 2**16
"""Of its rows: a larger one takes longer on any disk."""
STALL_NS = 50_000_000
"""A disk that needed so long for one may do so again."""
PROOF, PROOF_AFTER_STALL = 100, 1_000
"""Transactions without a stall, before the loop waits for one."""
COUNTED_NS_MAX = 2 * QUICK_NS
"""Of a single one: a checkpoint now and then (5 ms, in the thread) says nothing of the rest."""
SHARE = 16


class Pace:
    """Of one file."""

    def __init__(self) -> None:
        self._mean_ns = 0.0
        self._proof = PROOF

    def note(self, took_ns: int, *, added: bool) -> None:
        """What a small transaction took, wherever it ran. One that failed, or had no rows to add (a redelivery), has perhaps not
        synced: it may show a stall, and never that the disk is quick."""
        if took_ns >= STALL_NS:
            self._proof = PROOF_AFTER_STALL
        elif self._proof and added:
            self._proof -= 1
        if added:
            self._mean_ns += (min(took_ns, COUNTED_NS_MAX) - self._mean_ns) / SHARE

    @property
    def quick(self) -> bool:
        return not self._proof and self._mean_ns < QUICK_NS
