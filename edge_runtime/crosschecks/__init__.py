"""What in a configuration does not go together although every part is well formed: names that mean nothing or two things,
options that the adapter does not take, windows that would never be full (`windows.py`).

It works on the text's plain value, so that one wrong key elsewhere hides nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pydantic import BaseModel

from edge_runtime.adapter import Adapter
from edge_runtime.address import BadAddress, address, listener
from edge_runtime.crosschecks import plain, windows
from edge_runtime.document import Document, Path, Problem, closest, validate
from edge_runtime.foreign import made
from edge_runtime.ports import EdgeError

STATISTICS = ("min", "mean", "max", "last")
"""Of each point: the outputs of a pipeline without a model."""


def problems(doc: Document, schemas: Mapping[str, type[Adapter]]) -> list[Problem]:
    """`schemas`: the adapters by name; looking one up may raise EdgeError."""
    found: list[Problem] = []
    for name in plain.mapping(doc.at(("devices",))):
        found += _device(doc, ("devices", name), schemas)
    for name in plain.mapping(doc.at(("pipelines",))):
        found += _pipeline(doc, ("pipelines", name))
        found += _rules(doc, ("pipelines", name))
        found += windows.problems(doc, ("pipelines", name), schemas)
    found += _sessions(doc, schemas)
    for check in (_connected, _brokers, _hosted, _passwords, _signatures, _mesh, _metrics):
        found += check(doc)
    return found


def _connected(doc: Document) -> Iterator[Problem]:
    """A gateway that reads nothing computes for others, or it does nothing at all."""
    computes = plain.items(doc.at(("mesh", "offers"))) and doc.at(("mesh", "accept_tasks")) is not False
    if not (doc.at(("devices",)) or computes):
        hint = "see `edge-runtime adapters`; a gateway that only computes for others has `mesh: {offers: [MODEL]}`"
        yield doc.problem(("devices",), "needs at least one", hint=hint)


def _device(doc: Document, here: Path, schemas: Mapping[str, type[Adapter]]) -> Iterator[Problem]:
    adapter = doc.at((*here, "adapter"))
    if not isinstance(adapter, str):
        return
    if adapter not in schemas:
        hint = closest(adapter, schemas, "known are") + "; see `edge-runtime adapters`"
        yield doc.problem((*here, "adapter"), "no adapter of this name is installed", value=adapter, hint=hint)
        return
    try:
        schema = schemas[adapter]
    except EdgeError as error:
        yield doc.problem((*here, "adapter"), error.cause, hint=error.hint)
        return
    options = doc.at((*here, "options"))
    if isinstance(options, dict) or (*here, "options") not in doc.lines:
        yield from _checked(doc, schema.Options, (*here, "options"), adapter)
    for number, point in enumerate(plain.items(doc.at((*here, "points")))):
        if isinstance(point, dict):
            yield from _checked(doc, schema.Point, (*here, "points", number), adapter)
    yield from _twice(doc, (*here, "points"), "point", "device")


def _checked(doc: Document, model: type[BaseModel], here: Path, adapter: str) -> Iterable[Problem]:
    """By the adapter's own models, whose validators are foreign code. What they find comes without a hint."""
    try:
        found = made(lambda: validate(doc, model, here), f"the adapter {adapter} cannot check this")
    except EdgeError as error:
        return [doc.problem(here, error.cause, hint=error.hint)]
    hint = f"see `edge-runtime adapters {adapter}`"
    return [problem if problem.hint else replace(problem, hint=hint) for problem in found]


def _sessions(doc: Document, schemas: Mapping[str, type[Adapter]]) -> Iterator[Problem]:
    """Of two devices in one session each would take, and acknowledge, what is meant for the other."""
    owners: dict[tuple[str, str], str] = {}
    for name, device in plain.mapping(doc.at(("devices",))).items():
        adapter, here = plain.mapping(device).get("adapter"), ("devices", name, "options")
        schema = plain.schema(schemas, adapter)
        if schema is None:
            continue
        try:
            option, key = made(partial(_session, doc, schema, here), "")
        except EdgeError:  # its options are wrong: that is said elsewhere; or it cannot tell: then this device alone is unusable
            continue
        if key and (owner := owners.setdefault((str(adapter), key), name)) != name:
            value, hint = doc.at((*here, option)), f"give each its own {option}: they would take each other's data"
            yield doc.problem((*here, option), f"is that of {owner}, too", value=value, hint=hint)


def _session(doc: Document, schema: type[Adapter], here: Path) -> tuple[str, str]:
    if validate(doc, schema.Options, here):
        return "", ""
    option, key = schema.session(schema.Options.model_validate(doc.at(here) or {}))
    return str(option), str(key)


def _pipeline(doc: Document, here: Path) -> Iterator[Problem]:
    devices = plain.mapping(doc.at(("devices",)))
    device = doc.at((*here, "device"))
    known = isinstance(device, str) and device in devices
    if isinstance(device, str) and not known:
        hint = closest(device, devices, "declared are")
        yield doc.problem((*here, "device"), "no device of this name is declared", value=device, hint=hint)
    declared = plain.names(doc, ("devices", device, "points")) if known else []
    wanted = plain.items(doc.at((*here, "points")))
    for number, point in enumerate(wanted):
        if declared and isinstance(point, str) and point not in declared:
            hint = closest(point, declared, f"the points of {device} are")
            yield doc.problem((*here, "points", number), f"is no point of {device}", value=point, hint=hint)
        elif point in wanted[:number]:
            yield doc.problem((*here, "points", number), "stands here twice", value=point, hint="remove one of them")
    chosen = [point for point in wanted if isinstance(point, str)]
    points = chosen if chosen and (not known or set(chosen) <= set(declared)) else declared
    if points and doc.at((*here, "model")) is None:
        yield from _statistics(doc, here, points)


def _statistics(doc: Document, here: Path, points: list[str]) -> Iterator[Problem]:
    """Without a model the outputs are known: a rule that watches another one would never be raised."""
    known = [f"{point}.{statistic}" for point in points for statistic in STATISTICS]
    for number, rule in enumerate(plain.items(doc.at((*here, "rules")))):
        output = plain.mapping(rule).get("output")
        if isinstance(output, str) and output not in known:
            of_it = [one for one in known if one.startswith(f"{output}.")]  # the point alone
            hint = closest(output, of_it or known, "without a model the outputs are")
            yield doc.problem((*here, "rules", number, "output"), "is no output of this pipeline", value=output, hint=hint)


def _rules(doc: Document, here: Path) -> Iterator[Problem]:
    """Each has a limit that can be reached and left, and a name of its own."""
    for number, rule in enumerate(plain.items(doc.at((*here, "rules")))):
        at = (*here, "rules", number)
        above, below = (doc.at((*at, key)) for key in ("above", "below"))
        if isinstance(rule, dict) and above is None and below is None:
            yield doc.problem(at, "has no limit", hint="give above or below (or both): `above: 80`")
        if plain.number(below) >= plain.number(above):
            hint = f"it must be less than above ({above}): the rule would always be raised"
            yield doc.problem((*at, "below"), "is not less than above", value=below, hint=hint)
        inside = plain.number(doc.at((*at, "hysteresis")))
        if plain.number(below) < plain.number(above) and plain.number(above) - inside < plain.number(below) + inside:
            hint = f"less than half the distance of below ({below}) and above ({above}): the rule could never clear"
            yield doc.problem((*at, "hysteresis"), "is too large", value=inside, hint=hint)
        if above == "model" and doc.at((*here, "model")) is None:
            yield doc.problem((*at, "above"), "there is no model", value=above, hint="give a number, or the pipeline a `model`")
        for place in range(len(plain.items(doc.at((*at, "writes"))))):
            yield from _writes(doc, (*at, "writes", place, "point"))
    yield from _twice(doc, (*here, "rules"), "rule", "pipeline")


def _writes(doc: Document, here: Path) -> Iterator[Problem]:
    """A point that is there, and may be written."""
    value, devices = doc.at(here), plain.mapping(doc.at(("devices",)))
    if not isinstance(value, str) or "/" not in value:
        return
    device, _, name = value.partition("/")
    if device not in devices:
        yield doc.problem(here, f"there is no device {device!r}", value=value, hint=closest(device, devices, "declared are"))
        return
    points = [point for point in plain.items(doc.at(("devices", device, "points"))) if isinstance(point, dict)]
    found = next((point for point in points if point.get("name") == name), None)
    if found is None:
        hint = closest(name, plain.names(doc, ("devices", device, "points")), f"the points of {device} are")
        yield doc.problem(here, f"is no point of {device}", value=value, hint=hint)
    elif not found.get("write"):
        yield doc.problem(here, "may not be written", value=value, hint="allow it with `write` in the point's declaration")
    elif hint := _never_takes(plain.mapping(found["write"]), doc.at((*here[:-1], "value"))):
        wanted = (*here[:-1], "value")
        yield doc.problem(wanted, f"is nothing that {value} may be given", value=doc.at(wanted), hint=hint)


def _never_takes(bound: Mapping[str, Any], value: Any) -> str:
    """What it does take; "" where it takes this value, or where what is wrong is said elsewhere."""
    allowed = plain.items(bound.get("allowed"))
    if allowed and value is not None:
        fits = any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed)
        return "" if fits else f"allowed are {json.dumps(allowed, ensure_ascii=False)}"
    low, high = plain.number(bound.get("low")), plain.number(bound.get("high"))
    within = not low <= high or value is None or low <= plain.number(value) <= high
    return "" if within else f"it takes {low:g} to {high:g}"


def _twice(doc: Document, here: Path, noun: str, owner: str) -> Iterator[Problem]:
    """Two items of a list with one name."""
    seen: dict[str, int] = {}
    for number, item in enumerate(plain.items(doc.at(here))):
        name = plain.mapping(item).get("name")
        if isinstance(name, str) and seen.setdefault(name, number) != number:
            line = doc.line((*here, seen[name], "name"))
            hint = f"the other one is in line {line}; a {noun}'s name is unique in its {owner}"
            yield doc.problem((*here, number, "name"), f"is the name of another {noun}, too", value=name, hint=hint)


def _brokers(doc: Document) -> Iterator[Problem]:
    """Every URL of a broker can be understood, and `local` means one."""
    mode = doc.at(("broker", "mode")) or "none"
    if mode != "none":
        yield from _url(doc, ("broker", "url"))
    for name, sink in plain.mapping(doc.at(("sinks",))).items():
        here: Path = ("sinks", name, "url")
        if plain.mapping(sink).get("type") != "mqtt":
            continue
        if doc.at(here) != "local":
            yield from _url(doc, here)
        elif mode == "none":
            hint = "set broker.mode to `hosted` or `external`, or give the URL of a broker"
            yield doc.problem(here, "there is no local broker", value="local", hint=hint)


def _hosted(doc: Document) -> Iterator[Problem]:
    """A broker of ours listens on an address, without TLS and passwords."""
    listen, url = doc.at(("broker", "listen")), doc.at(("broker", "url"))
    if isinstance(listen, str) and listen != "localhost" and not _is_address(listen):
        yield doc.problem(("broker", "listen"), "is no address", value=listen, hint="an address of this machine, or 0.0.0.0")
    if doc.at(("broker", "mode")) not in ("hosted", "auto") or not isinstance(url, str):
        return
    with contextlib.suppress(BadAddress):  # that is said elsewhere
        where = address(url)
        if where.tls or where.username:
            hint = "mqtt://127.0.0.1:1883; with TLS and passwords: a broker of your own, and mode external"
            yield doc.problem(("broker", "url"), "a broker that we host has no TLS and no passwords", value=url, hint=hint)


def _passwords(doc: Document) -> Iterator[Problem]:
    """A place of its own, of a broker that we host and that knows TLS. Whether there is a site, shows when it starts."""
    here: Path = ("broker", "people_listen")
    listen = doc.at(here)
    if not isinstance(listen, str) or not listen:
        return
    if doc.at(("broker", "mode")) not in ("hosted", "auto"):
        hint = "broker.mode: hosted or auto; an external broker has users and passwords of its own"
        yield doc.problem(here, "goes with a broker that this gateway hosts", value=listen, hint=hint)
    if doc.at(("broker", "program")) == "iotcore":
        hint = "broker.program: mosquitto or auto"
        yield doc.problem(here, "needs TLS, and iotcore lets everybody in", value=listen, hint=hint)
    try:
        host, port = listener(listen)
    except BadAddress as error:
        yield doc.problem(here, error.cause, value=listen, hint="0.0.0.0:8884: every address of this machine")
        return
    if host != "localhost" and not _is_address(host):
        yield doc.problem(here, "is no address", value=listen, hint="an address of this machine, or 0.0.0.0: 0.0.0.0:8884")
    with contextlib.suppress(BadAddress):  # that is said elsewhere
        if port in (0, address(str(doc.at(("broker", "url")) or "mqtt://127.0.0.1")).port):
            yield doc.problem(here, "needs a port of its own", value=listen, hint="not that of broker.url: 8884")


def _signatures(doc: Document) -> Iterator[Problem]:
    """Who may configure may allow everything that can be commanded: to sign the lesser word alone protects nothing."""
    here: Path = ("control", "require_signature")
    wanted = plain.items(doc.at(here))
    if "operator" in wanted and "engineer" not in wanted:
        hint = "[engineer], or true for both: an engineer's word may do all that an operator's may"
        yield doc.problem(here, "wants commands signed, and configuration not", value=wanted, hint=hint)


def _mesh(doc: Document) -> Iterator[Problem]:
    """It has a broker to meet on; `auto` has others to find it with; every place of a peer is one."""
    mode = doc.at(("broker", "mode")) or "none"
    mesh = doc.at(("mesh",))
    if mesh is not None and mode == "none":
        hint = "`broker: {mode: auto}` finds one or starts it, `hosted` starts it here, `external` takes the one at `url`"
        yield doc.problem(("mesh",), "needs a broker", hint=hint)
    if mesh is None and mode == "auto":
        hint = "add `mesh: {}`; a gateway that works alone takes `hosted`"
        yield doc.problem(("broker", "mode"), "needs `mesh`: it is the site's gateways that choose", value="auto", hint=hint)
    for number, peer in enumerate(plain.items(plain.mapping(mesh).get("peers"))):
        try:
            if " " in str(address(f"mqtt://{peer}").host):
                raise BadAddress(f"{peer}: a space in the host")
        except BadAddress:
            hint = "host, host:port, or [IPv6]:port"
            yield doc.problem(("mesh", "peers", number), "is no place of a broker", value=peer, hint=hint)


def _metrics(doc: Document) -> Iterator[Problem]:
    """A place to listen on that no broker of ours has."""
    here: Path = ("metrics", "listen")
    listen = doc.at(here)
    if not isinstance(listen, str):
        return
    try:
        _, port = listener(listen)
    except BadAddress as error:
        yield doc.problem(here, error.cause, value=listen, hint=error.hint)
        return
    if doc.at(("broker", "mode")) in ("hosted", "auto"):
        with contextlib.suppress(BadAddress):  # that is said elsewhere
            if port == address(str(doc.at(("broker", "url")) or "mqtt://127.0.0.1")).port:
                yield doc.problem(here, "is the port of our broker (broker.url)", value=listen, hint="take another one: 9464")
        passwords = doc.at(("broker", "people_listen"))
        if isinstance(passwords, str) and passwords.rpartition(":")[2] == str(port):
            yield doc.problem(here, "is the port of our broker (broker.people_listen)", value=listen, hint="another one: 9464")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _url(doc: Document, here: Path) -> Iterator[Problem]:
    url = doc.at(here)
    if not isinstance(url, str):
        return
    ca, cert, key = (str(doc.at((*here[:-1], name)) or "") for name in ("ca_file", "cert_file", "key_file"))
    try:
        address(url, ca_file=ca, cert_file=cert, key_file=key)
    except BadAddress as error:
        yield doc.problem(here, error.cause, hint=error.hint)
