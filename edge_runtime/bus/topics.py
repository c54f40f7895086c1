"""Every topic, built and parsed here and nowhere else. Root: edge/{site}/. docs/topics.md is generated from TOPICS."""

from __future__ import annotations

import re

from edge_runtime.records import Lane

ROOT = "edge"

TOPICS: tuple[tuple[str, str, str], ...] = (
    ("gw/{gateway}/status", "QoS 1, retained, will", "A gateway is here, or gone: what it can compute, may it host (JSON)"),
    ("gw/{gateway}/load", "QoS 0", "Heartbeat: what waits, how long windows take, temperature, power (JSON)"),
    ("gw/{to}/task/{from}", "QoS 0", "A window for a peer's model, or the end of interest in it (binary)"),
    ("gw/{to}/reply/{from}", "QoS 0", "The answer: result, or refusal with the reason (binary)"),
    ("gw/{to}/fetch/{from}", "QoS 1", "Asks for a part of a file of a model (binary)"),
    ("gw/{to}/chunk/{from}", "QoS 1", "That part, at most 60 KiB, or why there is none (binary)"),
    ("brokers", "QoS 1, retained", "Where the site's broker is, and every place where it may be (JSON)"),
    ("brokers/{gateway}", "QoS 1", "Another gateway says that it hosts a broker, too, and where: it outranks this one (JSON)"),
    ("gw/{gateway}/config/desired", "QoS 1, retained", "What a person wants of one gateway: a configuration, or a patch (JSON)"),
    ("group/{group}/config/desired", "QoS 1, retained", "The same for a group; every gateway is in the group `default` (JSON)"),
    ("gw/{gateway}/config/reported", "QoS 1, retained", "What became of it: state, errors, the configuration as it is (JSON)"),
    (
        "gw/{gateway}/config/kept",
        "QoS 1, retained",
        "The last report of a gateway, as another one keeps it for who replaces it (JSON)",
    ),
    ("gw/{gateway}/cmd/{verb}", "QoS 1", "A command: write a point, reload a model, drain, ... (JSON)"),
    ("gw/{gateway}/cmd/{verb}/reply", "QoS 1", "What became of it (JSON)"),
    ("roster", "QoS 1, retained", "Who belongs to the site, and who does no more; signed by its authority (JSON)"),
    ("gw/{gateway}/renewal/request", "QoS 1, retained", "Its certificate should be renewed soon: a request, signed (JSON)"),
    ("gw/{gateway}/renewal/answer", "QoS 1, retained", "The renewed certificate, signed by the site's authority (JSON)"),
    ("why/{result}", "QoS 0", "Why was the window of this result computed where it was? Anybody may ask (JSON)"),
    ("why/{result}/answer", "QoS 0", "The gateway that decided it tells: reasons, estimates, what became of it (JSON)"),
    ("gw/{gateway}/data/{pipeline}", "QoS 1", "A forwarded sample: values by point (JSON); to the broker only"),
    ("gw/{gateway}/result/{pipeline}", "QoS 1", "A result (JSON); to the broker only"),
    ("gw/{gateway}/event/{pipeline}", "QoS 1", "An event, raised or cleared (JSON); to the broker only"),
    ("gw/{gateway}/gap/{lane}", "QoS 1", "Records that are gone and will not come, and why (JSON); to the broker only"),
    ("gw/{gateway}/batch/{receiver}", "QoS 1", "Records of one epoch and lane for a receiver that confirms (JSON, gzip)"),
    ("gw/{gateway}/hello/{receiver}", "QoS 0", "A gateway asks a receiver what it has of these epochs (JSON)"),
    ("gw/{gateway}/receipt/{receiver}", "QoS 1", "What the receiver has on disk: ranges of seqs by epoch and lane (JSON)"),
)

LIVE: dict[Lane, str] = {Lane.SAMPLE: "data", Lane.RESULT: "result", Lane.EVENT: "event", Lane.GAP: "gap"}
"""The topic of one record for people and SCADA, by its kind: a privacy class has none of its own."""

_FORBIDDEN = re.compile(r"[+#/\x00-\x1f\x7f]")


def gateway(site: str, name: str, *rest: str) -> str:
    """gateway("s", "g", "status") -> edge/s/gw/g/status"""
    return "/".join((ROOT, site, "gw", name, *rest))


def brokers(site: str) -> str:
    """edge/s/brokers"""
    return "/".join((ROOT, site, "brokers"))


def other_broker(site: str, name: str) -> str:
    """edge/s/brokers/g; other_broker("s", "+") of all gateways"""
    return "/".join((brokers(site), name))


def why(site: str, result: str) -> str:
    """why("s", "r") -> edge/s/why/r; why("s", "+") of all results"""
    return "/".join((ROOT, site, "why", result))


def why_answer(site: str, result: str) -> str:
    """why_answer("s", "r") -> edge/s/why/r/answer"""
    return "/".join((why(site, result), "answer"))


def desired(site: str, target: str) -> str:
    """desired("s", "gw/g") -> edge/s/gw/g/config/desired; desired("s", "group/default") of a group"""
    return "/".join((ROOT, site, target, "config", "desired"))


def desired_target(site: str, topic: str) -> str | None:
    """The other way round: gw/g or group/default; None: no such topic."""
    parts = topic.split("/")
    if len(parts) != 6 or parts[:2] != [ROOT, site] or parts[2] not in ("gw", "group") or parts[4:] != ["config", "desired"]:
        return None
    return "/".join(parts[2:4])


def roster(site: str) -> str:
    """edge/s/roster"""
    return "/".join((ROOT, site, "roster"))


def live(site: str, name: str, lane: Lane, source: str) -> str:
    """live("s", "g", Lane.RESULT, "wear") -> edge/s/gw/g/result/wear; what MQTT forbids in a level becomes _."""
    return gateway(site, name, LIVE[lane.kind], _FORBIDDEN.sub("_", source) or "_")


def parse(topic: str) -> tuple[str, str, tuple[str, ...]] | None:
    """edge/{site}/gw/{gateway}/{...rest} -> (site, gateway, rest); None if it is no such topic."""
    parts = topic.split("/")
    if len(parts) < 5 or parts[0] != ROOT or parts[2] != "gw":
        return None
    return parts[1], parts[3], tuple(parts[4:])


def matches(topic: str, pattern: str) -> bool:
    """MQTT 3.1.1, 4.7: `+` one level, `#` this level and all below; wildcards do not open a $-topic."""
    if topic.startswith("$") and pattern[:1] in "+#":
        return False
    levels, wanted = topic.split("/"), pattern.split("/")
    if wanted[-1] == "#":
        wanted.pop()
        levels = levels[: len(wanted)] if len(levels) >= len(wanted) else levels
    return len(levels) == len(wanted) and all(want in ("+", level) for level, want in zip(levels, wanted, strict=True))


def document() -> str:
    """The text of docs/topics.md."""
    lines = [
        "# MQTT topics",
        "",
        f"All topics start with `{ROOT}/{{site}}/`. This page is generated:",
        "`python -m edge_runtime.bus.topics > docs/topics.md`.",
        "",
        "| topic | how | what |",
        "|---|---|---|",
        *(f"| `{topic}` | {how} | {what} |" for topic, how, what in TOPICS),
        "",
        '"To the broker only" means that the broker has confirmed the message, not that anybody has it: a broker drops',
        "messages of a subscriber whose queue is full. Records that must arrive go in batches to a receiver, which answers",
        "with a receipt: see [receiver.md](receiver.md).",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(document(), end="")
