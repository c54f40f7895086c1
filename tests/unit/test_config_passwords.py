"""Where people come with a password, and whose word must be signed: what of it is no configuration."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from edge_runtime import config
from edge_runtime.control import layers
from edge_runtime.control.layers import BadLayers, Layer, merge

BASE: dict[str, Any] = {"site": "s", "gateway": "g", "mesh": {"offers": ["wear"]}, "broker": {"mode": "hosted"}}


def load(**said: dict[str, Any]) -> config.Config:
    return config.load(yaml.safe_dump({**BASE, **{key: {**BASE.get(key, {}), **value} for key, value in said.items()}}), {})


def test_it_is_off_and_all_is_signed_unless_it_says_more() -> None:
    assert (load().broker.people_listen, load().control.require_signature) == ("", True)
    for where in ("0.0.0.0:8884", "[::]:8884", "127.0.0.1:8884", "localhost:8884"):
        assert load(broker={"people_listen": where}).broker.people_listen == where


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"broker": {"people_listen": "8884"}}, "is no host:port to listen on"),
        ({"broker": {"people_listen": "press-1:8884"}}, "is no address"),
        ({"broker": {"people_listen": "0.0.0.0:0"}}, "needs a port of its own"),
        ({"broker": {"people_listen": "0.0.0.0:1883"}}, "needs a port of its own"),
        ({"broker": {"people_listen": "0.0.0.0:8884", "url": "mqtt://127.0.0.1:8884"}}, "needs a port of its own"),
        ({"broker": {"people_listen": "0.0.0.0:8884", "mode": "external"}}, "goes with a broker that this gateway hosts"),
        ({"broker": {"people_listen": "0.0.0.0:8884", "program": "iotcore"}}, "iotcore lets everybody in"),
        (
            {"broker": {"people_listen": "0.0.0.0:9464"}, "metrics": {"listen": "127.0.0.1:9464"}},
            r"is the port of our broker \(broker\.people_listen\)",
        ),
        ({"control": {"require_signature": ["operator"]}}, "wants commands signed, and configuration not"),
        ({"control": {"require_signature": ["viewer"]}}, "should be 'engineer' or 'operator'"),
        ({"control": {"require_signature": "engineer"}}, "should be true or false or a list"),
    ],
)
def test_what_cannot_be_is_said(said: dict[str, Any], told: str) -> None:
    with pytest.raises(config.ConfigError, match=told):
        load(**said)


@pytest.mark.parametrize("wanted", [False, [], ["engineer"], ["engineer", "operator"], None])
@pytest.mark.parametrize("kind", ["config", "patch"])
@pytest.mark.parametrize("layer", ["gateway", "group/default"])
def test_whose_word_must_be_signed_nobody_says_over_mqtt(wanted: Any, kind: str, layer: str) -> None:
    for machine in (True, ["engineer"], None):
        base = {"site": "s", "gateway": "g", "control": {} if machine is None else {"require_signature": machine}}
        if wanted == machine:
            continue
        said = {"control": {"require_signature": wanted}}
        if kind == "config" and wanted is None:
            said = {"control": {}}  # a whole one that says nothing of it
        try:
            made = merge(base, [Layer(layer, 1, **{kind: said})]).config  # type: ignore[arg-type]
        except BadLayers as error:
            assert [fault.path for fault in error.faults] == ["control.require_signature"]
        else:
            assert made["control"].get("require_signature") == machine
            assert said == {"control": {}}
    assert ("control", "require_signature") in layers.KEPT
