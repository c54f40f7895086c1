"""Who may read and write what on the site's broker: the roster as a mosquitto acl_file (decides).

mosquitto knows a client by the common name of its certificate, its role by the roster. So there are two kinds of lines.
`pattern` lines hold for whoever has a certificate of the site: a gateway that joined a minute ago works, also on a broker whose
roster does not have it yet; with %u in them they give each one its own name and no other. Lines below `user` hold for members
of the roster, by their role. `deny` takes reading away, too: it stands only where there is nothing to read. All else that is not
allowed is refused.

mosquitto checks subscriptions when it delivers: everybody may subscribe to everything, and gets what it may read. Publishing what
is refused is answered as if it were accepted (MQTT 3.1.1 has no word for it), and dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from edge_runtime.bus import topics
from edge_runtime.trust.roster import Member, Roster, certificate_name

_HEAD = "# Written at every start and with every new roster: changes are lost."
_NAMED = ("task", "reply", "receipt", "fetch", "chunk")
"""What one sends to another, with its own name at the end."""
_OWN = (
    "status", "load", "config/reported", "cmd/+/reply", "data/+", "result/+", "event/+", "gap/+", "batch/+", "hello/+",
    "renewal/request",
)  # fmt: skip
"""What a gateway says of itself. Not: its own tasks, replies and receipts, which others send it; commands to it."""
_NOT_FOR_RECEIVERS = (
    "task/#",
    "reply/#",
    "fetch/#",
    "chunk/#",
    "config/#",
    "cmd/#",
    "data/#",
    "result/#",
    "event/#",
    "gap/#",
    "renewal/#",
)
"""Of each gateway: all that a receiver need not read. It reads batches, hellos, and where the broker is."""
DEVICES = "device"
"""Below it stand the topics of equipment: device/{name}/#."""


def acl(site: str, roster: Roster | None, host: str) -> str:
    """The text of the file. `host`: the gateway whose broker it is; where that is, it alone may say. Names are of the form that
    `trust` lets in: none has a wildcard, a space or a line end."""
    lines = [_HEAD, "", *_everybody(site)]
    members = () if roster is None else roster.members
    lines += _of_devices(members)
    lines += ["", f"user {host}", f"topic write {topics.brokers(site)}"]
    for member in members:
        lines += ["", f"user {certificate_name(member.name, member.role)}", *_of(member, site)]
    return "\n".join(lines) + "\n"


def acl_of_names(site: str, roster: Roster) -> str:
    """The file for the listener where people come with a password, and the broker knows them as alice, not as person:alice. Each
    may do there what it may with its certificate. No pattern stands in it: %u would be the name of a gateway."""
    lines = [_HEAD]
    everybody = [*_everybody(site), *_of_devices(roster.members)]
    for member in roster.members:
        if member.password:
            who = certificate_name(member.name, member.role)
            own = (each.replace("pattern ", "topic ", 1).replace("%u", who) for each in everybody)
            lines += ["", f"user {member.name}", *own, *_of(member, site)]
    return "\n".join(lines) + "\n"


def _of_devices(members: Iterable[Member]) -> Iterator[str]:
    """The whole site reads them: a line for each of it would be members x devices."""
    for member in members:
        if member.role == "device":
            yield f"pattern read {member.name}/#"


def _everybody(site: str) -> Iterator[str]:
    yield f"pattern read {topics.ROOT}/{site}/#"
    # mosquitto tries one after the other for each message, with the name put in: what is said most stands first.
    for each in _NAMED:
        yield f"pattern write {topics.gateway(site, '+', each, '%u')}"
    for each in _OWN:
        yield f"pattern write {topics.gateway(site, '%u', each)}"
    yield f"pattern write {topics.why(site, '+')}"
    # The authority has signed it. Who joined with a file on a stick brings the roster that names it.
    yield f"pattern write {topics.roster(site)}"


def _of(member: Member, site: str) -> Iterator[str]:
    if member.role == "device":
        yield from _of_device(member)
        return
    if member.role != "gateway":  # its name in certificates is person:{name} or receiver:{name}; as a receiver it is {name}
        yield f"topic write {topics.gateway(site, '+', 'receipt', member.name)}"
    if member.role in ("viewer", "receiver"):  # what the patterns let everybody do in its own name
        who = certificate_name(member.name, member.role)
        yield f"topic deny {topics.gateway(site, who, '#')}"
        for each in _NAMED:
            yield f"topic deny {topics.gateway(site, '+', each, who)}"
    if member.role == "receiver":
        for each in _NOT_FOR_RECEIVERS:
            yield f"topic deny {topics.gateway(site, '+', each)}"
        yield f"topic deny {topics.desired(site, 'group/+')}"
        yield f"topic deny {topics.why(site, '#')}"
        return
    yield f"topic read {DEVICES}/#"
    if member.role in ("operator", "engineer"):
        yield f"topic write {topics.gateway(site, '+', 'cmd', '+')}"
    if member.role == "engineer":
        yield f"topic write {topics.gateway(site, '+', 'renewal', 'answer')}"
    if member.role in ("gateway", "engineer"):  # gateways: again what engineers have signed; a broker that moves is empty
        yield f"topic write {topics.desired(site, 'gw/+')}"
        yield f"topic write {topics.desired(site, 'group/+')}"
    if member.role == "gateway":
        yield f"topic write {topics.gateway(site, '+', 'config', 'kept')}"
        yield f"topic write {topics.other_broker(site, member.name)}"
        yield f"topic write {topics.why_answer(site, '+')}"
        yield f"topic write {DEVICES}/#"  # what an adapter says to equipment


def _of_device(member: Member) -> Iterator[str]:
    """Nothing of ours. Equipment whose topics are what its maker has chosen gets the name that they begin with."""
    yield f"topic deny {topics.ROOT}/#"
    yield f"topic readwrite {DEVICES}/{member.name}/#"
    yield f"topic readwrite {member.name}/#"


class Rules:
    """What the texts of both doors let be written, as mosquitto 2.0 judges it: a denial first, whatever stands before it."""

    def __init__(self, members: str = "", people: str = "") -> None:
        self._of = _sections(members)
        self._patterns = self._of.pop("", [])
        by_password = _sections(people)
        self._people = set(by_password)
        """No member has such a name in its certificate: a person's has a prefix there, and no gateway is called as a person."""
        self._of |= by_password

    def may_write(self, user: str, client_id: str, topic: str) -> bool:
        rules = self._of.get(user, [])
        if user not in self._people and not set("+#") & set(user + client_id):  # mosquitto takes no such name for a pattern
            rules = [*rules, *((access, each.replace("%u", user)) for access, each in self._patterns)]
        fit = {access for access, each in rules if topics.matches(topic, each)}
        return "deny" not in fit and not fit.isdisjoint(("write", "readwrite"))


def _sections(text: str) -> dict[str, list[tuple[str, str]]]:
    """User ("": the patterns) -> access and topic of each line."""
    found: dict[str, list[tuple[str, str]]] = {}
    user = ""
    for kind, _, rest in (line.partition(" ") for line in text.splitlines()):
        access, _, topic = rest.partition(" ")
        if kind == "user":
            user = rest
        elif kind in ("topic", "pattern"):
            found.setdefault("" if kind == "pattern" else user, []).append((access, topic))
    return found
