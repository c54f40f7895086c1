"""bus/acl.py: the text. What a real mosquitto makes of it: integration/test_broker_mtls.py."""

from __future__ import annotations

import re

import msgspec

from edge_runtime.bus import topics
from edge_runtime.bus.acl import acl, acl_of_names
from edge_runtime.trust.roster import VERSION, Member, Role, Roster


def member(name: str, role: Role) -> Member:
    return Member(name, role, name[:1].encode().hex().ljust(64, "0"), "1", 0)


def sections(text: str) -> dict[str, list[str]]:
    """User ("" : everybody) -> its lines."""
    found: dict[str, list[str]] = {"": []}
    user = ""
    for line in filter(None, text.splitlines()):
        if line.startswith("user "):
            user = line.removeprefix("user ")
            found.setdefault(user, [])
        elif not line.startswith("#"):
            found[user].append(line)
    return found


def test_people_have_a_prefix_that_no_gateway_has() -> None:
    members = (member("press", "gateway"), member("alice", "engineer"), member("olaf", "operator"), member("vera", "viewer"))
    assert list(sections(acl("s", Roster(VERSION, "s", 1, members, ()), "press"))) == [
        "",
        "press",
        "person:alice",
        "person:olaf",
        "person:vera",
    ]


def test_without_a_roster_there_is_what_holds_for_everybody() -> None:
    assert sections(acl("s", None, "press")) == sections(acl("s", Roster(VERSION, "s", 1, (), ()), "press"))


def test_nobody_gets_more_than_the_site_or_writes_with_an_open_end() -> None:
    members = (member("press", "gateway"), member("alice", "engineer"), member("vera", "viewer"))
    text = acl("s", Roster(VERSION, "s", 1, members, ()), "press")
    for line in (line for lines in sections(text).values() for line in lines):
        kind, access, topic = line.split(" ")
        assert kind in ("pattern", "topic")
        assert access in ("read", "write", "deny")
        assert topic.startswith(("edge/s/", "device/"))
        assert access != "write" or "#" not in topic or topic == "device/#"


def test_every_topic_of_ours_may_be_written_by_somebody() -> None:
    """A topic that is new in topics.py must be thought of in acl.py, or nobody can use it where there is a site."""
    roster = Roster(VERSION, "s", 1, (member("press", "gateway"), member("alice", "engineer")), ())
    found = sections(acl("s", roster, "press")).values()
    written = [line.split(" ")[2] for lines in found for line in lines if " write " in line]
    for topic, _, _ in topics.TOPICS:
        shape = re.sub(r"\{[a-z]+\}", "+", f"edge/s/{topic}")
        named = shape.replace("brokers/+", "brokers/press")  # no pattern: people and receivers have no brokers
        assert named in [each.replace("%u", "+") for each in written], topic


def test_equipment_has_topics_of_its_own_and_nothing_of_the_site() -> None:
    members = (member("press", "gateway"), member("alice", "engineer"), member("scale", "device"), member("oven", "device"))
    found = sections(acl("s", Roster(VERSION, "s", 1, members, ()), "press"))
    assert found["device:scale"] == ["topic deny edge/#", "topic readwrite device/scale/#", "topic readwrite scale/#"]
    assert "pattern read scale/#" in found[""]
    assert "topic write device/#" in found["press"]
    assert "topic read device/#" in found["person:alice"]


def test_a_receiver_says_receipts_and_nothing_else() -> None:
    found = sections(acl("s", Roster(VERSION, "s", 1, (member("cloud", "receiver"),), ()), "press"))["receiver:cloud"]
    assert [line for line in found if " deny " not in line] == ["topic write edge/s/gw/+/receipt/cloud"]
    assert "topic deny edge/s/gw/receiver:cloud/#" in found


def test_with_a_password_each_one_may_what_it_may_with_a_certificate_and_nothing_as_a_gateway() -> None:
    people: dict[str, Role] = {"alice": "engineer", "olaf": "operator", "vera": "viewer"}
    named = [msgspec.structs.replace(member(name, role), password="x") for name, role in people.items()]
    roster = Roster(
        VERSION, "s", 1, (member("press", "gateway"), *named, member("eve", "engineer"), member("scale", "device")), ()
    )
    found, theirs = sections(acl("s", roster, "press")), sections(acl_of_names("s", roster))
    assert list(theirs) == ["", *people]  # nobody without a password
    assert theirs[""] == []  # and no pattern, in which %u would be a gateway's name
    for name in people:
        who = f"person:{name}"
        by_pattern = [each.replace("pattern", "topic").replace("%u", who) for each in found[""]]
        assert sorted(theirs[name]) == sorted([*by_pattern, *found[who]])
        assert not [each for each in theirs[name] if f"/{name}/" in each or "%" in each]
    assert "topic read scale/#" in theirs["vera"]


def test_only_engineers_bring_renewed_certificates() -> None:
    members = (member("press", "gateway"), member("alice", "engineer"), member("olaf", "operator"), member("vera", "viewer"))
    answer = "topic write edge/s/gw/+/renewal/answer"
    found = sections(acl("s", Roster(VERSION, "s", 1, members, ()), "press"))
    assert [user for user, lines in found.items() if answer in lines] == ["person:alice"]
