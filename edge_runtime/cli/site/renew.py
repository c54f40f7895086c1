"""edge-runtime site renew: certificates for the keys that members have, for another period: of those that are named, as files; or
of all gateways that have asked, over the broker."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.cli.site.asking import Answered
    from edge_runtime.trust.authority import Authority


def run(args: argparse.Namespace) -> int:
    """All that are named, or none where one of them cannot be. 1: a gateway that has asked was refused. Raises EdgeError."""
    from edge_runtime.ports import EdgeError

    asked = bool(args.broker or args.config)
    if asked == bool(args.names):
        hint = "names or files of requests; or --broker URL (--config FILE), for all gateways that have asked there"
        raise EdgeError("whose certificates?", hint)
    return _over_broker(args) if asked else _named(args)


def _named(args: argparse.Namespace) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import desk, files

    authority = opening.authority(args)
    answers = {}
    for name in [_member(each, authority) for each in args.names]:
        answers[name] = args.output / f"{name}.answer"
        files.write(answers[name], desk.encode(opening.packed(authority, name, authority.renew(name))))
    if args.json:
        terminal.emit_json({"site": authority.site, "answers": {name: str(file) for name, file in answers.items()}})
        return 0
    for name, file in answers.items():
        print(f"{name} is renewed: {file}; there: edge-runtime join --answer {file.name}")
    print(opening.SPREAD)
    return 0


def _member(word: str, authority: Authority) -> str:
    """Its name, from the name or its request. Raises EdgeError: nobody, or a request with another key."""
    from edge_runtime.cli.site import sign
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import certificates

    held = {each.name: each.public for each in authority.members}
    if word in held:
        return word
    if not Path(word).is_file():
        raise EdgeError(f"{word}: no member of {authority.site}, and no file", "`edge-runtime site members` lists them")
    wanted = sign.read(Path(word), authority)
    if held.get(wanted.name) != certificates.requested(wanted.csr.encode()):
        hint = f"let it in: edge-runtime site sign {word} (--replace, where it takes the place of another key)"
        raise EdgeError(f"{word}: {wanted.name} has not this key at {authority.site}", hint)
    return wanted.name


def _over_broker(args: argparse.Namespace) -> int:
    import asyncio

    from edge_runtime.cli import identity
    from edge_runtime.cli.site import opening
    from edge_runtime.ports import EdgeError

    if (who := identity.needed(args.identity)).role != "engineer":
        raise EdgeError(f"{who.name} is {who.role}: the broker takes certificates from engineers", "--identity of an engineer")
    answered = asyncio.run(_answer_all(args, opening.authority(args)))
    _show(answered, as_json=args.json)
    return 1 if any(each.outcome == "refused" for each in answered) else 0


async def _answer_all(args: argparse.Namespace, authority: Authority) -> list[Answered]:
    from edge_runtime.board.system import SystemClock
    from edge_runtime.bus import renewal, topics
    from edge_runtime.cli.site import asking, opening, spreading
    from edge_runtime.cli.talking import Talk

    signed, roster = opening.roster(authority.folder)
    answered = []
    async with Talk(spreading.plan(args, authority.site, signed)) as talk:
        spreading.check_newest(talk, roster)
        now_s = SystemClock().now().wall_ns // 10**9
        async for message in talk.kept(topics.gateway(authority.site, "+", "renewal", "request")):
            if found := asking.answer(message, authority, opening.roster(authority.folder)[1], now_s):
                answered.append(found)
        signed, _ = opening.roster(authority.folder)
        if any(each.certificate for each in answered):
            await spreading.put(talk, topics.roster(authority.site), signed)
        for each in answered:
            if each.certificate:
                payload = renewal.pack(renewal.Answer(gateway=each.gateway, certificate=each.certificate.decode()))
                await spreading.put(talk, topics.gateway(authority.site, each.gateway, "renewal", "answer"), payload)
    return sorted(answered, key=lambda each: each.gateway)


def _show(answered: list[Answered], *, as_json: bool) -> None:
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site.members import day

    rows = [(each.gateway, each.outcome, day(each.renew_by_s) if each.renew_by_s else None, each.cause) for each in answered]
    if as_json:
        keys = ("gateway", "outcome", "renew_by", "cause")
        terminal.emit_json({"answered": [dict(zip(keys, row, strict=True)) for row in rows]})
    elif rows:
        terminal.table(("gateway", "outcome", "renew by", "why"), rows)
    else:
        print("no gateway has asked: they do when half of the two years is over")
