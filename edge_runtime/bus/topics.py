"""Every topic, built and parsed here and nowhere else. Root: edge/{site}/. docs/topics.md is generated from TOPICS."""

from __future__ import annotations

ROOT = "edge"

TOPICS: tuple[tuple[str, str, str], ...] = (
    ("gw/{gateway}/status", "retained, QoS 1", "Birth of a gateway (JSON); its last will says offline"),
    ("gw/{gateway}/data/{device}", "QoS 1", "A forwarded sample: values by point (JSON); to the broker only"),
    ("gw/{gateway}/result/{pipeline}", "QoS 1", "A result (JSON); to the broker only"),
    ("gw/{gateway}/event/{pipeline}", "QoS 1", "An event, raised or cleared (JSON); to the broker only"),
    ("gw/{gateway}/gap/{lane}", "QoS 1", "Records that are gone and will not come, and why (JSON); to the broker only"),
    ("gw/{gateway}/batch/{receiver}", "QoS 1", "Records of one epoch and lane for a receiver that confirms (JSON, gzip)"),
    ("gw/{gateway}/hello/{receiver}", "QoS 0", "A gateway asks a receiver what it has of these epochs (JSON)"),
    ("gw/{gateway}/receipt/{receiver}", "QoS 1", "What the receiver has on disk: ranges of seqs by epoch and lane (JSON)"),
)


def gateway(site: str, name: str, *rest: str) -> str:
    """gateway("s", "g", "status") -> edge/s/gw/g/status"""
    return "/".join((ROOT, site, "gw", name, *rest))


def parse(topic: str) -> tuple[str, str, tuple[str, ...]] | None:
    """edge/{site}/gw/{gateway}/{...rest} -> (site, gateway, rest); None if it is no such topic."""
    parts = topic.split("/")
    if len(parts) < 5 or parts[0] != ROOT or parts[2] != "gw":
        return None
    return parts[1], parts[3], tuple(parts[4:])
