"""Who takes records. One file a sink, imported only when one of its kind is configured.

| file         | far end                      | confirms | a record arrives  |
|--------------|------------------------------|----------|-------------------|
| https.py     | a receiver, over HTTP(S)     | yes      | exactly once      |
| mqtt.py      | a receiver, through a broker | yes      | exactly once      |
| mqtt_live.py | a broker, and who subscribes | no       | to the broker only |

A sink makes one attempt and says how it went; when to try again is outbox/delivery.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_runtime import address as bus_address
from edge_runtime.config import AnySink, HttpsSink, MqttSink
from edge_runtime.ports import Address, Bus, Sink, SinkError, Worker
from edge_runtime.trust.identity import Identity


def make(
    name: str,
    settings: AnySink,
    *,
    site: str,
    gateway: str,
    bus: Bus,
    new_worker: Callable[[], Worker],
    local: Callable[[], Address] | None,
    resolve: Callable[[str], Path],
    identity: Identity | None = None,
) -> Sink:
    """The sink `name` as configured. `local`: where the local broker is now, for `url: local` (it raises BrokerError while it is
    nowhere; None: there will never be one); `resolve` makes a configured file name
    a path; `identity`: of this gateway, if the sink's far end is on the broker of its site: there receipts are signed. Raises
    SinkError when the settings cannot work."""

    def file(configured: str) -> Path | None:
        return resolve(configured) if configured else None

    match settings:
        case HttpsSink():
            from edge_runtime.outbox.sinks import https

            url, limit_s = https.checked(settings.url), settings.timeout_s
            token, ca = file(settings.token_file), file(settings.ca_file)
            return https.HttpsSink(site, gateway, url, new_worker, timeout_s=limit_s, token_file=token, ca_file=ca)
        case MqttSink():
            where = _where(name, settings, site, gateway, local, file)
            if settings.receiver is None:
                from edge_runtime.outbox.sinks import mqtt_live

                return mqtt_live.MqttLiveSink(site, gateway, bus, where, timeout_s=settings.timeout_s)
            from edge_runtime.outbox.sinks import mqtt, receipts

            opened = receipts.opener(settings.receiver, identity) if identity else None
            return mqtt.MqttSink(site, gateway, settings.receiver, bus, where, timeout_s=settings.timeout_s, opened=opened)


def _where(
    name: str,
    settings: MqttSink,
    site: str,
    gateway: str,
    local: Callable[[], Address] | None,
    file: Callable[[str], Path | None],
) -> Callable[[], Address]:
    """A stable client id: when we come back, the broker ends our old connection at once instead of keeping both."""
    client_id = f"edge-{site}-{gateway}-{name}"
    if settings.url == "local":
        if local is None:
            raise SinkError(f"sink {name}: there is no local broker", "set `broker.mode`, or give the sink the url of a broker")
        return lambda: msgspec.structs.replace(local(), client_id=client_id, clean=True)
    ca, cert, key = (str(file(each) or "") for each in (settings.ca_file, settings.cert_file, settings.key_file))
    fixed = bus_address.address(settings.url, client_id=client_id, ca_file=ca, cert_file=cert, key_file=key)
    return lambda: fixed
