"""bus/broker.py against real brokers: what ports.Bus and ports.Connection promise."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import subprocess
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, iotcore, mosquitto
from waiting import until

from edge_runtime.bus import broker as limits
from edge_runtime.bus.broker import PahoBus, PahoConnection
from edge_runtime.ports import Address, BrokerError, Message, Will

BUS = PahoBus()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """In asyncio's debug mode; any warning (an exception nobody fetched, a socket left open) fails the test."""
    reported: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
        await main()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asyncio.run(watched(), debug=True)
        gc.collect()
    assert not reported


@asynccontextmanager
async def connected(address: Address, will: Will | None = None) -> AsyncIterator[PahoConnection]:
    connection = await BUS.connect(address, will=will)
    try:
        yield connection
    finally:
        await connection.close()


async def take(connection: PahoConnection, count: int) -> list[Message]:
    async with asyncio.timeout(10):
        return [await connection.receive() for _ in range(count)]


@pytest.fixture
def mosq(tmp_path: Path) -> Any:
    with mosquitto(tmp_path) as running:
        yield running


@pytest.mark.parametrize("kind", [mosquitto, iotcore])
def test_round_trip_qos_0_and_1_and_retained(tmp_path: Path, kind: Any) -> None:
    with kind(tmp_path) as broker:

        async def main() -> None:
            async with connected(broker.address(client_id="a")) as a, connected(broker.address(client_id="b")) as b:
                await a.publish("t/kept", b"kept", qos=1, retain=True)
                await b.subscribe("t/#", "other")
                assert [(m.topic, m.payload, m.retain) for m in await take(b, 1)] == [("t/kept", b"kept", True)]
                await a.publish("t/0", b"")
                await a.publish("t/1", bytes(range(256)) * 40, qos=1)
                got = await take(b, 2)
                assert [(m.topic, m.payload) for m in got] == [("t/0", b""), ("t/1", bytes(range(256)) * 40)]
                if kind is mosquitto:  # iotcore raises the QoS to the subscription's
                    assert [m.qos for m in got] == [0, 1]

        run(main)


def test_no_delayed_acknowledgement_of_the_kernel_in_a_round_trip(mosq: Broker) -> None:
    """Linux delays an acknowledgement by 40 ms at least; with Nagle's algorithm at the other end (mosquitto's default) each
    QoS 1 round trip takes one or two of these, unless TCP_QUICKACK is set again after every read."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with connected(mosq.address()) as one, connected(mosq.address()) as two:
            await one.subscribe("one")
            await two.subscribe("two")
            took = []
            for _ in range(20):
                start = loop.time()
                await one.publish("two", b"x", qos=1)
                two.acknowledge(await two.receive())
                await two.publish("one", b"y", qos=1)
                one.acknowledge(await one.receive())
                took.append(loop.time() - start)
            assert min(took[10:]) < 0.04

    run(main)


def test_messages_that_come_right_at_connack_are_kept_until_receive(mosq: Broker) -> None:
    async def main() -> None:
        address = mosq.address(client_id="keeper", clean=False)
        async with connected(address) as first:
            assert not first.session_present
            await first.subscribe("t")
        async with connected(mosq.address()) as other:
            for each in range(10):
                await other.publish("t", b"%d" % each, qos=1)
        async with connected(address) as again:
            assert again.session_present
            await asyncio.sleep(0.1)  # they stand in the inbox long before anybody asks
            assert [m.payload for m in await take(again, 10)] == [b"%d" % each for each in range(10)]

    run(main)


def test_acknowledgements_go_out_in_order_of_arrival(mosq: Broker) -> None:
    async def main() -> None:
        address = mosq.address(client_id="acker", clean=False)
        async with connected(address) as one, connected(mosq.address()) as other:
            await one.subscribe("t")
            for each in range(3):
                await other.publish("t", b"%d" % each, qos=1)
            zero, first, second = await take(one, 3)
            one.acknowledge(second)
            one.acknowledge(first)  # 0 is still out: nothing may be acknowledged
        async with connected(address) as one:
            again = await take(one, 3)
            assert [(m.payload, m.duplicate) for m in again] == [(b"0", True), (b"1", True), (b"2", True)]
            for stale in (zero, first, second):
                one.acknowledge(stale)  # another generation: the same message ids, not the same messages
            one.acknowledge(again[1])
            one.acknowledge(again[0])  # now 0 and 1
            one.acknowledge(again[0])
        async with connected(address) as one:
            assert [m.payload for m in await take(one, 1)] == [b"2"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await one.receive()

    run(main)


def test_an_id_that_is_used_again_is_not_acknowledged_by_the_old_message(mosq: Broker) -> None:
    """Message ids are used again within a connection too: a second acknowledgement of an old message must do nothing."""

    async def main() -> None:
        async with connected(mosq.address(client_id="x", clean=False)) as one:
            await one.subscribe("t")
            await one.publish("t", b"old", qos=1)
            (old,) = await take(one, 1)
            one.acknowledge(old)
            one.acknowledge(old)
            assert not one._done
            assert not one._unacknowledged

    run(main)


def test_receive_can_be_cancelled_without_losing_a_message(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address()) as one:
            await one.subscribe("t")
            got: list[bytes] = []

            async def impatient() -> None:
                while len(got) < 300:
                    try:
                        async with asyncio.timeout(0.0005):
                            message = await one.receive()
                            one.acknowledge(message)  # mosquitto hands out at most 20 that are not acknowledged
                            got.append(message.payload)
                    except TimeoutError:
                        continue

            task = asyncio.create_task(impatient())
            for each in range(300):
                await one.publish("t", b"%d" % each, qos=1)
            async with asyncio.timeout(10):
                await task
            assert sorted(got, key=int) == [b"%d" % each for each in range(300)]

    run(main)


def test_a_killed_broker_is_noticed_by_everyone_who_waits(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address()) as one:
            await one.subscribe("t")
            await one.publish("t", b"before", qos=1)
            await one.publish("other", b"", qos=1)  # its PUBACK comes after the message
            mosq.freeze()
            pending = [asyncio.create_task(one.publish("t", b"x", qos=1)) for _ in range(limits.PUBLISH_INFLIGHT_MAX + 50)]
            await asyncio.sleep(0.05)
            assert not any(task.done() for task in pending)
            mosq.kill()
            results = await asyncio.wait_for(asyncio.gather(*pending, return_exceptions=True), 20)
            assert all(isinstance(each, BrokerError) for each in results)
            assert (await one.receive()).payload == b"before"
            for failing in (one.receive(), one.publish("t", b""), one.publish("t", b"", qos=1), one.subscribe("t")):
                with pytest.raises(BrokerError):
                    await failing

    run(main)


def test_a_frozen_broker_is_noticed_by_keepalive(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address(keepalive_s=1)) as one:
            await asyncio.sleep(1.8)  # longer than keepalive: pings keep an idle connection
            await one.publish("t", b"", qos=1)
            mosq.freeze()
            with pytest.raises(BrokerError, match="did not answer"):
                async with asyncio.timeout(10):
                    await one.receive()
            mosq.thaw()

    run(main)


def test_who_does_not_receive_stops_the_socket_and_not_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inbox is bounded; the connection lives on over several keepalives; then everything comes, in order."""
    monkeypatch.setattr(limits, "RECEIVE_MAX", 100)
    total = 1_500
    with mosquitto(tmp_path, max_inflight_messages=0, max_queued_messages=0) as broker:

        async def main() -> None:
            async with connected(broker.address(keepalive_s=1)) as slow, connected(broker.address()) as fast:
                await slow.subscribe("t")
                await asyncio.gather(*(fast.publish("t", b"%05d" % each + bytes(500), qos=1) for each in range(total)))
                await asyncio.sleep(2.0)
                assert len(slow._inbox) == 100
                got = []
                for _ in range(total):
                    message = await slow.receive()
                    assert len(slow._inbox) <= 100
                    slow.acknowledge(message)
                    got.append(int(message.payload[:5]))
                assert got == list(range(total))

        run(main)


def test_the_inbox_is_bounded_in_bytes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVE_BYTES_MAX", 1_000_000)
    with mosquitto(tmp_path, max_inflight_messages=0, max_queued_messages=0) as broker:

        async def main() -> None:
            async with connected(broker.address()) as slow, connected(broker.address()) as fast:
                await slow.subscribe("t")
                for _ in range(50):
                    await fast.publish("t", bytes(100_000), qos=1)
                await until(lambda: slow._inbox_bytes >= 1_000_000)
                await asyncio.sleep(0.2)  # time for more to come in
                assert 1_000_000 <= slow._inbox_bytes < 1_100_000 + 1
                assert len(await take(slow, 50)) == 50

        run(main)


def test_a_coroutine_that_receives_and_publishes_does_not_wait_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PUBACK stands behind unread messages: reading goes on while an answer is awaited."""
    monkeypatch.setattr(limits, "RECEIVE_MAX", 50)
    with mosquitto(tmp_path, max_inflight_messages=0, max_queued_messages=0) as broker:

        async def main() -> None:
            async with connected(broker.address()) as one, connected(broker.address()) as fast:
                await one.subscribe("in")
                await asyncio.gather(*(fast.publish("in", b"x", qos=1) for _ in range(150)))
                await until(lambda: len(one._inbox) >= 50)
                await asyncio.sleep(0.1)  # time for more to come in
                assert len(one._inbox) == 50
                async with asyncio.timeout(10):
                    for _ in range(150):
                        one.acknowledge(await one.receive())
                        await one.publish("out", b"y", qos=1)

        run(main)


def test_an_inbox_that_overflows_ends_the_connection_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVE_MAX", 10)
    with mosquitto(tmp_path, max_inflight_messages=0, max_queued_messages=0) as broker:

        async def main() -> None:
            async with connected(broker.address()) as one, connected(broker.address()) as fast:
                await one.subscribe("in")
                broker.freeze()
                waiting = asyncio.create_task(one.publish("elsewhere", b"", qos=1))
                many = [asyncio.create_task(fast.publish("in", b"x", qos=1)) for _ in range(100)]
                one._published[0] = asyncio.get_running_loop().create_future()  # an answer that never comes, ...
                one._published[0].cancel()  # ... whose publisher has given up
                await asyncio.sleep(0.05)
                broker.thaw()
                await asyncio.wait([waiting, *many])
                waiting.exception()
                assert len(await take(one, 41)) == 41
                with pytest.raises(BrokerError, match="two connections"):
                    await one.receive()

        run(main)


def test_a_socket_that_is_full_makes_the_publisher_wait(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address(keepalive_s=60)) as one:
            mosq.freeze()
            sent: list[None] = []

            async def flood() -> None:
                while True:
                    sent.append(await one.publish("t", bytes(100_000)))

            with pytest.raises(TimeoutError):
                await asyncio.wait_for(flood(), 0.5)
            assert len(sent) < 200  # kernel buffers and one window, not all of memory
            assert len(one._line._out) < 400_000
            mosq.thaw()
            async with asyncio.timeout(10):
                await one.publish("t", b"last", qos=1)

    run(main)


def test_publishes_in_flight_are_bounded_and_a_cancelled_one_keeps_its_place(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address(keepalive_s=60)) as one:
            mosq.freeze()
            tasks = [asyncio.create_task(one.publish("t", b"x", qos=1)) for _ in range(3 * limits.PUBLISH_INFLIGHT_MAX)]
            await asyncio.sleep(0.05)
            assert len(one._client._out_messages) == limits.PUBLISH_INFLIGHT_MAX
            for task in tasks[:50] + tasks[-50:]:
                task.cancel()
            await asyncio.sleep(0.05)
            assert len(one._client._out_messages) == limits.PUBLISH_INFLIGHT_MAX
            mosq.thaw()
            async with asyncio.timeout(10):
                await asyncio.gather(*tasks[50:-50])
                await asyncio.gather(*(one.publish("t", b"x", qos=1) for _ in range(300)))
            assert one._window._value == limits.PUBLISH_INFLIGHT_MAX

    run(main)


def test_will(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address()) as watcher:
            await watcher.subscribe("status/#")
            will = Will("status/a", b"gone")
            async with connected(mosq.address(client_id="a"), will):
                pass  # a clean close: no will
            lost = await BUS.connect(mosq.address(client_id="a"), will=will)
            lost.abort()
            await lost.close()
            assert [(m.topic, m.payload) for m in await take(watcher, 1)] == [("status/a", b"gone")]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await watcher.receive()

    run(main)


def test_a_clean_close_sends_no_will_even_with_unread_messages_in_the_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing a socket in which bytes stand unread sends a RST, and the broker may never see acknowledgements or DISCONNECT."""
    monkeypatch.setattr(limits, "RECEIVE_MAX", 10)
    with mosquitto(tmp_path, max_inflight_messages=0, max_queued_messages=0) as broker:

        async def main() -> None:
            async with connected(broker.address()) as watcher, connected(broker.address()) as fast:
                await watcher.subscribe("status/#")
                one = await BUS.connect(broker.address(client_id="k", clean=False), will=Will("status/k", b"gone"))
                await one.subscribe("t")
                await asyncio.gather(*(fast.publish("t", b"%04d" % each + bytes(500), qos=1) for each in range(1_000)))
                for _ in range(5):
                    one.acknowledge(await one.receive())
                await one.close()
                async with connected(broker.address(client_id="k", clean=False)) as again:
                    assert (await again.receive()).payload[:4] == b"0005"
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await watcher.receive()

        run(main)


def test_a_clean_close_ends_the_stream_and_does_not_reset_it() -> None:
    """A server that has sent more than anybody reads, is slow to read itself, and listens to the very end."""

    async def main() -> None:
        heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got = await reader.read(1_000)
            writer.write(b"\x20\x02\x00\x00" + 3_000 * (b"\x30\xe9\x07\x00\x01t" + bytes(998)))  # CONNACK, PUBLISH
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(0.2)
            writer.transport.resume_reading()  # type: ignore[attr-defined]
            try:
                heard.set_result(got + await reader.read())
            except ConnectionError as error:
                heard.set_exception(error)
            writer.transport.abort()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        one = await BUS.connect(Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        assert (await one.receive()).topic == "t"
        await asyncio.sleep(0.1)
        for _ in range(10):
            await one.publish("t", bytes(100_000))
        await one.close()
        assert (await heard).endswith(b"\xe0\x00")  # DISCONNECT, then the end
        server.close()
        await server.wait_closed()

    run(main)


def test_a_close_that_is_given_up_leaves_no_socket_behind(mosq: Broker) -> None:
    async def main() -> None:
        one = await BUS.connect(mosq.address(keepalive_s=0))
        mosq.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await one.close()
        assert one._line.fileno() == -1
        mosq.thaw()

    run(main)


def test_close_is_idempotent_and_leaves_nothing_behind(mosq: Broker) -> None:
    threads = set(threading.enumerate())  # those of other tests in this process

    async def main() -> None:
        one = await BUS.connect(mosq.address())
        await one.subscribe("t")
        waiting = asyncio.create_task(one.receive())
        await asyncio.sleep(0)
        await one.close()
        await one.close()
        with pytest.raises(BrokerError, match="closed by us"):
            await waiting
        with pytest.raises(BrokerError, match="closed by us"):
            await one.publish("t", b"")
        assert one._line.fileno() == -1
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert set(threading.enumerate()) <= threads

    run(main)


def test_another_client_that_takes_our_id_is_named_as_a_possible_cause(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address(client_id="twin")) as one, connected(mosq.address(client_id="twin")):
            with pytest.raises(BrokerError, match="client_id"):
                async with asyncio.timeout(20):
                    await one.receive()

    run(main)


# --- refusals


def refused(address: Address, says: str, hint: str, timeout_s: float = 5.0) -> None:
    async def main() -> None:
        with pytest.raises(BrokerError) as caught:
            await BUS.connect(address, timeout_s=timeout_s)
        assert says in caught.value.cause
        assert hint in caught.value.hint
        assert "secret" not in str(caught.value)

    run(main)


def test_nobody_listens() -> None:
    refused(Address(host="127.0.0.1", port=free_port()), "connection refused", "running")


def test_a_host_name_that_does_not_exist() -> None:
    refused(Address(host="no-such-host.invalid"), "host name not found", "IP address")


def test_somebody_listens_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        refused(Address(host="127.0.0.1", port=deaf.getsockname()[1]), "no answer within 0.2 s", "MQTT", timeout_s=0.2)


def test_wrong_password_and_no_password(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "right"], check=True)
    with mosquitto(tmp_path, allow_anonymous="false", password_file=passwords) as broker:
        refused(broker.address(username="me", password="secret"), "not authorized", "password")
        refused(broker.address(), "not authorized", "password")

        async def main() -> None:
            async with connected(broker.address(username="me", password="right")):
                pass

        run(main)


def test_a_kept_session_without_a_client_id(mosq: Broker) -> None:
    refused(mosq.address(clean=False), "client id", "client_id")


def test_no_mqtt_over_there() -> None:
    async def main() -> None:
        async def http(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(http, "127.0.0.1", 0)
        with pytest.raises(BrokerError) as caught:
            await BUS.connect(Address(host="127.0.0.1", port=server.sockets[0].getsockname()[1]))
        assert "MQTT 3.1.1" in caught.value.hint
        server.close()
        await server.wait_closed()

    run(main)


def closed_but_for(folder: Path, topic: str) -> dict[str, Any]:
    """Settings of a mosquitto that refuses every other subscription."""
    plugin = next(Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"), None)
    if plugin is None:
        pytest.skip("MISSING: mosquitto_dynamic_security.so (Debian package mosquitto)")
    access = {"acltype": "subscribePattern", "topic": topic, "priority": 1, "allow": True}
    rules = {
        "defaultACLAccess": {"publishClientSend": True, "publishClientReceive": True, "subscribe": False, "unsubscribe": True},
        "roles": [{"rolename": "reader", "acls": [access]}],
        "groups": [{"groupname": "guests", "roles": [{"rolename": "reader", "priority": 1}]}],
        "anonymousGroup": "guests",
    }
    (folder / "rules.json").write_text(json.dumps(rules))
    return {"plugin": plugin, "plugin_opt_config_file": folder / "rules.json"}


def test_a_subscription_that_is_refused_is_named(tmp_path: Path) -> None:
    with mosquitto(tmp_path, **closed_but_for(tmp_path, "open/#")) as broker:

        async def main() -> None:
            async with connected(broker.address()) as one:
                await one.subscribe("open/#")
                with pytest.raises(BrokerError, match="refused: closed/a, closed/b"):
                    await one.subscribe("closed/a", "open/1", "closed/b")

        run(main)


def test_bad_filters_and_topics_are_named_and_do_no_harm(mosq: Broker) -> None:
    async def main() -> None:
        async with connected(mosq.address()) as one:
            for bad in ("a/#/b", "a+", "", "#a"):
                with pytest.raises(BrokerError, match="filter") as caught:
                    await one.subscribe("good", bad)
                assert repr(bad) in caught.value.cause
                assert "good" not in caught.value.cause
            for bad in ("", "a/+", "a/#"):
                with pytest.raises(BrokerError, match="topic"):
                    await one.publish(bad, b"", qos=1)
            await one.publish("t", b"", qos=1)

    run(main)


# --- TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for ca in ("ca", "stranger"):
        openssl("req", "-x509", *curve, "-keyout", f"{ca}.key", "-out", f"{ca}.pem", "-subj", f"/CN={ca}")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for who in ("server", "client"):
        openssl("req", *curve[:-2], "-keyout", f"{who}.key", "-out", f"{who}.csr", "-subj", f"/CN={who}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san")
        openssl("x509", "-req", "-in", f"{who}.csr", *signed, "-out", f"{who}.pem")
    return folder


def test_tls(tmp_path: Path, pki: Path) -> None:
    files = {"cafile": pki / "ca.pem", "certfile": pki / "server.pem", "keyfile": pki / "server.key"}
    with mosquitto(tmp_path, **files, require_certificate="true") as broker:
        mutual = broker.address(
            tls=True, ca_file=str(pki / "ca.pem"), cert_file=f"{pki}/client.pem", key_file=f"{pki}/client.key"
        )

        async def main() -> None:
            async with connected(mutual) as one:
                await one.subscribe("t")
                for size in (0, 100, 300_000):  # several TLS records: more stands in the TLS layer than in the socket
                    await one.publish("t", bytes(size), qos=1)
                await asyncio.gather(*(one.publish("t", bytes(1_000), qos=1) for _ in range(200)))
                got = await take(one, 3)
                assert [len(m.payload) for m in got] == [0, 100, 300_000]
                for each in got:
                    one.acknowledge(each)
                for _ in range(200):
                    one.acknowledge(await one.receive())

        run(main)
        refused(broker.address(tls=True, ca_file=str(pki / "stranger.pem")), "certificate was not accepted", "ca_file")
        refused(broker.address(tls=True, ca_file=str(pki / "ca.pem")), "certificate required", "MQTT 3.1.1")
        refused(broker.address(), "", "without TLS")
        refused(broker.address(tls=True, ca_file=str(tmp_path / "none.pem")), "no such file", "PEM")
        refused(
            broker.address(tls=True, cert_file=f"{pki}/client.pem", key_file=f"{pki}/server.key"), "mismatch", "belong together"
        )


def test_tls_to_a_port_without_it(mosq: Broker, pki: Path) -> None:
    refused(mosq.address(tls=True, ca_file=str(pki / "ca.pem")), "", "TLS port", timeout_s=2)


def test_a_session_with_a_heap_of_messages_can_be_subscribed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mosquitto 2.0 does not keep its limit of unacknowledged messages after a reconnect: all of them stand in front of the
    answer to SUBSCRIBE. They are received with a bounded memory, and the connection is not given up."""
    monkeypatch.setattr(limits, "RECEIVE_MAX", 100)
    heap = 2 * limits.OVERFLOW * limits.RECEIVE_MAX

    async def main(broker: Broker) -> None:
        kept = broker.address(client_id="kept", clean=False)
        async with connected(kept) as first:
            await first.subscribe("t")
        async with connected(broker.address()) as giver:
            await asyncio.gather(*(giver.publish("t", str(n).encode(), qos=1) for n in range(heap)))
        async with connected(kept) as again:
            async with asyncio.timeout(10):
                await again.subscribe("t")
            assert len(again._inbox) <= limits.RECEIVE_MAX
            assert [int(message.payload) for message in await take(again, heap)] == list(range(heap))
            await again.subscribe("u")
            await again.publish("u", b"still there")
            assert (await take(again, 1))[0].payload == b"still there"

    with mosquitto(tmp_path, max_queued_messages=0, max_inflight_messages=0) as broker:
        run(lambda: main(broker))


def test_a_late_refusal_of_a_subscription_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RECEIVE_MAX", 100)
    heap = 3 * limits.RECEIVE_MAX

    async def main(broker: Broker) -> None:
        kept = broker.address(client_id="kept", clean=False)
        async with connected(kept) as first:
            await first.subscribe("t")
        async with connected(broker.address()) as giver:
            await asyncio.gather(*(giver.publish("t", b"", qos=1) for _ in range(heap)))
        again = await BUS.connect(kept)
        await again.subscribe("secret/#")
        with pytest.raises(BrokerError, match="subscription refused: secret/#"):
            await take(again, heap + 1)
        await again.close()

    with mosquitto(tmp_path, max_queued_messages=0, max_inflight_messages=0, **closed_but_for(tmp_path, "t")) as broker:
        run(lambda: main(broker))
