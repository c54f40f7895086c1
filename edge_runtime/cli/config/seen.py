"""What a site's broker has of its gateways' configuration: reports, documents, who is there (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_runtime.bus import control as messages
from edge_runtime.bus import presence, topics
from edge_runtime.bus.control import Desired, Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Birth
from edge_runtime.control.layers import DEFAULT, GATEWAY, Layer, layer_name, within_reach
from edge_runtime.ports import EdgeError, Message
from edge_runtime.trust import envelope
from edge_runtime.trust.roster import Forged

IN_FORCE = ("accepted", "trial", "held")
"""States of a layer whose newest document is the one that counts."""


class Said(NamedTuple):
    """A document on the broker. `wrong`: why it is none that a gateway would take."""

    desired: Desired | None
    wrong: EdgeError | None = None


class Seen:
    """Of one site. `of_gateway(payload, context, gateway)`, `of_person(payload)`: what was said, if they have signed it."""

    def __init__(self, site: str, of_gateway: Callable[[bytes, str, str], bytes], of_person: Callable[[bytes], bytes]) -> None:
        self.reports: dict[str, Reported] = {}
        self.documents: dict[str, Said] = {}
        """By target."""
        self.online: dict[str, bool] = {}
        self.forged: dict[str, EdgeError] = {}
        """Reports that were none, by the gateway in whose place they stand."""
        self._site, self._of_gateway, self._of_person = site, of_gateway, of_person
        self._prints: dict[str, str] = {}

    def filters(self, gateway: str = "+") -> tuple[str, ...]:
        """ "+": of all gateways."""
        site = self._site
        reported, status = (topics.gateway(site, gateway, *rest) for rest in (("config", "reported"), ("status",)))
        return reported, status, topics.desired(site, f"gw/{gateway}"), topics.desired(site, "group/+")

    def take(self, message: Message) -> str:
        """The gateway that has reported something new; "": none."""
        if (target := topics.desired_target(self._site, message.topic)) is not None:
            self.documents.pop(target, None)
            if message.payload:
                self.documents[target] = self._document(message.payload, target)
            return ""
        parsed = topics.parse(message.topic)
        if parsed is None or not message.payload:
            return ""
        _, gateway, rest = parsed
        if rest == ("status",) and (birth := birth_of(message.payload)):
            self.online[gateway] = birth.online
        return gateway if rest == ("config", "reported") and self._report(gateway, message.payload) else ""

    def layers(self, gateway: str) -> tuple[str, ...]:
        """Those that this gateway has, in their order."""
        config = self.reports[gateway].config or {}
        control = config.get("control")
        found = control.get("groups") if isinstance(control, dict) else None
        groups = [f"group/{each}" for each in found] if isinstance(found, list) else []
        return tuple(dict.fromkeys((DEFAULT, *groups, GATEWAY)))

    def members(self, target: str) -> list[str]:
        """Gateways for which this target is."""
        if target.startswith("gw/"):
            return [target.removeprefix("gw/")]
        return sorted(name for name in self.reports if target in self.layers(name))

    def above(self, gateway: str, layer: str) -> tuple[list[Layer], list[str]]:
        """What the layers above this one say to a gateway; and those of which it cannot be told."""
        order = self.layers(gateway)
        known: list[Layer] = []
        unknown: list[str] = []
        for name in order[order.index(layer) + 1 :] if layer in order else ():
            state = next((each for each in self.reports[gateway].layers if each.name == name), None)
            if state is None:
                continue
            desired = self.desired(f"gw/{gateway}" if name == GATEWAY else name)
            if desired is not None and state.state in IN_FORCE and desired.digest == state.hash:
                known.append(Layer(name, state.revision, config=desired.config, patch=desired.patch))
            else:
                unknown.append(name)
        return known, unknown

    def desired(self, target: str) -> Desired | None:
        """The document on the broker; None: there is none that counts."""
        said = self.documents.get(target)
        return said.desired if said else None

    def revision(self, target: str, members: Sequence[str]) -> int:
        """The next one: higher than what anybody holds. A document on the broker that is too far ahead is taken by nobody."""
        desired, layer = self.desired(target), layer_name(target)
        held = [each.revision for name in members for each in self.reports[name].layers if each.name == layer]
        said = (desired.revision if desired else 0) or 0
        return max([*held, said if within_reach(min(held, default=0), said) else 0], default=0) + 1

    def _document(self, payload: bytes, target: str) -> Said:
        try:
            return Said(messages.desired(self._of_person(payload), target))
        except (BadMessage, EdgeError) as error:
            return Said(None, error)

    def _report(self, gateway: str, payload: bytes) -> bool:
        """False: it is the same as before, or nobody's."""
        digest = hashlib.sha256(payload).hexdigest()
        if self._prints.get(gateway) == digest:
            return False
        try:
            report = messages.unpack(self._of_gateway(payload, "reported", gateway), Reported)
        except (BadMessage, Forged) as error:
            self.forged[gateway] = error
            return False
        self._prints[gateway], self.reports[gateway] = digest, report
        self.forged.pop(gateway, None)
        return True


def birth_of(payload: bytes) -> Birth | None:
    """Of a gateway's status. Who signed it is no matter for one who only looks."""
    try:
        return presence.unpack(envelope.unwrap(payload), Birth)
    except (BadMessage, Forged):
        return None
