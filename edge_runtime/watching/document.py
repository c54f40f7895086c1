"""docs/metrics.md, from the tables that the code uses: `python -m edge_runtime.watching.document > docs/metrics.md`."""

from __future__ import annotations

from edge_runtime.mesh.routing import Reason
from edge_runtime.watching.health import RULES, STATUSES
from edge_runtime.watching.metrics import METRICS

_HEAD = """\
# Metrics and health

This page is generated: `python -m edge_runtime.watching.document > docs/metrics.md`.

    metrics:
      listen: 127.0.0.1:9464

in the configuration of a gateway opens three pages. Without the section nothing listens. They need no password; who may reach the
address may read them. No point's value is in any of them, but names, counts and causes are: keep the port on loopback, or on a
network that may know these.

| page | answers |
|---|---|
| `GET /metrics` | Prometheus' text format 0.0.4 |
| `GET /health` | 200 or 503 and JSON: `{"status": ..., "problems": [{"what": ..., "cause": ..., "hint": ...}]}` |
| `GET /live` | 200, or 503 when a restart may help: the disk does not come back from a write. A gateway that hangs is silent |

For a liveness probe take `/live`, and for an alarm `/health` or the metric `edge_runtime_health_status`: who restarts a gateway
because its disk is full has a gateway that is always starting.

## What /health says

| status | HTTP | when |
|---|---|---|
"""

_RULES = """\

| status | `what` | when |
|---|---|---|
"""

_METRICS = """\

An uplink that is away does not make a gateway fail: it works offline, and keeps its records for later.

## Metrics

Counters count since the start of the process; they begin at 0 again with a configuration for which everything inside it is
built anew. Labels hold names of the configuration, or of a closed list; of peers, the first 32 by name and the others as `...`.
What a gateway does not have (a mesh, a thermometer) is left out. The names that do not begin with `edge_runtime_` are those
that other exporters use for the same thing.

| metric | type | labels | what |
|---|---|---|---|
"""

_REASONS = """\

## Reasons of `edge_runtime_mesh_decisions_total`

| `reason` | in the words of `edge-runtime mesh why` |
|---|---|
"""


def document() -> str:
    """The text of docs/metrics.md."""
    statuses = "".join(f"| `{status}` | {code} | {when} |\n" for status, code, when in STATUSES)
    rules = "".join(f"| {status} | `{what}` | {when} |\n" for status, what, when in RULES)
    metrics = "".join(
        f"| `{each.name}` | {each.kind} | {', '.join(f'`{label}`' for label in each.labels)} | {each.help} |\n"
        for each in METRICS
    )
    reasons = "".join(f"| `{each.name.lower()}` | {each.value} |\n" for each in Reason)
    return _HEAD + statuses + _RULES + rules + _METRICS + metrics + _REASONS + reasons


if __name__ == "__main__":
    print(document(), end="")
