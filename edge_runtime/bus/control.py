"""How a gateway is configured and commanded, as JSON. Topics: topics.py. Signed or not, the text of a message is the same.

| message      | topic                         | how             | who says it                        |
|--------------|-------------------------------|-----------------|------------------------------------|
| Desired      | gw/{gateway}/config/desired   | QoS 1, retained | a person, a tool                   |
|              | group/{group}/config/desired  |                 |                                    |
| Reported     | gw/{gateway}/config/reported  | QoS 1, retained | the gateway: what came of it       |
| Command      | gw/{gateway}/cmd/{verb}       | QoS 1           | a person, a tool                   |
| CommandReply | gw/{gateway}/cmd/{verb}/reply | QoS 1           | the gateway, once for each command |

What people write (Desired, Command) is read strictly: an unknown key, a key that stands there twice, too much of anything is
refused, with the path. In what gateways write a key that the reader does not know is passed over: they are updated one after the
other.

The hash of a configuration is the SHA-256 of its canonical JSON: see canonical.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import msgspec

from edge_runtime.bus import canonical
from edge_runtime.bus.messages import SEQ_MAX, VERSION, BadMessage, Word
from edge_runtime.document import closest

DESIRED_BYTES_MAX = 512 * 2**10
COMMAND_BYTES_MAX = 64 * 2**10
REPLY_BYTES_MAX = 256 * 2**10
REPORTED_BYTES_MAX = 2 * 2**20
"""A configuration with its file below it, and where each value comes from."""

FAULTS_MAX = 100
"""Told of one configuration: who is wrong in ten thousand places needs no list of them."""

TRIAL_S_MAX = 86_400

Text = Annotated[str, msgspec.Meta(max_length=1_000)]
Digest = Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")]
Revision = Annotated[int, msgspec.Meta(ge=1, le=2**53)]
"""What every tool can count to; a document without one is the next one all the same."""

Id = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Verb = Annotated[str, msgspec.Meta(pattern=r"^([a-z][a-z0-9_-]{0,62})?\Z")]
Issuer = Annotated[str, msgspec.Meta(max_length=128)]


class Desired(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What an operator wants of a gateway or a group: a whole configuration, or a patch of what the layers below it make.

    `target` is gw/GATEWAY or group/GROUP ("": that of the topic). Without a `revision` it is newer than what is held, if it says
    something else. `hash` is that of `config` or `patch`; where it is given, it is checked. `canaries`: gateways of the group
    that try it first. `trial_s`: for how long the gateway looks whether it works.
    """

    v: int = VERSION
    target: Annotated[str, msgspec.Meta(pattern=r"^((gw|group)/[A-Za-z0-9][A-Za-z0-9_-]{0,62})?\Z")] = ""
    revision: Revision | None = None
    hash: Digest = ""
    issuer: Issuer = ""
    note: Text = ""
    config: dict[str, Any] | None = None
    patch: dict[str, Any] | None = None
    canaries: Annotated[tuple[Word, ...], msgspec.Meta(max_length=1_000)] = ()
    trial_s: Annotated[float, msgspec.Meta(gt=0, le=TRIAL_S_MAX)] | None = None

    @property
    def content(self) -> dict[str, Any]:
        """The configuration or the patch."""
        return (self.config if self.config is not None else self.patch) or {}

    @property
    def digest(self) -> str:
        """Hash of the content, whether or not the message tells it."""
        return canonical.digest(self.content)


class Fault(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong with a configuration: where, what, what to do about it, which layer says it ("": none alone)."""

    path: str
    message: str
    hint: str = ""
    layer: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        layer = f" [{self.layer}]" if self.layer else ""
        return f"{where}{self.message}{layer}" + (f"\n    hint: {self.hint}" if self.hint else "")


class LayerState(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One layer as the gateway holds it. `cause`: why it is not active."""

    name: str
    revision: int = 0
    hash: str = ""
    state: str = ""
    cause: str = ""


class Reported(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of what was desired.

    `hash` is that of the effective configuration, `document` that of the desired document that this is about. `config` is the
    effective configuration without its secrets. `provenance`: which layer a value comes from; a path stands for all that is
    below it, unless a longer one says otherwise. `restarts`: parts of the gateway that were or will be restarted for it.
    """

    v: int = VERSION
    gateway: Word
    state: Literal["validating", "trial", "active", "reverted", "rejected"]
    hash: str = ""
    mode: Literal["normal", "safe"] = "normal"
    layers: tuple[LayerState, ...] = ()
    document: str = ""
    cause: str = ""
    hint: str = ""
    errors: tuple[Fault, ...] = ()
    restarts: tuple[str, ...] = ()
    config: dict[str, Any] | None = None
    provenance: dict[str, str] = {}
    audit: str = ""
    """Head of its audit log (N:HASH): who keeps it can tell later that the log's end was cut off or written anew."""
    wall_ns: int = 0
    synced: bool = False


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Do something, once. It expires at `until_ns` of the target's monotonic clock in its boot `boot`: both come with every
    heartbeat, so that it needs no right time anywhere. `target` and `verb`: "" is that of the topic."""

    v: int = VERSION
    id: Id
    issuer: Issuer = ""
    target: Annotated[str, msgspec.Meta(pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]{0,62})?\Z")] = ""
    verb: Verb = ""
    boot: Annotated[str, msgspec.Meta(max_length=128)] = ""
    until_ns: Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)] | None = None
    args: dict[str, Any] = {}


class CommandReply(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of a command. `unknown`: it was begun, and nobody can say whether it was done."""

    v: int = VERSION
    id: str
    gateway: Word
    verb: str
    outcome: Literal["verified", "written", "done", "refused", "unknown", "failed"]
    cause: str = ""
    hint: str = ""
    result: dict[str, Any] = {}


S = TypeVar("S", Desired, Command)
M = TypeVar("M", Reported, CommandReply)
_BYTES_MAX: dict[type, int] = {
    Desired: DESIRED_BYTES_MAX,
    Command: COMMAND_BYTES_MAX,
    Reported: REPORTED_BYTES_MAX,
    CommandReply: REPLY_BYTES_MAX,
}


# --- messages --------------------------------------------------------------------------------------------------------


def pack(message: Desired | Reported | Command | CommandReply) -> bytes:
    """A report that would be too large goes without the configuration, and then without all but the first faults."""
    if isinstance(message, Reported):
        message = msgspec.structs.replace(message, errors=message.errors[:FAULTS_MAX])
    payload = msgspec.json.encode(message)
    if len(payload) > REPORTED_BYTES_MAX and isinstance(message, Reported):
        hint = message.hint or "the configuration is too large to be shown here"
        payload = msgspec.json.encode(msgspec.structs.replace(message, config=None, provenance={}, hint=hint))
    return payload


def desired(payload: bytes, target: str, *, named: bool = False) -> Desired:
    """`target`: of the topic that it came on ("": it was taken once, and is read again); it stands in what is returned. `named`:
    it must say by itself for whom it is (where it is signed: else whoever has it could say it to another one). Raises
    BadMessage."""
    message = _strict(payload, Desired)
    if named and not message.target:
        raise BadMessage("desired: $.target: a signed document says for whom it is", f'"target": "{target}"')
    if (message.config is None) == (message.patch is None):
        hint = "`config` is a whole configuration, `patch` changes what is there: see docs/configuration-over-mqtt.md"
        raise BadMessage("desired: give exactly one of config and patch", hint)
    if target and message.target not in ("", target):
        raise BadMessage(f"desired: $.target: it is for {message.target} and came to {target}", "publish it on its own topic")
    if message.hash and message.hash != message.digest:
        hint = "SHA-256 of the canonical JSON (RFC 8785) of what stands in `config` or `patch`; it may be left out"
        raise BadMessage(f"desired: $.hash: is not that of the content, which is {message.digest}", hint)
    return msgspec.structs.replace(message, target=target or message.target)


def command(payload: bytes, target: str, verb: str, *, named: bool = False) -> Command:
    """`target` and `verb`: of the topic that it came on; they stand in what is returned. `named`: it must say them by itself, as
    in `desired`. Raises BadMessage."""
    message = _strict(payload, Command)
    if named and not (message.target and message.verb):
        raise BadMessage("command: a signed command says for whom it is, and what to do", "give `target` and `verb`")
    if message.target not in ("", target):
        raise BadMessage(f"command: $.target: it is for {message.target} and came to {target}", "publish it on its own topic")
    if message.verb not in ("", verb):
        raise BadMessage(f"command: $.verb: it is {message.verb} and came as {verb}", "publish it on its own topic")
    return msgspec.structs.replace(message, target=target, verb=verb)


def unpack(payload: bytes, kind: type[M]) -> M:
    """What a gateway says. Raises BadMessage."""
    what = _word(kind)
    _bounded(payload, kind)
    try:
        message = msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"{what}: {error}", "see docs/configuration-over-mqtt.md") from None
    return _versioned(message, what)


def _strict(payload: bytes, kind: type[S]) -> S:
    what = _word(kind)
    _bounded(payload, kind)
    value = canonical.read(payload, what)
    if not isinstance(value, dict):
        raise BadMessage(f"{what}: is no JSON object", 'it looks like {"patch": {...}}' if kind is Desired else "{...}")
    known = kind.__struct_fields__
    unknown = [key for key in value if key not in known]
    if unknown:
        cause = "; ".join(f"$.{canonical.short(key)}: unknown key" for key in unknown[:10])
        raise BadMessage(f"{what}: {cause}", closest(unknown[0][:100], known, "the keys here are"))
    try:
        message = msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise BadMessage(f"{what}: {_ours(str(error))}", "see docs/configuration-over-mqtt.md") from None
    return _versioned(message, what)


V = TypeVar("V", Desired, Command, Reported, CommandReply)


def _versioned(message: V, what: str) -> V:
    if message.v != VERSION:
        raise BadMessage(f"{what}: version {message.v}, this side speaks {VERSION}", "update the older side")
    return message


def _bounded(payload: bytes, kind: type) -> None:
    if len(payload) > _BYTES_MAX[kind]:
        raise BadMessage(f"{_word(kind)}: {len(payload)} bytes, at most {_BYTES_MAX[kind]} are taken", "send less")


def _word(kind: type) -> str:
    return "reply" if kind is CommandReply else kind.__name__.lower()


def _ours(text: str) -> str:
    """`Expected `int`, got `str` - at `$.x`` -> $.x: expected int, got str"""
    message, _, path = text.replace("`", "").partition(" - at ")
    return f"{path}: {message[:1].lower()}{message[1:]}" if path else message
