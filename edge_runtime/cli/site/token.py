"""edge-runtime site token: prints a token, and waits for the gateway that comes with it."""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.trust.authority import Authority
    from edge_runtime.trust.desk import Issued, Request
    from edge_runtime.trust.enrolment import Event
    from edge_runtime.trust.token import Token


def run(args: argparse.Namespace) -> int:
    """0: it has joined. Raises EdgeError, also when it has not in time."""
    from edge_runtime.board.system import SystemClock, secret
    from edge_runtime.cli.site import addresses, opening
    from edge_runtime.trust import enrolment
    from edge_runtime.trust.desk import Desk
    from edge_runtime.trust.token import SECRET_BYTES, Token, ca_mark

    host, port = _listen(args.listen)
    authority = opening.authority(args)
    opening.check_free(authority, args.gateway, "gateway", replace=args.replace)
    clock = SystemClock()
    context = _tls(authority)
    with enrolment.listen(host, port) as listening:
        token = Token(
            site=authority.site,
            gateway=args.gateway,
            hosts=addresses.reachable(host),
            port=listening.getsockname()[1],
            ca=ca_mark(ssl.PEM_cert_to_DER_cert(authority.ca.decode())),
            secret=secret(SECRET_BYTES),
        )
        _show(token, args)
        desk = Desk(token, clock.mono_ns() + args.expires * 10**9)

        def sign(request: Request) -> Issued:
            return opening.certify(authority, request.csr, args.gateway, "gateway", replace=args.replace)

        def tell(event: Event) -> None:
            _tell(event, args)

        ca = authority.ca.decode()
        asyncio.run(enrolment.serve(desk, listening, context, ca, sign, clock, tell))
    if not args.json:
        _say(opening.SPREAD)
    return 0


def _listen(text: str) -> tuple[str, int]:
    from edge_runtime.address import BadAddress, listener

    try:
        return listener(text)
    except BadAddress as error:
        raise BadAddress(f"--listen {text}: {error.cause}", error.hint) from None


def _tls(authority: Authority) -> ssl.SSLContext:
    """With a key that lives as long as this program."""
    from edge_runtime.trust import enrolment
    from edge_runtime.trust.keys import PrivateKey

    key = PrivateKey.generate()
    with tempfile.TemporaryDirectory(prefix="edge-runtime-") as folder:  # ssl reads files only
        cert_file, key_file = Path(folder, "cert.pem"), Path(folder, "key.pem")
        cert_file.write_bytes(authority.desk(key.public))
        key.save(key_file)
        return enrolment.tls(str(cert_file), str(key_file))


def _show(token: Token, args: argparse.Namespace) -> None:
    """The token is the only line on standard output."""
    from edge_runtime.trust import token as tokens

    text = tokens.text(token)
    if args.json:
        waiting = {"event": "waiting", "token": text, "gateway": token.gateway, "site": token.site}
        _emit(waiting | {"addresses": list(token.hosts), "port": token.port, "expires_s": args.expires})
        return
    print(text, flush=True)
    _say(f"type on {token.gateway}:\n\n    edge-runtime join {text}\n")
    where = ", ".join(token.hosts)
    _say(f"waiting for it at {where}, port {token.port}, for {_time(args.expires)}; the token is good once; Ctrl-C ends it")


def _tell(event: Event, args: argparse.Namespace) -> None:
    if args.json:
        _emit({"event": event.event, "source": event.source, "cause": event.cause, "count": event.count})
    elif event.event == "refused":
        _say(f"refused {event.source}: {event.cause}" + (f" ({event.count} so far)" if event.count > 1 else ""))
    elif event.event == "issued":
        _say(f"{args.gateway} asks from {event.source}: it gets its certificate")
    else:
        _say(f"{args.gateway} has joined")


def _emit(event: dict[str, Any]) -> None:
    import json

    print(json.dumps(event), flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _time(seconds: int) -> str:
    return f"{seconds // 60} min" if seconds % 60 == 0 else f"{seconds} s"
