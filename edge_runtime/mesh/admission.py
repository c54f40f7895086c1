"""Which tasks of others are taken, which of those that wait goes next, and which answers are kept for a repeated task (pure).

    queue = Queue(waiting_max=64, slots=1)
    refusal = queue.admit(waiting, now_ns, running_ns)      # None: it waits now
    waiting = queue.take()                                  # the next one, or None

Priority first, then the earliest deadline. Two rules keep one peer that floods us from hurting another: no sender holds more
places than are still free, so that there is always room for another one, and every FAIR_EVERY-th turn belongs to the sender that
has waited longest since it was served, whatever the others' priority.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from edge_runtime.bus.frames import Task
from edge_runtime.mesh.routing import ms

WAITING_BYTES_MAX = 32 * 2**20
"""Of tensors that wait."""
FAIR_EVERY = 4
RETRY_NS_MIN = 10_000_000
"""Sooner nobody is told to ask again."""

KEPT_MAX = 4_096
KEPT_BYTES_MAX = 4 * 2**20
KEPT_NS_MAX = 60_000_000_000
"""Answers for repeated tasks: so many, of so many bytes, for so long."""
KEPT_SENDER_MAX = KEPT_MAX // 4
KEPT_ENTRY_BYTES = 400
"""What an answer costs beside its own bytes."""

SERVICE_WEIGHT = 0.25
"""Of the newest measurement, in the time that a model takes."""

TaskKey = tuple[str, str, str]
"""(sender, its instance, task id): unique for ever."""


class Outcome(StrEnum):
    """What became of a frame that came in on our task topic. A counter each."""

    DONE = "done"
    FAILED = "failed"
    JOINED = "joined"
    """The same task waits or runs already."""
    REPEATED = "repeated"
    """Answered from what is kept."""
    CANCELLED = "cancelled"
    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    EXPIRED = "expired"
    """Its time was over when it came, or when its turn came."""
    PRIVACY = "privacy"
    """It must never have been sent."""
    MODEL = "unknown model"
    CLOSED = "no tasks taken"
    FULL = "full"
    SHARE = "share"
    """This sender holds as many places as are left for others."""
    LATE = "late"
    """It would not be done in time."""
    UNSENT = "unsent"
    """An answer that could not be sent."""
    OUTSIDE = "outside"
    """Another gateway has our name: it was for that one."""


class Refusal(msgspec.Struct, frozen=True):
    """Why not, and when it is worth asking again (0: never)."""

    why: Outcome
    cause: str
    hint: str = ""
    retry_ns: int = 0


@dataclass(slots=True, eq=False)
class Waiting:
    """A task that was taken. Instants are of this machine's monotonic clock."""

    key: TaskKey
    task: Task
    arrived_ns: int
    deadline_ns: int
    service_ns: int
    """Expected; 0: not yet known."""
    order: tuple[int, int, int] = (0, 0, 0)
    unwanted: bool = False
    """Cancelled while it ran: nobody is told the answer."""
    sender: str = field(init=False)
    size_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        self.sender, self.size_bytes = self.key[0], len(self.task.tensor.data)


@dataclass(slots=True, eq=False)
class _Line:
    """What waits of one sender, in order."""

    since: int
    """The turn from which it waits without being served."""
    tasks: list[Waiting]
    size_bytes: int = 0


class Queue:
    """Tasks that wait. `waiting_max` of them, of WAITING_BYTES_MAX; `slots` are computed at once."""

    def __init__(self, waiting_max: int, slots: int = 1) -> None:
        self.waiting_max = waiting_max
        self.count = self.size_bytes = self.service_ns = 0
        self._slots = slots
        self._lines: dict[str, _Line] = {}
        """By sender; one without tasks is not in it."""
        self._turn = 0
        self._serials = itertools.count()

    def admit(self, waiting: Waiting, now_ns: int, running_ns: int) -> Refusal | None:
        """None: it was taken. `running_ns`: what is left of those that are being computed."""
        waiting.order = (-waiting.task.priority, waiting.deadline_ns, next(self._serials))
        refusal = self._no_room(waiting) or self._no_time(waiting, waiting.deadline_ns - now_ns, running_ns)
        if refusal is None:
            self._put(waiting)
        return refusal

    def take(self) -> Waiting | None:
        """The next one, which then waits no more."""
        if not self._lines:
            return None
        self._turn += 1
        fair = self._turn % FAIR_EVERY == 0
        line = min(self._lines.values(), key=_longest if fair else _first)
        line.since = self._turn
        return self._remove(line, 0)

    def drop(self, waiting: Waiting) -> bool:
        """False: it does not wait any more."""
        line = self._lines.get(waiting.sender)
        at = bisect.bisect_left(line.tasks, waiting.order, key=_order) if line else 0
        if line is None or at == len(line.tasks) or line.tasks[at] is not waiting:
            return False
        self._remove(line, at)
        return True

    def overdue(self, now_ns: int) -> list[Waiting]:
        """Takes out those whose time is over."""
        late = [each for each in self if each.deadline_ns <= now_ns]
        for each in late:
            self.drop(each)
        return late

    def __iter__(self) -> Iterator[Waiting]:
        return (each for line in self._lines.values() for each in line.tasks)

    def _no_room(self, waiting: Waiting) -> Refusal | None:
        size = waiting.size_bytes
        retry_ns = max(RETRY_NS_MIN, self.service_ns // max(1, self.count))
        if self.count >= self.waiting_max or self.size_bytes + size > WAITING_BYTES_MAX:
            return Refusal(Outcome.FULL, f"{self.count} tasks wait here already", "another gateway", retry_ns)
        line = self._lines.get(waiting.sender)
        free, free_bytes = self.waiting_max - self.count, WAITING_BYTES_MAX - self.size_bytes
        if line and (len(line.tasks) >= free or line.size_bytes + size > free_bytes):
            cause = f"{len(line.tasks)} tasks of {waiting.sender} wait here already"
            return Refusal(Outcome.SHARE, cause, "places are kept for others: another gateway", retry_ns)
        return None

    def _no_time(self, waiting: Waiting, remaining_ns: int, running_ns: int) -> Refusal | None:
        finish_ns = self._wait_ns(waiting, running_ns) + waiting.service_ns
        if finish_ns <= remaining_ns:
            return None
        cause = f"it would be done in {ms(finish_ns)}, wanted in {ms(remaining_ns)}"
        if waiting.service_ns > remaining_ns:
            return Refusal(Outcome.LATE, cause, "a faster gateway")
        return Refusal(Outcome.LATE, cause, "another gateway", max(RETRY_NS_MIN, finish_ns - remaining_ns))

    def _wait_ns(self, waiting: Waiting, running_ns: int) -> int:
        """Until its turn comes: those that are ahead of it, but not more of them than the fair turns let pass."""
        if not self.count:
            return running_ns // self._slots
        ahead = [each for each in self if each.order < waiting.order]
        own = sum(each.sender == waiting.sender for each in ahead)
        turns = FAIR_EVERY * (len(self._lines) + 1) * (own + 1)
        total_ns = sum(each.service_ns for each in ahead)
        if len(ahead) > turns:
            total_ns = total_ns * turns // len(ahead)
        return (running_ns + total_ns) // self._slots

    def _put(self, waiting: Waiting) -> None:
        line = self._lines.setdefault(waiting.sender, _Line(self._turn, []))
        bisect.insort(line.tasks, waiting, key=_order)
        line.size_bytes += waiting.size_bytes
        self.count += 1
        self.size_bytes += waiting.size_bytes
        self.service_ns += waiting.service_ns

    def _remove(self, line: _Line, at: int) -> Waiting:
        waiting = line.tasks.pop(at)
        line.size_bytes -= waiting.size_bytes
        if not line.tasks:
            del self._lines[waiting.sender]
        self.count -= 1
        self.size_bytes -= waiting.size_bytes
        self.service_ns -= waiting.service_ns
        return waiting


class Kept:
    """Answers, as they were sent, for tasks that come again. Bounded by count, bytes and age; who sends most loses its oldest."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._kept: dict[TaskKey, tuple[bytes, int]] = {}
        """The answer and when it was put there; oldest first."""
        self._of: dict[str, dict[TaskKey, None]] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: TaskKey, now_ns: int) -> bytes | None:
        found = self._kept.get(key)
        return found[0] if found is not None and now_ns - found[1] < KEPT_NS_MAX else None

    def put(self, key: TaskKey, answer: bytes, now_ns: int) -> None:
        if key in self._kept:
            self._forget(key)
        self._kept[key] = (answer, now_ns)
        mine = self._of.setdefault(key[0], {})
        mine[key] = None
        self.size_bytes += len(answer) + KEPT_ENTRY_BYTES
        if len(mine) > KEPT_SENDER_MAX:
            self._forget(next(iter(mine)))
        while self._kept:
            oldest, (_, at_ns) = next(iter(self._kept.items()))
            if len(self._kept) <= KEPT_MAX and self.size_bytes <= KEPT_BYTES_MAX and now_ns - at_ns < KEPT_NS_MAX:
                return
            self._forget(oldest)

    def _forget(self, key: TaskKey) -> None:
        answer, _ = self._kept.pop(key)
        self.size_bytes -= len(answer) + KEPT_ENTRY_BYTES
        mine = self._of[key[0]]
        del mine[key]
        if not mine:
            del self._of[key[0]]


def learned(known_ns: int, measured_ns: int) -> int:
    """The time of a window, after another one was measured. 0: not yet known."""
    return measured_ns if known_ns == 0 else round(known_ns + SERVICE_WEIGHT * (measured_ns - known_ns))


def left_ns(started_ns: int, service_ns: int, now_ns: int) -> int:
    """What is left of a task that is being computed. One that takes longer than expected will, for all we know, take as long
    again as it has been late: a stuck executor is not taken for one that is about to be free."""
    return abs(started_ns + service_ns - now_ns)


def _order(waiting: Waiting) -> tuple[int, int, int]:
    return waiting.order


def _first(line: _Line) -> tuple[int, int, int]:
    return line.tasks[0].order


def _longest(line: _Line) -> tuple[int, int, int]:
    """Since equal turns the more urgent one."""
    return (line.since, *line.tasks[0].order[:2])
