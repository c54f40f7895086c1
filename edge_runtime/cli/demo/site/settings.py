"""The configurations of the demo's gateways: ordinary ones, that a person may start from."""

from __future__ import annotations

from collections.abc import Sequence
from string import Template

from edge_runtime.cli.demo import settings

SITE = settings.SITE
RULE = settings.RULE
SLOW_INFER_MS = 80
"""A window of the slow gateway; one comes every 50 ms. It hosts the broker only where nobody else does."""

_TEMPLATE = Template("""\
# One of the gateways of the demo's site: they find each other, agree on a broker, and share their windows.
site: $site
gateway: $gateway
broker: {mode: auto, url: "mqtt://127.0.0.1:$port"}
mesh:
  peers: [$peers]
  rank: $rank
devices:
  press:
    adapter: modbus
    period_s: 0.05
    options: {host: 127.0.0.1, port: $press_port}
    points:
$features
pipelines:
  anomaly:
    device: press
    window: {count: 1}
    model: $model
    deadline_s: 1
    rules:
      - {name: $rule, output: score, above: model, hysteresis: 0.05}
sinks:
  # To `edge-runtime receive`: each record exactly once.
  cloud: {type: https, url: "http://127.0.0.1:$receiver_port", timeout_s: 2}
  # For people and SCADA on this site, on whichever gateway the broker is: to the broker only.
  local: {type: mqtt, url: local}
outbox: {drain_s_max: $drain_s_max}
""")


def name(number: int) -> str:
    return f"gateway-{number + 1}"


def text(number: int, ports: Sequence[int], *, press_port: int, receiver_port: int) -> str:
    """The YAML of one gateway. `ports`: of all, in order."""
    features = "\n".join(f"      - {{name: f{at + 1}, table: holding, address: {2 * at}, type: float32}}" for at in range(9))
    peers = ", ".join(f'"127.0.0.1:{port}"' for at, port in enumerate(ports) if at != number)
    return _TEMPLATE.substitute(
        site=SITE, gateway=name(number), port=ports[number], peers=peers, rank=200 if number == 0 else 100, model=settings.MODEL,
        rule=RULE, features=features, press_port=press_port, receiver_port=receiver_port, drain_s_max=settings.DRAIN_S_MAX,
    )  # fmt: skip
