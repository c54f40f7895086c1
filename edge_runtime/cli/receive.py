"""`edge-runtime receive`: the reference far end. Takes batches over HTTP and MQTT, gives receipts, keeps each record once."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_runtime.cli import identity

if TYPE_CHECKING:
    from edge_runtime.bus.messages import Batch
    from edge_runtime.ports import Address, Worker
    from edge_runtime.receiver import mqtt
    from edge_runtime.receiver.account import Statistics
    from edge_runtime.receiver.receiver import Receiver
    from edge_runtime.trust.identity import Identity

HTTP_DEFAULT = "127.0.0.1:8443"
PORT_MAX = 65_535

SUMMARY = "take records over HTTP and MQTT, give receipts, keep each record once"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--name", help="name of this receiver, as in `receiver` of an mqtt sink (default: that of --identity, or cloud)"
    )
    parser.add_argument(
        "--file", type=Path, default=Path("records.db"), help="SQLite file with the records (default: records.db)"
    )
    parser.add_argument("--http", metavar="HOST:PORT", help="listen here for https sinks; port 0 takes a free one")
    parser.add_argument(
        "--mqtt", metavar="URL", help="broker to take batches from: mqtt://[user:password@]host[:port] or mqtts://..."
    )
    parser.add_argument("--site", help="only gateways of this site over MQTT (default: that of --identity, or all sites)")
    identity.add_argument(parser)
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="gateways must show the bearer token in this file")
    parser.add_argument("--cert", type=Path, metavar="FILE", help="certificate (PEM): listen with TLS")
    parser.add_argument("--key", type=Path, metavar="FILE", help="private key of the certificate (PEM)")
    parser.add_argument("--ca", default="", metavar="FILE", help="mqtts: CA certificate to trust (default: the system's)")
    parser.add_argument("--trace", action="store_true", help="tell each record on standard error, one line of JSON")
    parser.add_argument("--json", action="store_true", help="print JSON: one line when ready, statistics at the end")
    parser.add_argument("--statistics", action="store_true", help="print what the file holds, and end")


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT, then prints the statistics. Raises EdgeError."""
    from edge_runtime.receiver import ledger

    _check_identity(args)
    if not args.statistics:
        asyncio.run(_serve(args))
    _print(ledger.statistics(args.file), args.json)
    return 0


def _check_identity(args: argparse.Namespace) -> None:
    """With an identity name and site are those of it. Raises EdgeError."""
    from edge_runtime.outbox.sinks.receipts import GIVERS
    from edge_runtime.ports import EdgeError

    who = args.member = identity.find(args.identity) if args.mqtt or args.identity else None
    if who is not None:
        if who.role not in GIVERS:
            hint = "edge-runtime site person NAME --role receiver"
            raise EdgeError(f"{who.name} is {who.role}: no gateway takes a receipt that it has signed", hint)
        for option, given, own in (("--name", args.name, who.name), ("--site", args.site, who.site)):
            if given not in (None, own):
                raise EdgeError(f"{option} {given}: the identity is of {who.name} at {who.site}", f"leave {option} out")
    args.name = args.name or (who.name if who else "cloud")
    args.site = args.site or (who.site if who else "+")


async def _serve(args: argparse.Namespace) -> None:
    from edge_runtime.board.system import ThreadWorker
    from edge_runtime.receiver.receiver import Receiver

    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    async with AsyncExitStack() as stack:
        _check_words(args)
        stack.enter_context(_locked(args.file))
        writer, reader = ThreadWorker("ledger"), ThreadWorker("statistics")
        stack.callback(reader.close)
        stack.callback(writer.close)
        receiver = Receiver(args.name, writer, reader, *([_trace] if args.trace else []))
        await receiver.open(args.file)
        stack.push_async_callback(receiver.close)
        running = [asyncio.create_task(receiver.run(), name="commits"), asyncio.create_task(stop.wait(), name="stop")]
        stack.push_async_callback(_cancel, running)
        ready = {"name": args.name, "file": str(args.file)}
        if args.http or not args.mqtt:
            ready["http"] = await stack.enter_async_context(_listen(receiver, args))
        if args.mqtt:
            running.append(asyncio.create_task(_mqtt_door(receiver, args, reader).run(), name="mqtt"))
            ready["mqtt"] = args.mqtt.rpartition("@")[2]
        _announce(ready, args.json)
        done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # but for `stop`, a task ends only by an error


def _locked(file: Path) -> AbstractContextManager[None]:
    """A second receiver would take the first one's session at the broker; each would count what the other has kept."""
    from edge_runtime.cli import lock

    real = Path(os.path.realpath(file))
    if real.is_dir():  # for the ledger to tell
        return nullcontext()
    return lock.held(
        real.with_name(f"{real.name}-lock"),
        file,
        by="`edge-runtime receive` keeps its records there",
        hint="stop it, or give this one another --file",
        missing="is the path right? The folder must exist and be writable for this user",
    )


def _check_words(args: argparse.Namespace) -> None:
    """They stand in topics: a / or # in one would take another gateway's messages, or nobody's."""
    from edge_runtime.bus import messages

    for option, word in (("--name", args.name), ("--site", args.site)):
        if not re.fullmatch(messages.WORD, word) and (option, word) != ("--site", "+"):
            raise messages.BadMessage(
                f"{option} {word!r} is no name", "letters, digits, - and _, beginning with a letter or digit"
            )


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _listen(receiver: Receiver, args: argparse.Namespace) -> AbstractAsyncContextManager[str]:
    from edge_runtime.receiver import http

    listen = args.http or HTTP_DEFAULT
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > PORT_MAX:
        raise http.CannotListen(f"--http {listen}: no HOST:PORT", f"--http {HTTP_DEFAULT}; a port is 0 to {PORT_MAX}")
    if args.key and not args.cert:
        raise http.CannotListen("--key without --cert: it would listen without TLS", "give both, or neither")
    if not (args.cert and args.token_file) and host not in ("127.0.0.1", "localhost", "[::1]"):
        _tell(f"warning: on {host} without --cert or --token-file: whoever reaches it can send records")
    tls = http.tls_context(args.cert, args.key) if args.cert else None
    return http.serve(http.Door(receiver, _token(args.token_file)), host.strip("[]"), int(port), tls)


def _mqtt_door(receiver: Receiver, args: argparse.Namespace, worker: Worker) -> mqtt.Door:
    from edge_runtime.address import address
    from edge_runtime.board.system import SystemDice
    from edge_runtime.bus.broker import PahoBus
    from edge_runtime.receiver import mqtt

    # A kept session: batches that come while we are away wait at the broker.
    broker = address(args.mqtt, client_id=f"edge-receiver-{args.name}", ca_file=args.ca, clean=False)
    if args.member is None:
        return mqtt.Door(receiver, PahoBus(), lambda: broker, args.site, SystemDice(), _tell)
    return _members_door(receiver, args.member, broker, worker)


def _members_door(receiver: Receiver, who: Identity, broker: Address, worker: Worker) -> mqtt.Door:
    """It comes with its certificate, signs its receipts, and leaves a broker whose gateway was revoked."""
    from edge_runtime.board.system import SystemDice
    from edge_runtime.bus.broker import PahoBus
    from edge_runtime.bus.local import LocalBus
    from edge_runtime.bus.member import Dress
    from edge_runtime.outbox.sinks.receipts import CONTEXT
    from edge_runtime.ports import EdgeError
    from edge_runtime.receiver import mqtt

    bus, dress = LocalBus(PahoBus(), "", who), Dress(who)

    async def take(roster: bytes) -> None:
        try:
            newer = bool(roster) and await worker.run(who.take_roster, roster)
        except EdgeError as error:
            _tell(f"roster: {error}")
            return
        if newer:
            _tell(f"roster: revision {who.roster.revision}")
            bus.leave_revoked()

    def sign(receipt: bytes) -> bytes:
        return who.sign(receipt, CONTEXT)

    return mqtt.Door(receiver, bus, lambda: dress(broker), who.site, SystemDice(), _tell, sign, take)


def _token(file: Path | None) -> str:
    from edge_runtime.receiver import http

    if file is None:
        return ""
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise http.CannotListen(f"--token-file {file}: {error}", "a readable file with one line") from None
    if not token:
        raise http.CannotListen(f"--token-file {file} is empty", "`openssl rand -hex 32 > FILE` makes a token")
    return token


def _announce(ready: dict[str, str], as_json: bool) -> None:
    if as_json:
        print(json.dumps(ready), flush=True)
        return
    doors = " and ".join(ready[door] for door in ("http", "mqtt") if door in ready)
    print(f"receiver {ready['name']} on {doors}, records in {ready['file']}; Ctrl-C ends it", flush=True)


def _trace(batch: Batch) -> None:
    """By the names that the gateways' logs have at level debug: never with a value."""
    from edge_runtime import trail

    for record in batch.records:
        said = {"event": "received", "gateway": batch.gateway, **trail.name(batch.lane, record)}
        _tell(json.dumps({**said, "source": record.source, "lane": batch.lane, "epoch": batch.epoch, "seq": record.seq}))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(statistics: Statistics, as_json: bool) -> None:
    import msgspec

    from edge_runtime.cli import terminal

    if as_json:
        print(msgspec.json.encode(statistics).decode(), flush=True)
        return
    columns = ("site", "gateway", "received", "unique", "duplicates", "gaps", "declared lost", "epochs")
    rows = [
        (each.site, each.gateway, each.received, each.unique, each.duplicates, each.gaps, each.declared_lost, each.epochs)
        for each in statistics.gateways
    ]
    terminal.table(columns, rows)
    for each in statistics.gateways:
        for hole in each.holes:
            print(f"missing: {each.gateway} {hole.epoch} {hole.lane.value} {hole.first}..{hole.last}")
        for reason, count in each.lost_reasons.items():
            print(f"declared lost: {each.gateway} {count} ({reason})")
