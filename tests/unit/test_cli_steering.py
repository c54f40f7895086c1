"""From what a person types to a document, and what it would do: patches, previews, YAML, what came of it, whose word counts."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from trusted import Site

from edge_runtime import document
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import CommandReply, Desired, LayerState, Reported
from edge_runtime.cli.config import patching, shape
from edge_runtime.cli.config.following import FIRST_WORD_S, Followed, Following
from edge_runtime.cli.config.preview import Preview, Stack, preview
from edge_runtime.cli.config.seen import Seen
from edge_runtime.cli.config.set import believed, who_knows
from edge_runtime.cli.config.wanting import Wanting, finish
from edge_runtime.cli.mesh.finding import Plan
from edge_runtime.cli.talking import Talk
from edge_runtime.control.layers import BadLayers, Layer, merge
from edge_runtime.ports import EdgeError, Message
from edge_runtime.sources.registry import Registry
from edge_runtime.trust.roster import Forged

CONFIG: dict[str, Any] = {
    "site": "plant",
    "gateway": "press-1",
    "broker": {"mode": "external", "url": "mqtt://u:***@127.0.0.1"},
    "devices": {
        "press": {
            "adapter": "modbus",
            "options": {"host": "127.0.0.1", "port": 1502},
            "points": [{"name": "t.max", "address": 0}, {"name": "p", "address": 2}],
        },
        "odd": {"adapter": "martian", "options": {"pin": "***"}, "points": [{"name": "x"}]},
    },
    "pipelines": {
        "wear": {
            "device": "press",
            "window": {"count": 4},
            "rules": [{"name": "hot", "output": "p.max", "above": 80}, {"name": "cold", "output": "p.min", "below": 5}],
        }
    },
}


# --- what is typed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "patch"),
    [
        ("pipelines.wear.rules.hot.above=85", {"pipelines": {"wear": {"rules": {"hot": {"above": 85}}}}}),
        ("metrics=", {"metrics": None}),
        ("metrics=null", {"metrics": None}),
        ('devices.press.points["t.max"].high=90', {"devices": {"press": {"points": {"t.max": {"high": 90}}}}}),
        ("control.groups=[a, b]", {"control": {"groups": ["a", "b"]}}),
        ("broker.url=mqtt://u:p=q@h", {"broker": {"url": "mqtt://u:p=q@h"}}),
        ('log.level="no"', {"log": {"level": "no"}}),
        ("window={count: 1e1}", {"window": {"count": 10.0}}),
    ],
)
def test_an_assignment_is_a_patch(said: str, patch: dict[str, Any]) -> None:
    assert patching.patch([patching.assignment(said)]) == patch


@pytest.mark.parametrize("said", ["a", "=1", "a..b=1", ".a=1", "a.=1", 'a["b=1', "a[0]=1", "a=[1", "a b=1", "a={b: 1, b: 2}"])
def test_what_is_no_assignment_is_refused_with_a_hint(said: str) -> None:
    with pytest.raises(EdgeError) as caught:
        patching.assignment(said)
    assert caught.value.hint


def test_of_two_assignments_none_is_part_of_the_other() -> None:
    for one, other in (("a.b=1", "a=2"), ("a=2", "a.b=1"), ("a=1", "a=1")):
        with pytest.raises(EdgeError, match="part of the other"):
            patching.patch([patching.assignment(one), patching.assignment(other)])
    assert patching.patch([patching.assignment("a.b=1"), patching.assignment("a.c=2")]) == {"a": {"b": 1, "c": 2}}


def test_a_change_keeps_what_the_layer_said_before() -> None:
    held = Desired(patch={"log": {"level": "info"}, "metrics": None})
    made = patching.on_top(held, {"log": {"format": "json"}, "metrics": {"listen": "127.0.0.1:1"}}, "gateway")
    assert made == {"patch": {"log": {"level": "info", "format": "json"}, "metrics": {"listen": "127.0.0.1:1"}}}
    assert patching.on_top(None, {"log": None}, "gateway") == {"patch": {"log": None}}


def test_a_change_of_a_whole_configuration_is_one_again() -> None:
    held = Desired(config={"log": {"level": "info"}, "pipelines": CONFIG["pipelines"]})
    change = {"pipelines": {"wear": {"rules": {"hot": None, "cold": {"below": 6}}}}}
    made = patching.on_top(held, change, "gateway")["config"]
    assert made["pipelines"]["wear"]["rules"] == [{"name": "cold", "output": "p.min", "below": 6}]
    with pytest.raises(BadLayers, match="belongs to the machine"):
        patching.on_top(held, {"site": "x"}, "gateway")


LISTS = {"pipelines": {"wear": {"rules": [{"name": "hot", "output": "p.max", "above": 1}]}}}
PATCHES: list[dict[str, Any]] = [
    {},
    {"pipelines": {"wear": {"rules": {"hot": {"above": 85, "clear_after_s": None}}}}},
    {"pipelines": {"wear": {"rules": {"hot": None, "new": {"output": "p.max", "above": 2, "below": None}}}}},
    LISTS,
    {"pipelines": {"wear": {"rules": {"new": None}}}},
    {"devices": {"press": {"period_s": 2, "points": {"p": {"unit": "bar"}}}}},
    {"devices": {"press": {"period_s": None, "points": {"p": {"unit": None}}}}},
]


@pytest.mark.parametrize("first", PATCHES)
@pytest.mark.parametrize("then", PATCHES)
def test_one_patch_does_what_two_did(first: dict[str, Any], then: dict[str, Any]) -> None:
    rules = [each.get("pipelines", {}).get("wear", {}).get("rules") for each in (first, then)]
    if all(isinstance(each, dict) for each in rules) and any(rules[0][name] is None and rules[1].get(name) for name in rules[0]):
        return  # said anew after it was removed: no patch can say that
    one_by_one = merge(merge(CONFIG, [Layer("gateway", 1, patch=first)]).config, [Layer("gateway", 2, patch=then)]).config
    assert merge(CONFIG, [Layer("gateway", 1, patch=patching.composed(first, then))]).config == one_by_one


def test_asterisks_are_found_wherever_they_are() -> None:
    content = {"broker": {"url": "mqtt://u:***@h"}, "devices": {"d": {"points": [{"name": "a", "key": "***"}]}}, "x": "** *"}
    assert patching.hidden(content) == ["broker.url", "devices.d.points.a.key"]


# --- what would happen -----------------------------------------------------------------------------------------------


def seen_as(patch: dict[str, Any] | None = None, *, above: list[Layer] | None = None, **stack: Any) -> Preview:
    config = stack.pop("config", None)
    layer = Layer(stack.pop("layer", "gateway"), 1, patch=patch, config=config)
    report = Reported(gateway="press-1", state="active", config=CONFIG)
    return preview(report, Stack(layer, above=above or [], **stack), Registry())


def rule(**words: Any) -> dict[str, Any]:
    return {"pipelines": {"wear": {"rules": {"hot": words}}}}


def test_a_threshold_restarts_nothing_although_secrets_and_an_adapter_are_not_known_here() -> None:
    found = seen_as(rule(above=85))
    assert found.changes == (("pipelines.wear.rules.hot.above", "80", "85"),)
    assert found.does == ("pipeline wear: rules swapped (hot.above), nothing restarts",)
    assert (found.restarts, found.faults, found.unknown) == ((), (), ())


def test_what_restarts_is_told() -> None:
    assert seen_as({"devices": {"press": {"period_s": 0.5}}}).restarts == ("device press",)
    assert seen_as({"devices": {"odd": {"options": {"pin": "new"}}}}).restarts == ("device odd",)
    assert seen_as({"control": {"groups": ["a"]}}).restarts == ("everything",)
    assert seen_as({"devices": {"press": {"points": {"p": {"unit": "bar"}}}}}).restarts == ("device press", "pipeline wear")
    assert seen_as({}).does == ()


def test_a_secret_is_compared_and_never_shown() -> None:
    sink = {"sinks": {"cloud": {"type": "https", "url": "http://u:hush@h"}}}
    shown = {"sinks": {"cloud": {"type": "https", "url": "http://u:***@h"}}}
    report = Reported(gateway="press-1", state="active", config={**CONFIG, **shown})

    def found(layer: Layer, **stack: Any) -> Preview:
        return preview(report, Stack(layer, **stack), Registry())

    same = Layer("gateway", 1, patch=sink)
    assert found(same, before=sink).changes == ()
    assert found(Layer("group/a", 1, patch={}), above=[same]).changes == ()
    changed = found(same, before={"sinks": {"cloud": {"type": "https", "url": "http://u:other@h"}}})
    assert changed.changes == (("sinks.cloud.url", '"http://u:***@h"', '"http://u:****@h"'),)
    assert changed.restarts == ("sink cloud",)
    assert found(same).restarts == ("sink cloud",)  # of the file: nobody here knows whether it is the same


def test_only_what_the_document_makes_wrong_is_told() -> None:
    [fault] = seen_as(rule(above="warm")).faults
    assert fault.path == "pipelines.wear.rules.hot.above"
    [fault] = seen_as({"pipelines": {"wear": {"rules": {"new": {"above": 1}}}}}).faults
    assert (fault.path, fault.message) == ("pipelines.wear.rules.new.output", "is missing")
    [fault] = seen_as({"site": "other"}).faults
    assert fault.path == "site"


def test_of_a_gateway_in_safe_mode_nothing_is_missing() -> None:
    """It shows broker and control alone, and a fix builds on all that its file says: it has to be published."""
    config = {each: CONFIG[each] for each in ("site", "gateway", "broker")}
    report = Reported(gateway="press-1", state="reverted", mode="safe", config=config)

    def seen(patch: dict[str, Any]) -> Preview:
        return preview(report, Stack(Layer("gateway", 1, patch=patch)), Registry())

    for patch in ({"devices": {"press": {"period_s": 0.5}}}, rule(above=85)):
        found = seen(patch)
        assert (found.faults, found.moved) == ((), None)
        assert found.unknown
    moved = seen({"broker": {"url": "mqtt://elsewhere"}}).moved
    assert moved is not None
    assert moved.broker.url == "mqtt://elsewhere"


def test_a_higher_layer_counts_more() -> None:
    own = Layer("gateway", 1, patch=rule(above=80))
    found = seen_as(rule(above=3, clear_after_s=9), layer="group/a", above=[own])
    assert found.changes == (("pipelines.wear.rules.hot.clear_after_s", "(nothing)", "9"),)


def test_what_falls_back_cannot_be_told() -> None:
    found = seen_as(rule(above=85), before={**rule(above=80, clear_after_s=4), "log": {"level": "info"}})
    assert found.unknown == (
        "pipelines.wear.rules.hot.clear_after_s: falls back to what the layers below say",
        "log.level: falls back to what the layers below say",
    )
    assert seen_as(config=CONFIG, before=rule(above=1)).unknown == ()
    assert "what it says is not known here" in seen_as({}, unclear=["gateway"]).unknown[0]


# --- how it is shown -------------------------------------------------------------------------------------------------

NAMES = st.text(max_size=8) | st.sampled_from(
    ["a", "t.max", "1e3", "no", "null", "- x", "#", "a: b", "0x1f", "~", "\x85", "\x7f"]
)
NUMBERS = st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(VALUES)
def test_what_is_shown_reads_back_as_the_same(value: Any) -> None:
    assert document.read("\n".join(shape.text(value))).value == value


def test_paths_name_points_and_rules() -> None:
    assert shape.at(CONFIG, ("devices", "press", "points", "t.max", "address")) == 0
    paths = [document.dotted(path) for path, _ in shape.leaves(CONFIG["pipelines"], ("pipelines",))]
    assert "pipelines.wear.rules.cold.below" in paths
    for path, _ in shape.leaves(CONFIG):
        assert patching.path_of(document.dotted(path)) == path
    with pytest.raises(KeyError):
        shape.at(CONFIG, ("devices", "press", "points", 0))


# --- what the broker has ---------------------------------------------------------------------------------------------


def seen(*messages_: tuple[str, bytes]) -> Seen:
    found = Seen("plant", lambda payload, *_: payload, lambda payload: payload)
    for topic, payload in messages_:
        found.take(
            Message(topic=f"edge/plant/{topic}", payload=payload, qos=1, retain=True, duplicate=False, generation=1, mid=0)
        )
    return found


def report(gateway: str, groups: list[str], *layers: LayerState, **words: Any) -> tuple[str, bytes]:
    config = {"site": "plant", "gateway": gateway, "control": {"groups": groups}}
    said = Reported(**{"gateway": gateway, "state": "active", "layers": layers, "config": config, **words})
    return f"gw/{gateway}/config/reported", messages.pack(said)


def wanted(target: str, **words: Any) -> tuple[str, bytes]:
    return topics.desired("plant", target).removeprefix("edge/plant/"), messages.pack(Desired(**words))


def test_a_group_has_the_gateways_that_say_so_and_the_next_revision_is_higher_than_any() -> None:
    found = seen(
        report("a", ["x", "y"], LayerState(name="group/x", revision=7, state="accepted")),
        report("b", ["x"], LayerState(name="group/x", revision=9, state="accepted")),
        report("c", []),
        wanted("group/x", revision=8, patch={}),
    )
    assert found.members("group/x") == ["a", "b"]
    assert found.members("group/default") == ["a", "b", "c"]
    assert found.layers("a") == ("group/default", "group/x", "group/y", "gateway")
    assert found.revision("group/x", found.members("group/x")) == 10
    assert found.revision("gw/c", ["c"]) == 1


def test_of_the_layers_above_those_count_that_are_in_force() -> None:
    patch = {"log": {"level": "info"}}
    digest = Desired(patch=patch).digest
    states = {"accepted": ([Layer("gateway", 4, patch=patch)], []), "rejected": ([], ["gateway"])}
    for state, expected in states.items():
        layer = LayerState(name="gateway", revision=4, hash=digest, state=state)
        found = seen(report("a", ["x"], layer), wanted("gw/a", revision=4, patch=patch))
        assert found.above("a", "group/x") == expected
        assert found.above("a", "gateway") == ([], [])


def test_the_same_report_again_is_no_news() -> None:
    topic, payload = report("a", [])
    found = seen((topic, payload))
    message = Message(topic=f"edge/plant/{topic}", payload=payload, qos=1, retain=False, duplicate=False, generation=1, mid=0)
    assert found.take(message) == ""
    assert found.take(msgspec.structs.replace(message, payload=report("a", [], wall_ns=1)[1])) == "a"


# --- what came of it -------------------------------------------------------------------------------------------------


FOLLOWED = Followed("d", "gateway", 4)


def told(gateway: str, state: Any, document: str = "d", revision: int = 4, **words: Any) -> Reported:
    layer = LayerState(name="gateway", revision=revision, hash=document)
    return Reported(gateway=gateway, state=state, document=document, layers=(layer,), **words)


def test_a_group_is_followed_until_each_gateway_has_come_to_an_end() -> None:
    following = Following(FOLLOWED, ["a", "b"], trial_s=60)
    assert following.take(told("a", "active", "other")) == ""
    assert following.take(told("b", "validating", cause="waits for a")) == "b: validating: waits for a"
    assert following.patience_s > 120
    assert following.take(told("a", "trial", restarts=("device d",))) == "a: trial (restarts device d)"
    assert following.take(told("c", "active")) == ""
    assert following.take(told("a", "active")) == "a: active"
    assert list(following.waiting) == ["b"]
    assert following.take(told("b", "rejected", cause="canary a took it back")) == "b: rejected: canary a took it back"
    assert not following.waiting
    assert not following.taken_everywhere


def test_who_waits_for_a_dead_canary_is_not_called_silent(capsys: pytest.CaptureFixture[str]) -> None:
    following = Following(FOLLOWED, ["b"])
    following.take(told("b", "validating", cause="waits for a"))
    assert finish(following, as_json=False) == 1
    assert capsys.readouterr().err.startswith("error: b: still waits for a\nhint: ")


def test_what_keeps_a_gateway_from_taking_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    following = Following(FOLLOWED, ["a"])
    following.take(told("a", "active", "other", 3, cause="control.db: full", hint="free space on the disk"))
    assert finish(following, as_json=False) == 1
    assert capsys.readouterr().err == "error: a: says nothing about it, but: control.db: full\nhint: free space on the disk\n"


def test_what_came_of_the_same_content_before_is_passed_over() -> None:
    following = Following(FOLLOWED, ["a"])
    assert following.take(told("a", "reverted", revision=3, cause="reach: nobody")) == ""
    assert following.take(told("a", "active", revision=4)) == "a: active"
    assert following.taken_everywhere


def test_what_is_refused_has_come_to_an_end() -> None:
    following = Following(FOLLOWED, ["a"])
    assert (
        following.take(told("a", "active", "", cause="refused: revision 3 is held already"))
        == "a: refused: revision 3 is held already"
    )
    assert following.outcome == {"a": "refused"}
    assert not following.was_tried  # so nobody has to say why they could not speak to it elsewhere


def test_a_refusal_while_it_is_held_is_another_ones() -> None:
    """Two people took the same revision at once: the first is told what becomes of theirs, and only the second is refused."""
    following = Following(FOLLOWED, ["a"])
    assert following.take(told("a", "trial")) == "a: trial (nothing restarts)"
    held = told("a", "trial", cause="refused: revision 4 is held already")
    assert following.take(msgspec.structs.replace(held, document="")) == ""
    assert following.take(told("a", "active")) == "a: active"
    assert following.taken_everywhere


def test_one_that_a_newer_one_has_replaced_is_not_waited_for() -> None:
    following = Following(FOLLOWED, ["a"])
    following.take(told("a", "trial"))
    assert following.take(told("a", "trial", "e", revision=5)) == "a: superseded: revision 5 came before it was judged"
    assert (following.outcome, dict(following.waiting)) == ({"a": "superseded"}, {})
    assert following.last["a"].hint


def test_one_that_waits_for_another_layers_trial_is_waited_for() -> None:
    assert Following(FOLLOWED, ["a"], trial_s=40).patience_s == FIRST_WORD_S
    assert Following(FOLLOWED, ["a"], trial_s=40, busy=True).patience_s > 40


def test_a_rollback_is_followed_from_its_trial_on() -> None:
    following = Following(None, ["a"])
    assert following.take(told("a", "active")) == ""
    assert following.take(told("a", "trial", "")) == "a: trial (nothing restarts)"
    assert following.take(told("a", "active")) == "a: active"
    assert following.taken_everywhere


# --- whose word counts -----------------------------------------------------------------------------------------------


def test_of_a_site_only_the_gateways_own_signature_is_believed(tmp_path: Path) -> None:
    site, other = Site(tmp_path), Site(tmp_path, "plant-2")
    press, neighbour, alice = site.member("press-1"), site.member("press-2"), site.member("alice", "engineer")
    site.roster(alice)
    reply = messages.pack(CommandReply(id="1", gateway="press-1", verb="write", outcome="verified"))
    talk = Talk(Plan("plant-1", (), identity=alice))
    assert talk.of_gateway(press.sign(reply, "reply"), "reply", "press-1") == reply
    forged = (reply, neighbour.sign(reply, "reply"), press.sign(reply, "reported"), alice.sign(reply, "reply"))
    for each in (*forged, other.member("press-1").sign(reply, "reply")):
        with pytest.raises(Forged):
            talk.of_gateway(each, "reply", "press-1")


def test_only_what_an_engineer_has_signed_is_built_on(tmp_path: Path) -> None:
    """Else whoever hosts the broker could put a document there, and have it signed with the next change."""
    site, other = Site(tmp_path), Site(tmp_path, "plant-2")
    alice, olga = site.member("alice", "engineer"), site.member("olga", "operator")
    site.roster(alice)
    talk, document_ = Talk(Plan("plant-1", (), identity=alice)), messages.pack(Desired(revision=1, patch={}))
    assert talk.of_person(alice.sign(document_, "desired")) == document_
    strangers = (document_, olga.sign(document_, "desired"), other.member("alice", "engineer").sign(document_, "desired"))
    for each in (*strangers, alice.sign(document_, "command")):
        with pytest.raises(Forged):
            talk.of_person(each)


@pytest.mark.parametrize(
    ("layers", "on_broker", "in_force"),
    [
        ([], 3, True),
        ([(3, "accepted")], 3, True),
        ([(3, "accepted"), (2, "accepted")], 3, True),
        ([(3, "rejected")], 3, False),
        ([(3, "accepted"), (3, "reverted")], 3, False),
        ([(4, "accepted")], 3, False),  # a broker that came back with an old one
        ([(3, "accepted")], None, False),  # and one that is empty
    ],
)
def test_a_change_builds_on_what_is_in_force(layers: list[tuple[int, str]], on_broker: int | None, in_force: bool) -> None:
    def digest(revision: int) -> str:
        return Desired(patch={"log": {"level": str(revision)}}).digest

    reports = [
        report(f"g{n}", ["x"], LayerState(name="group/x", revision=revision, hash=digest(revision), state=state))
        for n, (revision, state) in enumerate(layers)
    ] or [report("g0", ["x"])]
    retained = [wanted("group/x", revision=on_broker, patch={"log": {"level": str(on_broker)}})] if on_broker else []
    found = seen(*reports, *retained)
    talk = Talk(Plan("plant", ()))
    assert Wanting(argparse.Namespace(), talk, found, "group/x", found.members("group/x")).in_force is in_force


def test_what_is_in_force_is_asked_of_a_gateway_that_is_there() -> None:
    def asked(**online: bool) -> str:
        reports = [
            report(name, ["x"], LayerState(name="group/x", revision=revision, state="reverted"))
            for name, revision in (("a", 2), ("b", 3), ("c", 3))
        ]
        found = seen(*reports)
        found.online.update(online)
        return who_knows(
            Wanting(argparse.Namespace(target="group/x"), Talk(Plan("plant", ())), found, "group/x", ["a", "b", "c"])
        )

    assert asked() == "b"
    assert asked(a=True, b=False, c=True) == "c"
    with pytest.raises(EdgeError, match="who knows which one is, is offline: b, c") as raised:
        asked(a=True, b=False, c=False)  # what the first one has is old
    assert "config apply group/x FILE --patch" in raised.value.hint


def test_what_a_gateway_tells_of_a_layer_is_built_on_only_where_it_may_be_believed(tmp_path: Path) -> None:
    """Without its secrets it is not as its author has signed it. A gateway that makes it up would have it signed for others."""
    site = Site(tmp_path)
    alice, olga = site.member("alice", "engineer"), site.member("olga", "operator")
    site.roster(alice)
    plain = messages.pack(Desired(target="gw/press-1", revision=1, patch={"log": {"level": "debug"}}))
    of_group = plain.replace(b"gw/press-1", b"group/default")
    signed, nobody = Talk(Plan("plant-1", (), identity=alice)), Talk(Plan("plant-1", ()))
    for talk, target, payload in (
        (nobody, "gw/press-1", plain),
        (nobody, "group/default", of_group),
        (signed, "gw/press-1", plain),
        (signed, "gw/press-1", alice.sign(plain, "desired")),
        (signed, "group/default", alice.sign(of_group, "desired")),
    ):
        assert believed(talk, target, "press-1", payload).patch == {"log": {"level": "debug"}}
    with pytest.raises(EdgeError, match="holds secrets"):
        believed(signed, "group/default", "press-1", of_group)
    with pytest.raises(Forged):
        believed(signed, "gw/press-1", "press-1", olga.sign(plain, "desired"))


def test_asterisks_are_never_published_whatever_is_built_on() -> None:
    held = Desired(target="gw/g0", revision=1, patch={"sinks": {"cloud": {"url": "mqtt://u:***@x", "timeout_s": 1}}})
    args = argparse.Namespace(note="", canary=[], trial=None)
    change = Wanting(args, Talk(Plan("plant", ())), seen(report("g0", [])), "gw/g0", ["g0"])
    faster = {"sinks": {"cloud": {"timeout_s": 2}}}
    with pytest.raises(EdgeError, match=r"secret: sinks\.cloud\.url"):
        change.document(patching.on_top(held, faster, "gateway"))
    whole = {"sinks": {"cloud": {"url": "mqtt://u:secret:cloud@x", "timeout_s": 2}}}
    assert change.document(patching.on_top(held, whole, "gateway")).content == whole


@pytest.mark.parametrize(("on_broker", "following"), [(2**53, 8), (9, 10), (7 + 10**6, 8 + 10**6), (8 + 10**6, 8)])
def test_a_document_that_nobody_takes_is_not_counted_on(on_broker: int, following: int) -> None:
    state = LayerState(name="gateway", revision=7, state="accepted")
    found = seen(report("g0", [], state), wanted("gw/g0", revision=on_broker, patch={}))
    assert found.revision("gw/g0", ["g0"]) == following


def test_who_may_not_say_it_is_told_before_it_is_said(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for role, may in (("viewer", ()), ("operator", ("command",)), ("engineer", ("command", "desired"))):
        talk = Talk(Plan("plant-1", (), identity=site.member(f"p-{role}", role)))  # type: ignore[arg-type]
        for context in ("command", "desired"):
            if context in may:
                assert talk.signed(b"{}", context)  # type: ignore[arg-type]
            else:
                with pytest.raises(EdgeError, match=f"p-{role} is {role}, who never"):
                    talk.signed(b"{}", context)  # type: ignore[arg-type]


def test_without_an_identity_nothing_is_signed() -> None:
    async def scenario() -> None:
        assert Talk(Plan("plant-1", ())).signed(b"{}", "desired") == b"{}"

    asyncio.run(scenario())
