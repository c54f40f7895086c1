"""The bus against bare paho with the same latency settings (add_reader, TCP_NODELAY, TCP_QUICKACK after each read)."""

from __future__ import annotations

import asyncio
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from brokers import Broker, mosquitto
from paho.mqtt.enums import CallbackAPIVersion

from edge_runtime.bus.broker import PahoBus

PAYLOAD = bytes(200)
TRIPS = 500
MESSAGES = 6_000
INFLIGHT = 100
ROUNDS = 5


class Bare:
    """paho and add_reader, as its documentation shows."""

    def __init__(
        self, port: int, topic: str, on_message: Callable[..., None], on_publish: Callable[..., None] | None = None
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.ready = asyncio.Event()
        self.client = client = paho.Client(CallbackAPIVersion.VERSION2)
        client.max_inflight_messages_set(INFLIGHT)
        client.on_socket_open = lambda _c, _u, sock: self.loop.add_reader(sock, self.read, sock)
        client.on_socket_close = lambda _c, _u, sock: self.loop.remove_reader(sock)
        client.on_socket_register_write = lambda _c, _u, sock: self.loop.add_writer(sock, client.loop_write)
        client.on_socket_unregister_write = lambda _c, _u, sock: self.loop.remove_writer(sock)
        client.on_connect = lambda *_: client.subscribe(topic, 1)
        client.on_subscribe = lambda *_: self.ready.set()
        client.on_message = on_message
        if on_publish is not None:
            client.on_publish = on_publish
        client.connect("127.0.0.1", port)
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def read(self, sock: Any) -> None:
        self.client.loop_read()
        if sock.fileno() >= 0:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_write()


async def bare_trip(broker: Broker) -> float:
    """Median seconds from publish to the answer, QoS 1 both ways."""
    got = asyncio.Event()
    server = Bare(broker.port, "ask", lambda c, _u, m: c.publish("answer", m.payload, 1))
    client = Bare(broker.port, "answer", lambda *_: got.set())
    await asyncio.gather(server.ready.wait(), client.ready.wait())
    took = []
    for _ in range(TRIPS):
        got.clear()
        start = time.perf_counter()
        client.client.publish("ask", PAYLOAD, 1)
        await got.wait()
        took.append(time.perf_counter() - start)
    server.close()
    client.close()
    return statistics.median(took)


async def our_trip(broker: Broker) -> float:
    bus = PahoBus()
    server, client = await bus.connect(broker.address()), await bus.connect(broker.address())
    await server.subscribe("ask")
    await client.subscribe("answer")

    async def serve() -> None:
        while True:
            message = await server.receive()
            server.acknowledge(message)
            await server.publish("answer", message.payload, qos=1)

    task = asyncio.create_task(serve())
    took = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            group.create_task(client.publish("ask", PAYLOAD, qos=1))
            client.acknowledge(await client.receive())
            took.append(time.perf_counter() - start)
    task.cancel()
    await server.close()
    await client.close()
    return statistics.median(took)


async def bare_rate(broker: Broker) -> float:
    """QoS 1 messages/s from a publisher to a subscriber in one loop, INFLIGHT unacknowledged."""
    loop, left, all_there = asyncio.get_running_loop(), MESSAGES, asyncio.Event()

    def arrived(*_: Any) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_there.set()

    room = asyncio.Semaphore(INFLIGHT)
    taker = Bare(broker.port, "t", arrived)
    giver = Bare(broker.port, "none", lambda *_: None, lambda *_: room.release())
    await asyncio.gather(taker.ready.wait(), giver.ready.wait())
    start = loop.time()
    for _ in range(MESSAGES):
        await room.acquire()
        giver.client.publish("t", PAYLOAD, 1)
    await all_there.wait()
    took = loop.time() - start
    taker.close()
    giver.close()
    return MESSAGES / took


async def our_rate(broker: Broker) -> float:
    bus, loop = PahoBus(), asyncio.get_running_loop()
    taker, giver = await bus.connect(broker.address()), await bus.connect(broker.address())
    await taker.subscribe("t")

    async def take() -> None:
        for _ in range(MESSAGES):
            taker.acknowledge(await taker.receive())

    async def give(count: int) -> None:
        for _ in range(count):
            await giver.publish("t", PAYLOAD, qos=1)

    start = loop.time()
    await asyncio.gather(take(), *(give(MESSAGES // INFLIGHT) for _ in range(INFLIGHT)))
    took = loop.time() - start
    await taker.close()
    await giver.close()
    return MESSAGES / took


def main() -> list[dict[str, Any]]:
    """Of the best of ROUNDS, in turn, so that a busy machine hits both."""
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder)) as broker:
        trips = [(asyncio.run(our_trip(broker)), asyncio.run(bare_trip(broker))) for _ in range(ROUNDS)]
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder), max_inflight_messages=0, log_type="none") as broker:
        rates = [(asyncio.run(our_rate(broker)), asyncio.run(bare_rate(broker))) for _ in range(ROUNDS)]
    ours, bare = (min(column) * 1e6 for column in zip(*trips, strict=True))
    fast, plain = (max(column) for column in zip(*rates, strict=True))
    return [
        {
            "name": "bus: MQTT QoS 1 request and reply, p50",
            "unit": "us",
            "ours": round(ours),
            "bare": round(bare),
            "ratio": ours / bare,
        },
        {
            "name": "bus: MQTT QoS 1 one way",
            "unit": "messages/s",
            "ours": round(fast),
            "bare": round(plain),
            "ratio": fast / plain,
        },
    ]


if __name__ == "__main__":
    for row in main():
        print(row)
