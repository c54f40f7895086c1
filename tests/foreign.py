"""A client that is none of ours (SCADA, a dashboard): python foreign.py HOST:PORT,HOST:PORT TOPIC...

It knows the addresses at which a site's broker may be, takes the first that answers, and goes on with the next when the
connection is lost. One line of JSON for each message, and for each connection.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

TRY_S = 0.1
CONNECT_S_MAX = 1.0
KEEPALIVE_S = 2


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)


def stay(host: str, port: int, topics: list[str]) -> None:
    """Until the connection is lost, or cannot be made."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect_timeout = CONNECT_S_MAX

    def connected(_client: Any, _data: Any, _flags: Any, code: Any, _more: Any) -> None:
        if not code.is_failure:
            say(connected=f"{host}:{port}")
            client.subscribe([(topic, 1) for topic in topics])

    def heard(_client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        say(topic=message.topic, retain=message.retain, hex=message.payload.hex())

    client.on_connect, client.on_message = connected, heard
    try:
        client.connect(host, port, KEEPALIVE_S)
    except OSError:
        return
    while client.loop(TRY_S) == paho.MQTT_ERR_SUCCESS:
        pass
    say(lost=f"{host}:{port}")


def main(addresses: str, topics: list[str]) -> None:
    while True:
        for address in addresses.split(","):
            host, _, port = address.rpartition(":")
            stay(host, int(port), topics)
        time.sleep(TRY_S)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
