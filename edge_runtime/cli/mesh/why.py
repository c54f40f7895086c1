"""`edge-runtime mesh why`: asks the gateways of a site, and, where nobody remembers, an outbox."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import sys
from pathlib import Path

import msgspec

from edge_runtime.bus import messages, topics, why
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.why import Explanation, Question, Step
from edge_runtime.cli import terminal
from edge_runtime.cli.mesh import finding
from edge_runtime.mesh.routing import ms
from edge_runtime.ports import EdgeError
from edge_runtime.records import LANES, Lane, Result

ANSWER_S = 2.0


def run(args: argparse.Namespace) -> int:
    """0; 1: nobody knows. Raises EdgeError."""
    if not re.fullmatch(messages.WORD, args.result):
        raise EdgeError(f"{args.result!r} is no id of a result", "32 hex digits: `id` in a result")
    cause = "no gateway remembers it: each keeps its last 10,000 windows since it started"
    try:
        told = asyncio.run(_ask(finding.plan(args), args.result))
    except EdgeError as error:
        if args.outbox is None:
            raise
        told, cause = None, str(error)
    if told is not None:
        _print(told, args.json)
        return 0
    if args.outbox is not None:
        if args.json:
            cause = ""
        return _look(args.outbox, args.result, cause, as_json=args.json)
    print(f"{args.result}: {cause}", file=sys.stderr)
    print("hint: --outbox FILE looks into a gateway's outbox; is it the id of a result of this site?", file=sys.stderr)
    return 1


async def _ask(plan: finding.Plan, result: str) -> Explanation | None:
    async with finding.joined(plan) as joined:
        connection, answer = joined.connection, topics.why_answer(joined.site, result)
        await connection.subscribe(answer, qos=0)
        await connection.publish(topics.why(joined.site, result), why.pack(Question(result)))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                while True:
                    message = await connection.receive()
                    with contextlib.suppress(BadMessage):
                        if message.topic == answer:
                            return why.unpack(message.payload, Explanation)
    return None


def _print(told: Explanation, as_json: bool) -> None:
    if as_json:
        terminal.emit_json(msgspec.to_builtins(told))
        return
    print(f"result {told.id} of {told.gateway}, model {told.model}, {told.ago_s:,.0f} s ago")
    print(f"privacy {told.privacy}, deadline {told.deadline_s:g} s")
    columns = ("where", "why", "est. here", "est. there", "outcome", "took")
    terminal.table(columns, [_cells(each) for each in told.steps])


def _cells(step: Step) -> tuple[object, ...]:
    there = ", ".join(f"{_ms(each.finish_ns)} at {each.peer}" for each in step.compared)
    where = step.where or ("here" if step.here_ns is not None else "nowhere")
    return where, step.reason, _ms(step.here_ns), there, step.outcome or "not done yet", _ms(step.taken_ns)


def _ms(nanoseconds: int | None) -> str | None:
    return None if nanoseconds is None else ms(nanoseconds)


def _look(file: Path, result: str, cause: str, *, as_json: bool) -> int:
    """In an outbox a result says in short where it was computed."""
    import importlib.util

    from edge_runtime.cli import outbox_look

    if not importlib.util.find_spec("sqlite_utils"):
        raise EdgeError("`edge-runtime mesh why --outbox` needs sqlite-utils", "pip install 'edge-runtime[cli]'")
    if cause:
        print(cause, file=sys.stderr)
    lanes = [lane for lane in LANES if lane.kind is Lane.RESULT]
    for record in outbox_look.records(file, lanes):
        if record.unique == result:
            found = msgspec.json.decode(record.body, type=Result)
            # No values: they may be of a class that does not leave the gateway.
            told = {key: getattr(found, key) for key in ("id", "pipeline", "model", "artefact", "executed_on", "placed")}
            if as_json:
                terminal.emit_json(told)
            else:
                how = f"{found.executed_on} ({found.artefact})" if found.executed_on else "no model"
                print(f"result {result} of pipeline {found.pipeline}, model {found.model or '-'}, computed on {how}")
                print(found.placed or "computed here: no peer was considered")
            return 0
    print(f"{result}: is not in {file}: it was delivered and cleared, or is another gateway's", file=sys.stderr)
    return 1
