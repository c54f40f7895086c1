"""What is parsed of what others say, with valid messages to begin with; and how such a message is spoiled, as bytes and as what
it means. For hypothesis (unit/test_fuzz_*.py) and for atheris (fuzz/).

parser = parsers()["desired"]
parser(mutated(random.Random(1), parser.seeds[0]))      # raises nothing but EdgeError
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from trusted import Site

from edge_runtime import config, document
from edge_runtime.bus import control, frames, messages, presence, why
from edge_runtime.bus.control import Command, CommandReply, Desired, Reported
from edge_runtime.bus.presence import Birth, Brokers, Load
from edge_runtime.control.layers import Layer, merge, validated
from edge_runtime.mesh import announcing
from edge_runtime.ports import EdgeError
from edge_runtime.ports_mesh import Announcement, Endpoint, Offer
from edge_runtime.records import Inference, Lane, Record, Stamp, Tensor
from edge_runtime.testing.adapter import Faulty
from edge_runtime.trust import certificates, desk, envelope, passwords, token
from edge_runtime.trust import roster as rosters

SCHEMAS = {"faulty": Faulty}
STAMP = Stamp("boot", 1, 2, True)
CONFIG: dict[str, Any] = {
    "site": "s",
    "gateway": "g",
    "broker": {"mode": "hosted"},
    "control": {"trial_s": 20, "groups": ["presses"]},
    "devices": {"d": {"adapter": "faulty", "period_s": 0.5, "points": [{"name": "a"}, {"name": "b"}]}},
    "pipelines": {"p": {"device": "d", "window": {"count": 2}, "rules": [{"name": "high", "output": "a.max", "above": 80.0}]}},
    "sinks": {"cloud": {"type": "https", "url": "http://x", "token_file": "token"}},
    "outbox": {"drain_s_max": 1},
}
PATCH: dict[str, Any] = {
    "devices": {"d": {"period_s": 0.25, "points": {"b": None, "c": {"name": "c"}}}},
    "pipelines": {"p": {"rules": {"high": {"above": 81}}, "priority": 3}},
    "log": {"level": "debug"},
}


class Parser(NamedTuple):
    """Of one kind of message. `seeds`: valid ones."""

    parse: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]

    def __call__(self, payload: bytes) -> bool:
        """True: it was taken. Raises what is no EdgeError."""
        with contextlib.suppress(EdgeError):
            self.parse(payload)
            return True
        return False


@cache
def _site() -> Site:
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    site = Site(Path(folder.name), "s")
    site.folder_kept = folder  # type: ignore[attr-defined]
    for name, role in (("g", "gateway"), ("alice", "engineer"), ("lost", "viewer")):
        site.member(name, role)  # type: ignore[arg-type]
    site.authority.set_password("alice", passwords.hashed("alice has a password", b"twelve bytes"))
    site.authority.revoke("lost", "gone")
    return site


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _records() -> list[Record]:
    return [Record(Lane.RESULT, "e1", seq, "wear", STAMP, b'{"n":%d}' % seq, f"u-{seq}") for seq in range(1, 4)]


def _frames() -> Iterator[bytes]:
    tensor = Tensor("float32", (1, 9), bytes(36))
    yield frames.pack(frames.Task(id="t1", instance="i1", model="m@1", remaining_ns=10**9, tensor=tensor))
    yield frames.pack(frames.Cancel(id="t1", instance="i1"))
    inference = Inference(outputs={"score": 0.5}, artefact="a" * 64, executed_on="cpu")
    yield frames.pack(frames.Reply(id="t1", instance="i1", verdict=frames.Verdict.DONE, inference=inference))
    yield frames.pack(frames.Reply(id="t1", instance="i1", verdict=frames.Verdict.REFUSED, cause="full", hint="wait"))


def _merged(payload: bytes) -> None:
    """A document that came, over the configuration that a gateway has."""
    said = control.desired(payload, "gw/g")
    layer = Layer("gateway", said.revision or 1, config=said.config, patch=said.patch)
    effective = merge(CONFIG, [layer])
    assert effective.hash
    assert effective.summary() is not None
    validated(effective, SCHEMAS)


def _announced(payload: bytes) -> None:
    """key=value lines, as mDNS has them."""
    name, *lines = payload.split(b"\n")
    properties = {key: value for key, _, value in (line.partition(b"=") for line in lines)}
    announcing.decode(name.decode("utf-8", "replace"), properties, ["127.0.0.1", "fe80::1"], 1883)


def _configured(payload: bytes) -> None:
    config.load(payload.decode("utf-8", "replace"), SCHEMAS)


def _listed(payload: bytes) -> None:
    """And what mosquitto reads of it: a line for each that has a password, whatever stands in it."""
    for each in rosters.decode(payload).members:
        assert not each.password or re.fullmatch(r"[A-Za-z0-9_-]+:\$7\$[0-9]+\$[\w+/]{16}\$[\w+/]{86}==", each.password_line)


@cache
def parsers() -> Mapping[str, Parser]:
    site = _site()
    gateway = site.folder / "g"
    roster = envelope.open_roster(site.authority.roster(), "s", site.authority.public)
    wanted = [
        _json({"target": "gw/g", "revision": 7, "issuer": "alice", "note": "why", "patch": PATCH, "trial_s": 60}),
        _json({"target": "group/default", "config": CONFIG, "canaries": ["g", "h"], "hash": ""}),
        _json({"patch": {}}),
    ]
    commands = [
        _json({"id": "c1", "target": "g", "verb": "write", "boot": "b", "until_ns": 5, "args": {"point": "d/a", "value": 1}}),
        _json({"id": "c2", "issuer": "alice", "until_ns": 0}),
    ]
    key = _key(site, "alice")
    signed = [envelope.seal(each, context, key, "alice") for each in (*wanted, *commands) for context in ("desired", "command")]
    births = [
        Birth(site="s", gateway="g", instance="i", online=True, offers=(Offer("m@1", 5),), endpoints=(Endpoint("h", 1),)),
        Birth(site="s", gateway="g", instance="i", online=False, run="r"),
    ]
    loads = [Load(gateway="g", instance="i", period_s=1.0, boot="b", now_ns=5, services={"m@1": 7}, temperature_c=51.5)]
    word = Brokers(site="s", host="g", instance="i", run="r", endpoints=(Endpoint("h", 1),), candidates=(Endpoint("h", 1),))
    batch = next(iter(messages.batches("s", "g", _records())))
    receipt = messages.receipt("cloud", "g", [("e1", Lane.RESULT, ((1, 3), (5, 5)))], ["e1"])
    tokens = token.Token(site="s", gateway="g", hosts=("10.0.0.1", "plc.local"), port=7001, ca=bytes(16), secret=bytes(range(16)))
    said = announcing.encode(Announcement(site="s", gateway="g", instance="i", role="host"), 1)
    told = "\n".join([announcing.label("g", "i"), *(f"{k}={v}" for k, v in said.items())]).encode()
    pem = (gateway / "cert.pem").read_bytes()
    return {
        "desired": Parser(lambda p: control.desired(p, "gw/g"), tuple(wanted)),
        "command": Parser(lambda p: control.command(p, "g", "write"), tuple(commands)),
        "reported": Parser(
            lambda p: control.unpack(p, Reported), (control.pack(Reported(gateway="g", state="active", config=CONFIG)),)
        ),
        "command reply": Parser(
            lambda p: control.unpack(p, CommandReply),
            (control.pack(CommandReply(id="c", gateway="g", verb="write", outcome="done")),),
        ),
        "envelope": Parser(lambda p: envelope.open(p, "desired", roster, now_s=1), tuple(signed)),
        "unwrap": Parser(lambda p: (envelope.is_signed(p), envelope.unwrap(p)), tuple(signed)),
        "roster": Parser(_listed, (rosters.encode(roster),)),
        "signed roster": Parser(lambda p: envelope.open_roster(p, "s", site.authority.public), (site.authority.roster(),)),
        "token": Parser(lambda p: token.read(p.decode("utf-8", "replace")), (token.text(tokens).encode(),)),
        "birth": Parser(lambda p: presence.unpack(p, Birth), tuple(presence.pack(each) for each in births)),
        "load": Parser(lambda p: presence.unpack(p, Load), tuple(presence.pack(each) for each in loads)),
        "brokers": Parser(lambda p: presence.unpack(p, Brokers), (presence.pack(word),)),
        "frame": Parser(frames.unpack, tuple(_frames())),
        "batch": Parser(
            lambda p: messages.unpack(p, messages.Batch), (messages.pack(batch), gzip.compress(messages.pack(batch)))
        ),
        "hello": Parser(lambda p: messages.unpack(p, messages.Hello), (messages.pack(messages.hello("s", "g", ["e1"])),)),
        "receipt": Parser(lambda p: messages.unpack(p, messages.ReceiptMessage).receipt(), (messages.pack(receipt),)),
        "question": Parser(lambda p: why.unpack(p, why.Question), (why.pack(why.Question(id="r1")),)),
        "announcement": Parser(_announced, (told,)),
        "enrolment": Parser(desk.decode, (desk.encode(desk.Refusal(v=1, reason="expired", cause="late", hint="again")),)),
        "certificate": Parser(certificates.parse, (pem,)),
        "request": Parser(certificates.requested, (site.csr("x"),)),
        "document": Parser(
            lambda p: document.read(p.decode("utf-8", "replace")), (_json(CONFIG), yaml.safe_dump(CONFIG).encode())
        ),
        "configuration": Parser(_configured, (_json(CONFIG), yaml.safe_dump(CONFIG).encode())),
        "layers": Parser(_merged, tuple(wanted)),
    }


def _key(site: Site, name: str) -> Any:
    from edge_runtime.trust.keys import PrivateKey

    return PrivateKey.load(site.folder / name / "key.pem")


# --- spoiling --------------------------------------------------------------------------------------------------------

ODD: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, -(2**63), 2**64, 1e308, -0.0, 1.5, "", "x", "a" * 5_000,
    "\u0000", "\ud800", "é😀",
    "../../etc/passwd", "secret:cloud", "+", "#", "a/b", "{{", "%s", [], {}, [[]], [None], {"": None}, {"a": {"a": {"a": {}}}},
    "1e999", "NaN", "on", "0x10", "2026-11-22", "~",
)  # fmt: skip
TOKENS: Sequence[bytes] = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\ud800", b"\x00", b"\xff\xfe", b"NaN", b"Infinity", b"-", b"1e400",
    b"9" * 60, b"&a", b"*a", b"!!python/object", b"---\n", b"\t", b"<<:", b"[" * 2_000, b'{"a":' * 2_000, b"\xef\xbb\xbf",
    b"null", b'"v":1,',
)  # fmt: skip


def mutated(dice: random.Random, payload: bytes) -> bytes:
    """One to four changes; of the meaning, where it is JSON, more often than of the bytes."""
    for _ in range(dice.randrange(1, 5)):
        value = _value(payload) if dice.random() < 0.7 else None
        payload = _spoiled(dice, payload) if value is None else _dumped(edited(dice, value))
    return payload


def _value(payload: bytes) -> Any:
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return None


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def edited(dice: random.Random, value: Any) -> Any:
    """A copy with one change, somewhere in it."""
    places = list(_places(value))
    if not places:
        return dice.choice(ODD)
    container, key = dice.choice(places)
    how = dice.randrange(6)
    if how == 0:
        container[key] = dice.choice(ODD)
    elif how == 1:
        del container[key]
    elif how == 2:
        container[key] = _like(dice, container[key])
    elif how == 3 and isinstance(container, dict):
        container[dice.choice(["x", "", "v", "name", "devices", "patch", "config", "\u0000"])] = dice.choice(ODD)
    elif how == 4 and isinstance(container, dict):
        container[key + dice.choice(["x", " ", "_"])] = container.pop(key)
    else:
        other, place = dice.choice(places)
        container[key] = (
            json.loads(json.dumps(other[place])) if (other, place) != (container, key) and place_of(other, place) else 0
        )
    return value


def place_of(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def _like(dice: random.Random, value: Any) -> Any:
    """Of the same kind, and another one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return dice.choice([value + 1, -value, value * 1_000_003, value / 3, 0])
    if isinstance(value, str):
        at = dice.randrange(len(value) + 1)
        return value[:at] + dice.choice(["", "x", "-", "\n", "é"]) + value[at + dice.randrange(2) :]
    if isinstance(value, list):
        return value * dice.choice([0, 2, 40])
    return {**value, **{f"{key}{number}": each for key, each in value.items() for number in range(dice.choice([1, 20]))}}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def _spoiled(dice: random.Random, payload: bytes) -> bytes:
    raw, at = bytearray(payload), dice.randrange(len(payload) + 1)
    how = dice.randrange(6)
    if how == 0 and raw:
        for _ in range(dice.randrange(1, 8)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
    elif how == 1:
        del raw[at:]
    elif how == 2:
        raw[at:at] = dice.choice(TOKENS)
    elif how == 3:
        end = min(len(raw), at + dice.randrange(1, 64))
        raw[at:at] = raw[at:end] * dice.randrange(1, 4)
    elif how == 4:
        del raw[at : at + dice.randrange(1, 32)]
    else:
        raw[at : at + 4] = dice.randbytes(dice.randrange(9))
    return bytes(raw)


__all__ = ["CONFIG", "PATCH", "Command", "Desired", "Parser", "edited", "mutated", "parsers"]
