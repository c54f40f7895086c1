"""Commands over MQTT: done once, in time, and in the audit log before they are done."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from steered import Steered
from worlds import Site, plc, simulated, until

from edge_runtime.bus import topics
from edge_runtime.bus.control import Command, CommandReply
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import commands
from edge_runtime.control.audit_check import entries
from edge_runtime.inference.shelf import Shelf
from edge_runtime.outbox.database import open_read_only
from edge_runtime.testing.adapter import Faulty

SPEED = {"name": "speed", "write": {"low": 0, "high": 100, "every_s_min": 0.1}}


def settings() -> dict[str, Any]:
    device = plc("x")
    device["points"] = [{"name": "x"}, SPEED]
    return {"devices": {"d": device}, "pipelines": {"p": {"device": "d", "points": ["x"], "window": {"count": 4}}}}


class Person:
    """Commands a gateway, and hears what it answers."""

    def __init__(self, steered: Steered) -> None:
        self.steered, self.replies = steered, list[CommandReply]()
        self._task = asyncio.create_task(self._listen(), name="person listens")

    async def _listen(self) -> None:
        connection = await self.steered._connect("hears-replies")
        await connection.subscribe(topics.gateway("s", "g", "cmd", "+", "reply"))
        while True:
            message = await connection.receive()
            connection.acknowledge(message)
            self.replies.append(msgspec.json.decode(message.payload, type=CommandReply))

    def payload(self, name: str = "one", **more: Any) -> bytes:
        now = self.steered.site.clock.now()
        whole = {"id": name, "issuer": "alice", "boot": now.boot, "until_ns": now.mono_ns + 10 * 10**9, **more}
        return json.dumps({key: value for key, value in whole.items() if value is not None}).encode()

    async def send(self, verb: str, payload: bytes, *, retain: bool = False) -> None:
        await self.steered.publish(topics.gateway("s", "g", "cmd", verb), payload, retain=retain)

    async def ask(self, verb: str, name: str = "one", **more: Any) -> CommandReply:
        count = len(self.replies)
        await self.send(verb, self.payload(name, **more))
        await until(lambda: len(self.replies) > count)
        return self.replies[-1]

    async def write(self, value: object, name: str = "one", **more: Any) -> CommandReply:
        return await self.ask("write", name, args={"point": "d/speed", "value": value}, **more)

    def close(self) -> None:
        self._task.cancel()


def device(steered: Steered) -> Faulty:
    adapter = steered.gateway.sources["d"]._adapter
    assert isinstance(adapter, Faulty)
    return adapter


def commanded(scenario: Any, folder: Path) -> None:
    async def whole(site: Site) -> None:
        async with Steered(site, **settings()).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await asyncio.sleep(0.5)
            try:
                await scenario(steered, person)
            finally:
                person.close()

    simulated(whole, folder)


def test_a_point_is_written_and_read_back(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        reply = await person.write(40)
        assert (reply.outcome, reply.id, reply.gateway, reply.verb) == ("verified", "one", "g", "write")
        assert reply.result["read_back"] == 40
        assert device(steered).received == [("speed", 40)]

    commanded(scenario, tmp_path)
    database = open_read_only(tmp_path / "data" / "audit.db")
    told = [each for each, _ in entries(database, tmp_path / "data") if each.kind == "command"]
    database.close()
    assert [(each.actor, each.subject, each.outcome, each.requested) for each in told] == [
        ("alice", "point d/speed", "begun", "40"),
        ("alice", "point d/speed", "verified", "40"),
    ]


def test_the_same_message_again_is_answered_and_not_done(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        payload = person.payload(args={"point": "d/speed", "value": 40})
        for count in (1, 2, 3):
            await person.send("write", payload)
            await person.send("write", payload)  # also while it is being done
            await until(lambda count=count: len(person.replies) >= count)  # type: ignore[misc]
        await asyncio.sleep(1)
        assert {each.outcome for each in person.replies} == {"verified"}
        assert device(steered).received == [("speed", 40)]
        reply = await person.ask("drain", "one")
        assert "the id was used for another command" in reply.cause

    commanded(scenario, tmp_path)


def test_an_id_is_for_one_command_of_one_person(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        until_ns = steered.site.clock.now().mono_ns + 10**10
        good = await person.write(40, until_ns=until_ns)
        for value, more in (
            (0, {"until_ns": until_ns}),  # another value
            (40, {"until_ns": until_ns + 1}),
            (40, {"until_ns": until_ns, "issuer": "bob"}),
            (40, {"until_ns": 0, "issuer": "bob"}),  # who only asks is told of his own commands
        ):
            reply = await person.write(value, **more)
            assert (reply.outcome, reply.cause, reply.result) == ("refused", "the id was used for another command", {})
        assert (await person.ask("drain", until_ns=0)).cause == "the id was used for another command"
        assert await person.ask("write", until_ns=0) == good
        assert await person.write(40, until_ns=until_ns) == good
        assert device(steered).received == [("speed", 40)]

    commanded(scenario, tmp_path)


def test_while_a_command_is_being_done_nobody_else_is_answered_with_its_id(tmp_path: Path) -> None:
    """The other answer would be taken for its own, by who has sent it."""

    async def scenario(steered: Steered, person: Person) -> None:
        await person.send("write", person.payload(args={"point": "d/speed", "value": 40}))
        await person.send("write", person.payload(issuer="bob", args={"point": "d/speed", "value": 0}))
        await until(lambda: person.replies)
        await asyncio.sleep(1)
        assert person.replies[0].outcome == "verified"
        assert device(steered).received == [("speed", 40)]

    commanded(scenario, tmp_path)


def test_the_time_is_told_without_an_expiry_and_written_nowhere(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        for _ in range(2):
            reply = await person.ask("time", boot=None, until_ns=None)
            now = steered.site.clock.now()
            assert (reply.outcome, reply.result["boot"]) == ("done", now.boot)
            assert 0 <= now.mono_ns - reply.result["now_ns"] < 10**10
        assert (await person.ask("time", boot=None, until_ns=None, args={"x": 1})).cause == "args.x: unknown"
        assert (await person.write(40)).outcome == "verified"  # the id is free

    commanded(scenario, tmp_path)
    database = open_read_only(tmp_path / "data" / "audit.db")
    told = [each.via for each, _ in entries(database, tmp_path / "data") if each.kind == "command"]
    database.close()
    assert told == ["cmd/write", "cmd/write"]


SECRET = "canary-history-dunlin"


def test_no_layer_that_is_shown_tells_a_secret(tmp_path: Path) -> None:
    sinks = {"cloud": {"type": "mqtt", "url": f"mqtt://user:{SECRET}@x"}}

    async def whole(site: Site) -> None:
        async with Steered(site, **settings(), sinks=sinks).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await asyncio.sleep(0.5)
            reply = await person.ask("history", "f", args={"layer": "file"})
            assert (reply.outcome, reply.result) == ("refused", {})
            harmless: dict[str, Any] = {"log": {"level": "debug"}}
            await steered.want("group/default", revision=1, patch=harmless, note="why")
            mine = {"sinks": {"cloud": {"url": f"mqtt://other:{SECRET}@y"}}, "log": {"level": "info"}}
            await steered.want(revision=1, patch=mine)
            await until(lambda: "gateway" in steered.lifetime.book.base and not steered.lifetime.book.on_trial)
            await asyncio.sleep(5)
            reply = await person.ask("history", "g", args={"layer": "group/default"})
            assert json.loads(reply.result["document"])["patch"] == harmless
            reply = await person.ask("history", "h", args={"layer": "gateway"})
            shown = {**mine, "sinks": {"cloud": {"url": "mqtt://other:***@y"}}}
            assert json.loads(reply.result["document"]) == {"revision": 1, "patch": shown}
            assert (await person.ask("history", "i", args={"layer": "group/none"})).result == {"document": None}
            assert SECRET not in repr(person.replies)
            person.close()

    simulated(whole, tmp_path)
    database = open_read_only(tmp_path / "data" / "control.db")
    outcomes = list(database.execute("SELECT * FROM commands"))
    database.close()
    assert len(outcomes) == 4
    assert SECRET not in repr(outcomes)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"boot": "another boot"}, "expired"),
        ({"until_ns": 1}, "expired"),
        ({"boot": None}, "until when it holds"),
        ({"until_ns": None}, "until when it holds"),
        ({"until_ns": 10**18}, "longer than"),
    ],
)
def test_a_command_that_does_not_hold_here_and_now(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        reply = await person.write(40, **more)
        assert reply.outcome == "refused"
        assert said in reply.cause
        assert reply.hint
        assert device(steered).received == []

    commanded(scenario, tmp_path)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"point": "d/speed", "value": 101}, "out of the range"),
        ({"point": "d/x", "value": 1}, "may not be written"),
        ({"point": "nowhere/x", "value": 1}, "no device"),
        ({"point": "speed", "value": 1}, "DEVICE/POINT"),
        ({"point": "d/speed"}, "DEVICE/POINT"),
        ({"point": "d/speed", "value": [1]}, "holds a number"),
        ({"point": "d/speed", "value": 1, "force": True}, "args.force"),
        ({"point": "d/nothing", "value": 1}, "nothing"),
    ],
)
def test_what_may_not_be_written_is_refused_in_words(tmp_path: Path, args: dict[str, Any], said: str) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        reply = await person.ask("write", args=args)
        assert reply.outcome == "refused"
        assert said in f"{reply.cause} {reply.hint}"
        assert device(steered).received == []

    commanded(scenario, tmp_path)


def test_a_device_that_is_declared_and_that_no_pipeline_takes_is_not_said_to_be_missing(tmp_path: Path) -> None:
    whole = settings()
    whole["devices"]["unread"] = whole["devices"]["d"]

    async def scenario(site: Site) -> None:
        async with Steered(site, **whole).running() as steered:
            person = Person(steered)
            await asyncio.sleep(0.5)
            reply = await person.ask("write", args={"point": "unread/speed", "value": 1})
            person.close()
        assert (reply.outcome, reply.cause) == ("refused", "device 'unread' is not connected: no pipeline takes it")
        assert reply.hint == "add a pipeline with `device: unread`"

    simulated(scenario, tmp_path)


def test_no_log_tells_what_was_to_be_written(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        assert "101.5" in (await person.write(101.5)).cause
        said = steered.site.events("command")
        assert [each["outcome"] for each in said] == ["refused"]
        assert "101.5" not in str(said)

    commanded(scenario, tmp_path)


def test_what_is_no_command_is_counted_and_not_answered(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        good = person.payload(args={"point": "d/speed", "value": 40})
        other = person.payload("other", target="another-gateway", args={"point": "d/speed", "value": 40})
        for payload in (b"", b"{", b"[]", good[:-1], good.replace(b'"id"', b'"ID"'), other):
            await person.send("write", payload)
        await asyncio.sleep(1)
        assert person.replies == []
        assert device(steered).received == []
        found = steered.gateway.commands
        assert found is not None
        assert found.refused == {"malformed": 6}
        with pytest.raises(BadMessage, match="retained"):
            found._on_command("", _Message(topics.gateway("s", "g", "cmd", "write"), good, retain=True))  # type: ignore[arg-type]
        assert (await person.ask("nonsense")).hint

    commanded(scenario, tmp_path)


def test_a_write_that_a_crash_interrupted_is_unknown_and_never_repeated(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **settings()).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            book = steered.lifetime.book
            now = site.clock.now()
            until_ns = now.mono_ns + 100 * 10**9
            args = {"point": "d/speed", "value": 40}
            command = Command(id="one", verb="write", args=args, boot=now.boot, until_ns=until_ns)
            await book.begin("one", commands.claim(command, "alice"), now.boot, until_ns)  # and then the power fails
        async with Steered(site, **settings()).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await asyncio.sleep(0.5)
            reply = await person.write(40, until_ns=until_ns)
            assert reply.outcome == "unknown"
            assert device(steered).received == []
            person.close()

    simulated(scenario, tmp_path)


def test_a_command_that_breaks_is_logged_and_unknown_from_then_on(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        def broken(*_: Any, **__: Any) -> Any:
            raise ZeroDivisionError("a fault of ours")

        steered.gateway.sources["d"].write = broken  # type: ignore[method-assign]
        payload = person.payload(args={"point": "d/speed", "value": 40})
        await person.send("write", payload)
        await until(lambda: steered.site.events("command_broke"))
        assert not person.replies
        await person.send("write", payload)
        await until(lambda: person.replies)
        assert person.replies[0].outcome == "unknown"
        assert (await person.write(40, "two", until_ns=0)).outcome != "verified"  # and the next one is heard

    commanded(scenario, tmp_path)


def test_a_flood_is_bounded_and_counted(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        found = steered.gateway.commands
        assert found is not None
        for number in range(commands.FLOOD_MAX + 40):
            found._on_command("", _Message(topics.gateway("s", "g", "cmd", "drain"), person.payload(f"n{number}")))  # type: ignore[arg-type]
        assert found.refused["flood"] == 40
        await until(lambda: len(person.replies) == commands.FLOOD_MAX)

    commanded(scenario, tmp_path)


class _Message:
    def __init__(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.topic, self.payload, self.retain = topic, payload, retain


def test_a_part_is_restarted_and_nothing_else(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        pipeline, source = steered.gateway.pipelines["p"], steered.gateway.sources["d"]
        reply = await person.ask("restart", args={"part": "pipeline p"})
        assert reply.outcome == "done"
        assert steered.gateway.pipelines["p"] is not pipeline
        assert steered.gateway.sources["d"] is source
        reply = await person.ask("restart", "two", args={"part": "device nowhere"})
        assert reply.outcome == "refused"
        assert "device d" in reply.hint
        assert (await person.ask("drain", "three")).outcome == "done"
        await until(lambda: steered.gateway.pipelines["p"].state.windows > 2)

    commanded(scenario, tmp_path)


def test_everything_is_restarted_after_the_answer(tmp_path: Path) -> None:
    async def scenario(steered: Steered, person: Person) -> None:
        reply = await person.ask("restart", args={"part": "everything"})
        assert reply.outcome == "done"
        await until(lambda: len(steered.gateways) == 2)
        await until(lambda: steered.gateway.started.is_set())

    commanded(scenario, tmp_path)


def test_a_model_is_opened_anew_or_the_one_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    swapped: list[str] = []
    monkeypatch.setattr(Shelf, "exchange", lambda _self, model: swapped.append(model))

    async def scenario(site: Site) -> None:
        whole = settings()
        whole["devices"]["d"]["points"] = [{"name": "a"}, {"name": "b"}]
        whole["pipelines"]["p"] = {"device": "d", "window": {"count": 1}, "model": "m"}
        async with Steered(site, **whole).running() as steered:
            await until(lambda: "p" in steered.gateway.pipelines and steered.gateway.pipelines["p"].ready)
            person = Person(steered)
            await asyncio.sleep(0.5)
            pipeline = steered.gateway.pipelines["p"]
            reply = await person.ask("reload", args={"model": "m"})
            assert (reply.outcome, reply.result["pipelines"]) == ("done", ["p"])
            assert steered.gateway.pipelines["p"] is not pipeline
            assert swapped == []
            reply = await person.ask("reload", "two", args={"model": "m", "version": "before"})
            assert reply.outcome == "done"
            assert swapped == ["m"]
            assert (await person.ask("reload", "three", args={"model": "m", "version": "7"})).outcome == "refused"
            site.models.faults.refuse = "its file is damaged"
            reply = await person.ask("reload", "four", args={"model": "m"})
            assert reply.outcome == "failed"
            assert "its file is damaged" in reply.cause
            person.close()

    simulated(scenario, tmp_path)
