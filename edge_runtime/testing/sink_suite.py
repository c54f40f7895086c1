"""The rules of ports.Sink as tests: they run over every sink that has receipts, with its real far end.

    class TestMySink(SinkSuite):
        @pytest.fixture
        def far_end(self, tmp_path):
            with my_server(tmp_path) as server:
                yield server                       # something with the methods of FarEnd

What `far_end` gives is made anew for every test.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

from edge_runtime.ports import EdgeError, Receipt, Refused, Sink, SinkError
from edge_runtime.records import Lane, Record, Stamp

FAR_TOO_LONG_S = 20.0
"""A sink that has not answered by now hangs: it stands for "never", it is no promise of speed."""

Kept = tuple[str, Lane, int, bytes]
"""epoch, lane, seq, body"""


class FarEnd(Protocol):
    """The other side of the sink under test."""

    def sink(self) -> Sink:
        """A new one, with a timeout of a second or less, for the gateway of this far end."""
        ...

    def stop(self) -> None:
        """It is gone at once: kill -9 for a process."""
        ...

    def start(self) -> None:
        """It is back, with what it had on disk."""
        ...

    def kept(self) -> list[Kept]:
        """What it has on disk: asked while it runs, and while it is stopped."""
        ...


def records(numbers: Iterable[int], *, epoch: str = "e1", lane: Lane = Lane.RESULT, unique: str = "u{}") -> list[Record]:
    stamp = Stamp("boot", 1, 2, True)
    return [Record(lane, epoch, n, "wear", stamp, b'{"n":%d}' % n, unique.format(n)) for n in numbers]


class SinkSuite:
    """Subclass it and give the fixture `far_end`."""

    def run(self, main: Callable[[], Awaitable[None]]) -> None:
        async def limited() -> None:
            async with asyncio.timeout(3 * FAR_TOO_LONG_S):
                await main()

        asyncio.run(limited())

    def test_a_receipt_covers_what_is_on_disk(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            receipt = await sink.send(records(range(1, 101)))
            far_end.stop()  # kill -9: what is not on disk now never will be
            assert covered(receipt) == set(range(1, 101))
            assert seqs(far_end.kept()) == list(range(1, 101))
            await sink.close()

        self.run(main)

    def test_sent_again_is_kept_once(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            await sink.send(records(range(1, 11)))
            receipt = await sink.send(records(range(1, 11)))
            assert covered(receipt) >= set(range(1, 11))
            receipt = await sink.send(records(range(6, 16)))
            assert covered(receipt) >= set(range(6, 16))
            assert seqs(far_end.kept()) == list(range(1, 16))
            await sink.close()

        self.run(main)

    def test_live_overtakes_backlog(self, far_end: FarEnd) -> None:
        """A receiver that kept only the highest number would take the backlog for old news."""

        async def main() -> None:
            sink = await opened(far_end)
            for part in (range(101, 111), range(1, 41), range(111, 121), range(61, 101), range(41, 61)):
                assert covered(await sink.send(records(part))) >= set(part)
            assert sorted(seqs(far_end.kept())) == list(range(1, 121))
            assert (await sink.open(["e1"])).ranges == {("e1", Lane.RESULT): ((1, 120),)}
            await sink.close()

        self.run(main)

    def test_hello_tells_the_ranges_of_the_epochs_that_were_asked_about(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            assert (await sink.open(["e1"])).ranges == {}
            await sink.send(records([1, 2, 3, 7, 9, 10]))
            await sink.send(records([5], lane=Lane.EVENT))
            await sink.send(records([1], epoch="e2", unique=""))
            await sink.close()
            other = far_end.sink()
            expected = {("e1", Lane.RESULT): ((1, 3), (7, 7), (9, 10)), ("e1", Lane.EVENT): ((5, 5),)}
            assert (await other.open(["e1", "e3"])).ranges == expected
            assert (await other.open(["e2"])).ranges == {("e2", Lane.RESULT): ((1, 1),)}
            assert (await other.open([])).ranges == {}
            await other.close()

        self.run(main)

    def test_a_number_is_an_id_only_with_its_epoch_and_lane(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            streams = list(itertools.product(("e1", "e2"), Lane))
            for epoch, lane in streams:
                await sink.send(records([1, 2], epoch=epoch, lane=lane, unique=""))
            assert [each[:3] for each in far_end.kept()] == [(epoch, lane, n) for epoch, lane in streams for n in (1, 2)]
            await sink.close()

        self.run(main)

    def test_the_same_content_under_another_id_is_kept_once(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            await sink.send(records([1, 2, 3]))
            receipt = await sink.send(records([1, 2, 3, 4], epoch="e2"))
            assert receipt.ranges == {("e2", Lane.RESULT): ((1, 4),)}, "it must not be sent for ever"
            assert [each[:3] for each in far_end.kept()] == [("e1", Lane.RESULT, n) for n in (1, 2, 3)] + [("e2", Lane.RESULT, 4)]
            await sink.close()

        self.run(main)

    def test_bodies_arrive_byte_for_byte(self, far_end: FarEnd) -> None:
        bodies = [
            '{"ü":"\\u0000€𝄞\\n"}'.encode(),
            b"18446744073709551617",
            b"1.0",
            b"null",
            b'{"a": [1,  2]}',
            b'"' + b"x" * 100_000 + b'"',
        ]

        async def main() -> None:
            sink = await opened(far_end)
            stamp = Stamp("boot", 2**63 - 1, -5, False)
            await sink.send([Record(Lane.SAMPLE, "e1", n, "a/b +#", stamp, body) for n, body in enumerate(bodies, 1)])
            assert [each[3] for each in far_end.kept()] == bodies
            await sink.close()

        self.run(main)

    def test_a_large_batch_arrives(self, far_end: FarEnd) -> None:
        """Larger than a message may be: it goes in several."""

        async def main() -> None:
            sink = await opened(far_end)
            stamp = Stamp("boot", 1, 2, True)
            body = b'"' + b"x" * 100_000 + b'"'
            receipt = await sink.send([Record(Lane.SAMPLE, "e1", n, "cam", stamp, body) for n in range(1, 201)])
            assert receipt.ranges == {("e1", Lane.SAMPLE): ((1, 200),)}
            assert seqs(far_end.kept()) == list(range(1, 201))
            await sink.close()

        self.run(main)

    def test_a_batch_that_is_never_taken_is_told_apart(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            error = await failure(sink.send(records([-1])))
            assert isinstance(error, Refused)
            assert error.hint
            assert covered(await sink.send(records([1]))) == {1}, "the next one goes on the same connection"
            assert seqs(far_end.kept()) == [1]
            await sink.close()

        self.run(main)

    def test_an_absent_far_end_is_an_error_that_says_what_to_do(self, far_end: FarEnd) -> None:
        async def main() -> None:
            far_end.stop()
            sink = far_end.sink()
            for _ in range(2):
                assert (await failure(sink.open(["e1"]))).hint
            await sink.close()

        self.run(main)

    def test_a_far_end_that_goes_and_comes_back(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            await sink.send(records(range(1, 11)))
            far_end.stop()
            error = await failure(sink.send(records(range(11, 21))))
            assert error.hint
            assert not isinstance(error, Refused)
            far_end.start()
            receipt = await open_again(sink, ["e1"])
            assert covered(receipt) >= set(range(1, 11))
            assert covered(await sink.send(records(range(11, 21)))) >= set(range(11, 21))
            assert seqs(far_end.kept()) == list(range(1, 21))
            await sink.close()

        self.run(main)

    def test_close_at_any_time(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = far_end.sink()
            await sink.close()
            await sink.open([])
            await sink.close()
            await sink.close()
            assert isinstance(await failure(sink.send(records([1]))), SinkError), "a closed sink sends nothing"
            await sink.open([])
            await sink.open([])
            await sink.send(records([1]))
            await sink.close()
            assert seqs(far_end.kept()) == [1]

        self.run(main)

    def test_cancelled_at_any_await_it_can_be_opened_again(self, far_end: FarEnd) -> None:
        async def main() -> None:
            sink = await opened(far_end)
            for steps in (0, 1, 2, 3, 5, 8, 13, 21):
                task = asyncio.ensure_future(sink.send(records(range(1, 51))))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await open_again(sink, ["e1"])
            assert covered(await sink.send(records(range(1, 51)))) == set(range(1, 51))
            assert seqs(far_end.kept()) == list(range(1, 51))
            await sink.close()

        self.run(main)


async def opened(far_end: FarEnd) -> Sink:
    sink = far_end.sink()
    await open_again(sink, [])
    return sink


async def open_again(sink: Sink, epochs: Sequence[str]) -> Receipt:
    """Until it works: a far end that has just come back may need a moment."""
    async with asyncio.timeout(FAR_TOO_LONG_S):
        while True:
            try:
                return await sink.open(epochs)
            except SinkError:
                await asyncio.sleep(0.05)


async def failure(call: Awaitable[Receipt]) -> EdgeError:
    try:
        async with asyncio.timeout(FAR_TOO_LONG_S):
            receipt = await call
    except SinkError as error:
        return error
    raise AssertionError(f"a receipt where there can be none: {receipt}")


def covered(receipt: Receipt) -> set[int]:
    """Seqs of all its lanes."""
    return {n for ranges in receipt.ranges.values() for first, last in ranges for n in range(first, last + 1)}


def seqs(kept: Sequence[Kept]) -> list[int]:
    return [each[2] for each in kept]
