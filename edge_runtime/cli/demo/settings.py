"""What the demo needs, and the configuration of its gateway: an ordinary one, that a person may start from."""

from __future__ import annotations

import importlib.util
import shutil
import socket
from string import Template

from edge_runtime.ports import EdgeError

SITE, GATEWAY = "plant-1", "press-7"
ROWS_PER_S = 20
DRAIN_S_MAX = 15
SETTLED_S = 5.0
"""Who stops it earlier is not told that something did not happen."""
_PLACES = "/usr/sbin:/usr/local/sbin"
"""Debian puts mosquitto where a person's PATH does not look."""
RULE = "unusual"
MODEL = "shuttle-anomaly"

_TEMPLATE = Template("""\
# The demo's gateway: polls a press, looks for anomalies, delivers to a cloud whose uplink comes and goes.
site: $site
gateway: $gateway
broker: {mode: hosted, url: "mqtt://127.0.0.1:$broker_port"}
devices:
  press:
    adapter: modbus
    period_s: 0.05
    options: {host: 127.0.0.1, port: $press_port}
    points:
$features
      - {name: row, table: holding, address: 18, type: uint32}
      - {name: label, table: holding, address: 20, type: uint16}
pipelines:
  # Every row through the model; an event when the score is above the model's own threshold.
  anomaly:
    device: press
    points: [f1, f2, f3, f4, f5, f6, f7, f8, f9]
    window: {count: 1}
    model: $model
    rules:
      - {name: $rule, output: score, above: model, hysteresis: 0.05}
  # Every row as it is, with its label, so that anomalies can be compared.
  raw: {device: press}
sinks:
  # Through the uplink to `edge-runtime receive`: each record exactly once.
  cloud: {type: https, url: "http://127.0.0.1:$uplink_port", timeout_s: 2}
  # For people and SCADA on this site: to the broker only.
  local: {type: mqtt, url: local}
outbox: {drain_s_max: $drain_s_max}
""")


def text(*, broker_port: int, press_port: int, uplink_port: int) -> str:
    """The YAML."""
    features = "\n".join(f"      - {{name: f{at + 1}, table: holding, address: {2 * at}, type: float32}}" for at in range(9))
    return _TEMPLATE.substitute(
        site=SITE, gateway=GATEWAY, model=MODEL, rule=RULE, features=features, drain_s_max=DRAIN_S_MAX,
        broker_port=broker_port, press_port=press_port, uplink_port=uplink_port,
    )  # fmt: skip


def check_extras(view: bool) -> None:
    """Before anything starts. Raises EdgeError that names all that is missing. `view`: on a terminal."""
    needs = {
        "pymodbus (the press)": ("pymodbus",),
        "ai-edge-litert (the model)": ("ai_edge_litert", "tflite_runtime", "openvino"),
        **({"rich (the view)": ("rich",)} if view else {}),
        **(
            {}
            if shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)
            else {"a broker (mosquitto or iotcore)": ("iotcore",)}
        ),
    }
    missing = [name for name, modules in needs.items() if not any(importlib.util.find_spec(each) for each in modules)]
    if missing:
        raise EdgeError(f"the demo needs what is not installed: {', '.join(missing)}", "pip install 'edge-runtime[demo]'")


def free_port(wanted: int) -> int:
    """`wanted`, or any where that is 0. Raises EdgeError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError as error:
            raise EdgeError(f"port {wanted}: {(error.strerror or str(error)).lower()}", "give another --broker-port") from None
        return int(probe.getsockname()[1])
