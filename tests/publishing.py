"""A machine that publishes: python publishing.py PORT RATE FIRST COUNT (a process of its own, with a client of its own).

Message n is {"id": n, "v": [n, n / 2, ..., seconds since 1970 when it was handed to the client]}, QoS 1. Says {"ready": true}
when connected, and at the end {"acknowledged": [n, ...]}: those that the broker has acknowledged.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

TOPIC = "factory/press"
INFLIGHT_MAX = 200
END_S_MAX = 30.0


def values(n: int) -> list[float]:
    """Eight points that only depend on n; the ninth is the time."""
    return [n, n / 2, -n, n % 7, n % 2, 3 * n, 100 - n, 7]


def main(port: int, rate: float, first: int, count: int) -> None:
    assert count < 2**16, "mids would start again"
    client = paho.Client(CallbackAPIVersion.VERSION2, client_id="machine")
    client.max_inflight_messages_set(INFLIGHT_MAX)
    connected, all_there = threading.Event(), threading.Event()
    acknowledged: list[int] = []  # mids; no lock is taken in the callback: paho holds one of its own then

    def on_publish(_client: object, _data: object, mid: int, *_: object) -> None:
        acknowledged.append(mid)
        if len(acknowledged) == count:
            all_there.set()

    client.on_connect = lambda *_: connected.set()
    client.on_publish = on_publish
    client.connect("127.0.0.1", port)
    client.loop_start()
    assert connected.wait(END_S_MAX)
    client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
    print(json.dumps({"ready": True}), flush=True)
    begin = time.monotonic()
    by_mid: dict[int, int] = {}
    for n in range(first, first + count):
        if rate:
            time.sleep(max(0.0, begin + (n - first) / rate - time.monotonic()))
        by_mid[client.publish(TOPIC, json.dumps({"id": n, "v": [*values(n), time.time()]}), 1).mid] = n
    all_there.wait(END_S_MAX)
    print(json.dumps({"acknowledged": sorted(by_mid[mid] for mid in acknowledged)}), flush=True)
    client.disconnect()
    client.loop_stop()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
