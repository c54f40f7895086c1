"""What must go together in `broker` and `mesh`, as `edge-runtime check` says it."""

from __future__ import annotations

import pytest

from edge_runtime import config
from edge_runtime.config import ConfigError
from edge_runtime.sources.registry import Registry

REST = """\
site: plant
gateway: gw-1
devices: {rows: {adapter: replay, options: {file: rows.csv}, points: [{name: a, column: 0}]}}
"""


def problems(more: str) -> dict[str, tuple[str, str]]:
    try:
        config.load(REST + more, Registry())
    except ConfigError as error:
        return {each.path: (each.message, each.hint) for each in error.problems}
    return {}


@pytest.mark.parametrize(
    "more",
    [
        "broker: {mode: auto}\nmesh: {}\n",
        "broker: {mode: hosted, listen: 0.0.0.0}\nmesh: {peers: [10.0.0.2, 'gw-2:1884', '[fe80::1]:1883']}\n",
        "broker: {mode: hosted}\n",
        "broker: {mode: external, url: 'mqtts://me:pw@b'}\nmesh: {}\n",
        "broker: {mode: auto, listen: '::'}\nmesh: {discovery: 'off'}\n",
    ],
)
def test_what_goes_together(more: str) -> None:
    assert problems(more) == {}


@pytest.mark.parametrize(
    ("more", "path", "message", "hint"),
    [
        ("mesh: {}\n", "mesh", "needs a broker", "mode: auto"),
        ("broker: {mode: none}\nmesh: {}\n", "mesh", "needs a broker", "hosted"),
        ("broker: {mode: auto}\n", "broker.mode", "needs `mesh`", "mesh: {}"),
        ("broker: {mode: hosted, listen: everywhere}\n", "broker.listen", "is no address", "0.0.0.0"),
        ("broker: {mode: hosted, url: 'mqtts://127.0.0.1'}\n", "broker.url", "no TLS", "external"),
        ("broker: {mode: auto, url: 'mqtt://me:pw@127.0.0.1'}\nmesh: {}\n", "broker.url", "no passwords", "external"),
        ("broker: {mode: auto}\nmesh: {peers: [a, 'b:c']}\n", "mesh.peers[1]", "is no place", "host:port"),
        ("broker: {mode: auto}\nmesh: {rank: 0}\n", "mesh.rank", "", ""),
    ],
)
def test_what_does_not(more: str, path: str, message: str, hint: str) -> None:
    found = problems(more)
    assert list(found) == [path]
    assert message in found[path][0]
    assert hint in found[path][1]
