"""What a gateway does when it is told to: the verbs of commands, over its parts.

| verb     | args                            | what it does                                                              |
|----------|---------------------------------|---------------------------------------------------------------------------|
| write    | point: DEVICE/POINT, value      | writes once, reads back: verified, written, refused, failed, unknown      |
| reload   | model, version: before          | opens the model anew, in every pipeline that uses it; or the one before it |
| restart  | part: "device press", ...       | stops and starts one part; "everything" builds all of it anew             |
| drain    | limit_s, resume                 | takes no more tasks, and tells when everything is delivered               |
| rollback |                                 | the last good configuration goes on trial                                 |
| bundle   |                                 | writes a support bundle beside its data, and says where                   |
| history  | layer                           | its newest configurations; or the document of a layer that is in force,   |
|          |                                 | without its secrets                                                       |
| time     |                                 | its boot and its monotonic clock, for who must know until when a command  |
|          |                                 | holds: signed, as a heartbeat is not                                      |
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.control.commands import Asked, Done, Verb
from edge_runtime.control.control import Control
from edge_runtime.control.layers import FILE
from edge_runtime.control.redaction import redacted
from edge_runtime.control.steering import Steering
from edge_runtime.document import closest
from edge_runtime.inference.shelf import Shelf
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.ports import EdgeError
from edge_runtime.sources.supervisor import Source
from edge_runtime.trust import envelope
from edge_runtime.world import World

DRAIN_S_MAX = 300.0
DRAIN_S = 30.0
"""Where the command does not say."""

IN_FORCE_BYTES_MAX = 100_000
"""Of a document in a reply, in which each quotation mark takes two bytes and more."""

KINDS = ("device", "pipeline", "sink")

READY_S, READY_S_MAX = 0.1, 20.0
"""Between two looks whether a model is open again; and at most."""

ANSWER_S = 1.0
"""Until everything is built anew: the answer would be lost with the connection that it needs."""


class Gateway(Protocol):
    """gateway.Gateway, as far as it is commanded."""

    settings: config.Config
    folder: Path
    world: World
    steering: Steering | None
    sources: dict[str, Source]
    pipelines: dict[str, Pipeline]
    deliveries: dict[str, Delivery]
    mesh: Mesh | None
    control: Control | None


def verbs(gateway: Gateway) -> dict[str, Verb]:
    """By name."""

    def of(do: Callable[[Gateway, Asked], Awaitable[Done]], subject: Callable[[Mapping[str, Any]], str]) -> Verb:
        return Verb(lambda asked: do(gateway, asked), subject)

    return {
        "write": of(_write, lambda args: f"point {args.get('point', '?')}"),
        "reload": of(_reload, lambda args: f"model {args.get('model', '?')}"),
        "restart": of(_restart, lambda args: str(args.get("part", "?"))),
        "drain": of(_drain, lambda _: "gateway"),
        "rollback": of(_rollback, lambda _: "configuration"),
        "bundle": of(_bundle, lambda _: "gateway"),
        "history": of(_history, lambda _: "configuration"),
        "time": of(_time, lambda _: "gateway")._replace(only_asks=True),
    }


async def _write(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked, "point", "value"):
        return wrong
    point, value = asked.args.get("point"), asked.args.get("value")
    device, slash, name = point.partition("/") if isinstance(point, str) else ("", "", "")
    if not slash or "value" not in asked.args:
        return _refused("give `point` (DEVICE/POINT) and `value`", '{"point": "press/speed", "value": 1200}')
    source = gateway.sources.get(device)
    if source is None and device in gateway.settings.devices:
        return _refused(f"device {device!r} is not connected: no pipeline takes it", f"add a pipeline with `device: {device}`")
    if source is None:
        return _refused(f"there is no device {device!r}", closest(device, gateway.sources, "there are"))
    if isinstance(value, dict | list) or value is None:
        return _refused("a point holds a number, a text, true or false", "give one value")
    found = await source.write(name, value, until_ns=asked.until_ns)
    return Done(
        outcome=found.outcome, cause=found.cause, hint=found.hint, before=found.before, read_back=found.read_back,
        result={"before": found.before, "requested": found.requested, "read_back": found.read_back},
    )  # fmt: skip


async def _reload(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked, "model", "version"):
        return wrong
    model, version = asked.args.get("model"), asked.args.get("version")
    if version not in (None, "before") or (version and not isinstance(model, str)):
        return _refused("`version` is `before`, of one `model`", '{"model": "wear", "version": "before"}')
    using = [name for name, each in gateway.settings.pipelines.items() if each.model is not None and model in (each.model, None)]
    if not using:
        known = dict.fromkeys(each.model for each in gateway.settings.pipelines.values() if each.model)
        return _refused(f"no pipeline uses a model {model!r}", closest(str(model), list(known), "in use are"))
    control = _control(gateway)
    if version:
        await _exchange(gateway, str(model))
    for name in using:
        await control.restart("pipeline", name)
    causes = {name: cause for name in using if (cause := await _ready(gateway, name))}
    if causes:
        return Done(outcome="failed", cause="; ".join(f"pipeline {name}: {cause}" for name, cause in causes.items()))
    return Done(outcome="done", result={"pipelines": using, "models": [gateway.pipelines[name].model_name for name in using]})


async def _exchange(gateway: Gateway, model: str) -> None:
    """On a thread: the files are read, and their hashes compared."""
    worker = gateway.world.new_worker("models")
    try:
        await worker.run(Shelf(gateway.folder / gateway.settings.models_dir).exchange, model)
    finally:
        worker.abandon()


async def _ready(gateway: Gateway, name: str) -> str:
    """ "", or why the pipeline does not run."""
    deadline_s = asyncio.get_running_loop().time() + READY_S_MAX
    while (pipeline := gateway.pipelines.get(name)) is not None and not pipeline.ready:
        if pipeline.state.cause:
            return pipeline.state.cause
        if asyncio.get_running_loop().time() > deadline_s:
            return f"its model is not open after {READY_S_MAX:g} s"
        await asyncio.sleep(READY_S)
    return "" if pipeline is not None else "it is gone"


async def _restart(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked, "part"):
        return wrong
    part = asked.args.get("part")
    if part == "everything":
        _control(gateway).restart_all_in(ANSWER_S)
        return Done(outcome="done", result={"part": part})
    kind, _, name = part.partition(" ") if isinstance(part, str) else ("", "", "")
    there: dict[str, Mapping[str, Any]] = {
        "device": gateway.sources, "pipeline": gateway.pipelines, "sink": gateway.deliveries,
    }  # fmt: skip
    if name not in there.get(kind, ()):
        names = [f"{each} {one}" for each in KINDS for one in there[each]]
        return _refused(f"there is no part {part!r}", closest(str(part), [*names, "everything"], "there are"))
    await _control(gateway).restart(kind, name)
    return Done(outcome="done", result={"part": part})


async def _drain(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked, "limit_s", "resume"):
        return wrong
    limit_s = asked.args.get("limit_s", DRAIN_S)
    if isinstance(limit_s, bool) or not isinstance(limit_s, int | float) or not 0 < limit_s <= DRAIN_S_MAX:
        return _refused("`limit_s` is no number of seconds", f"more than 0, at most {DRAIN_S_MAX:g}")
    if asked.args.get("resume"):
        if gateway.mesh:
            gateway.mesh.resume()
        return Done(outcome="done", result={"taking": True})
    if gateway.mesh:
        gateway.mesh.drain()
    waits = [asyncio.ensure_future(each.drained()) for each in gateway.deliveries.values()]
    try:
        late = (await asyncio.wait(waits, timeout=limit_s))[1] if waits else ()
    finally:
        for wait in waits:
            wait.cancel()
    left = {name: sum(each.depth().values()) for name, each in gateway.deliveries.items()}
    if late:
        cause = f"not everything was delivered within {limit_s:g} s"
        return Done(outcome="failed", cause=cause, hint="see `edge-runtime outbox`; nothing is lost", result={"left": left})
    return Done(outcome="done", result={"left": left})


async def _rollback(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked):
        return wrong
    return Done(outcome="done", result={"does": await _control(gateway).rollback(asked.by)})


async def _bundle(gateway: Gateway, asked: Asked) -> Done:
    """In a thread of its own: it reads files for a second or two."""
    if wrong := _unknown(asked):
        return wrong
    if gateway.steering is None:
        return _refused("this gateway is not steered", "run it with `edge-runtime run`")
    from edge_runtime.support import making  # megabytes that others need not pay
    from edge_runtime.support.looking import Looking

    world, book = gateway.world, gateway.steering.book
    file = book.base.get(FILE)
    text = file.payload.decode(errors="replace") if file else None
    table = gateway.mesh.presence.peers.explain(world.clock.mono_ns()) if gateway.mesh else None

    def make() -> making.Made:
        looking = Looking(text, "the file that it runs with", gateway.folder, world.adapters, world.clock, world.secrets)
        return making.make(looking, world.clock, making.next_of(looking.data_dir), {"mesh.json": lambda: table})

    worker = world.new_worker("bundle")
    try:
        made = await worker.run(make)
    finally:
        worker.abandon()
    missing = {part["name"]: part["missing"] for part in made.parts if "missing" in part}
    return Done(
        outcome="done", result={"path": made.path, "size_bytes": made.size_bytes, "sha256": made.sha256, "missing": missing}
    )


async def _history(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked, "layer"):
        return wrong
    if gateway.control is None:
        return _refused("this gateway is not steered", "run it with `edge-runtime run`")
    if "layer" not in asked.args:
        return Done(outcome="done", result={"history": await gateway.control.history()})
    layer = str(asked.args["layer"])
    if layer == FILE:
        return _refused("the file stays on the gateway: its secrets stand in it", "`edge-runtime config get` shows what runs")
    payload = gateway.control.in_force(layer)
    if payload is None:
        return Done(outcome="done", result={"document": None})
    if len(payload) > IN_FORCE_BYTES_MAX:
        return _refused(f"the document has {len(payload)} bytes", "look at `config/desired` of the layer")
    return Done(outcome="done", result={"document": _shown(gateway, payload).decode()})


def _shown(gateway: Gateway, payload: bytes) -> bytes:
    """A document as it came, with its signature; or, where it holds secrets, its text without them: everybody on the broker reads
    the answer, and it stands in the book."""
    desired = messages.desired(envelope.unwrap(payload), "")
    known = gateway.settings.model_dump(mode="json", exclude_unset=True)
    content = redacted(desired.content, gateway.world.adapters, known)
    if content == desired.content:
        return payload
    part = "config" if desired.config is not None else "patch"
    return messages.pack(msgspec.structs.replace(desired, hash="", **{part: content}))


async def _time(gateway: Gateway, asked: Asked) -> Done:
    if wrong := _unknown(asked):
        return wrong
    now = gateway.world.clock.now()
    return Done(outcome="done", result={"boot": now.boot, "now_ns": now.mono_ns})


def _control(gateway: Gateway) -> Control:
    if gateway.control is None:
        raise EdgeError("this gateway is not steered", "run it with `edge-runtime run`")
    return gateway.control


def _unknown(asked: Asked, *known: str) -> Done | None:
    for name in asked.args:
        if name not in known:
            return _refused(f"args.{name}: unknown", closest(name, known, "known are"))
    return None


def _refused(cause: str, hint: str) -> Done:
    return Done(outcome="refused", cause=cause, hint=hint)
