"""Where metrics are to listen, as `edge-runtime check` sees it."""

from __future__ import annotations

import pytest
from test_config_mesh import REST, problems

from edge_runtime import config
from edge_runtime.address import BadAddress, listener
from edge_runtime.sources.registry import Registry


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:9464", ("::1", 9464)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_places(text: str, place: tuple[str, int]) -> None:
    assert listener(text) == place


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "localhost", "localhost:", "a:b", "::1:9464", "x:65536", "http://x:1", "x:1/"]
)
def test_no_places(text: str) -> None:
    with pytest.raises(BadAddress, match="no host:port"):
        listener(text)


def test_off_unless_it_is_asked_for() -> None:
    assert config.load(REST, Registry()).metrics is None
    asked = config.load(REST + "metrics: {}\n", Registry()).metrics
    assert asked is not None
    assert asked.listen == "127.0.0.1:9464"


def test_problems_have_a_line_and_a_hint() -> None:
    found = problems("metrics: {listen: everywhere}\n")
    assert list(found) == ["metrics.listen"]
    assert "127.0.0.1:9464" in found["metrics.listen"][1]
    found = problems("broker: {mode: hosted}\nmetrics: {listen: '127.0.0.1:1883'}\n")
    assert list(found) == ["metrics.listen"]
    assert "broker" in found["metrics.listen"][0]
    assert list(problems("metrics: {port: 1}\n")) == ["metrics.port"]
