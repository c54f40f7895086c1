"""What of a configuration is shown: never a secret, always all the rest."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, SecretStr

from edge_runtime.adapter import Adapter, Options, Point
from edge_runtime.control.redaction import redacted, says_secret, scrub, secrets
from edge_runtime.ports import EdgeError
from edge_runtime.testing.adapter import Faulty


class Login(BaseModel):
    user: str = ""
    word: SecretStr = SecretStr("")
    spare: list[SecretStr] = []


class Guarded(Faulty):
    class Options(Options):
        host: str = ""
        lock: SecretStr = SecretStr("")
        code: int = Field(0, json_schema_extra={"secret": True})
        cipher: str = Field("", alias="chiffre", json_schema_extra={"secret": True})
        login: Login = Login()
        logins: dict[str, Login] = {}
        several: list[Login] | None = None

    class Point(Point):
        opener: str = Field("", json_schema_extra={"secret": True})


class Broken(dict[str, type[Adapter]]):
    """Like the registry: an adapter whose module cannot be imported."""

    def __getitem__(self, name: str) -> type[Adapter]:
        if name == "broken":
            raise EdgeError("cannot be imported")
        return super().__getitem__(name)


SAYING = (
    "password passwd PASSWORD db_password userPassword passphrase secret client_secret token access-token accessToken "
    "api_key apikey API-Key key private_key psk pin pwd credentials auth auth_token community token2 tokens"
)
SILENT = (
    "token_file key_file cert_file ca_file password_file secret_name keepalive_s keyboard monkey url path client_id message_id "
    "topics author spinning compass passing token_lifetime_s"
)
SCHEMAS = Broken({"guarded": Guarded, "broken": Guarded})
S = "S3cr3t"
TEXT = st.text("abc /.-_", max_size=6)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["host", "period_s", "token_file", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def options(content: dict[str, Any], adapter: str = "guarded") -> dict[str, Any]:
    found: dict[str, Any] = redacted({"devices": {"d": {"adapter": adapter, "options": content}}}, SCHEMAS)["devices"]["d"][
        "options"
    ]
    return found


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        (f"mqtt://user:{S}@host:1883", "mqtt://user:***@host:1883"),
        (f"mqtts://user:{S}/with@and:more@host", "mqtts://user:***@host"),
        (f"mqtt://:{S}@host", "mqtt://:***@host"),
        (f"https://{S}@host/path", "https://***@host/path"),
        (f"mqtt://us/er:{S}@host", "mqtt://***@host"),
        (f"user:{S}@host:1883", "user:***@host:1883"),
        (f"https://host/?a=1&api_key={S}&b=2", "https://host/?a=1&api_key=***&b=2"),
        ("mqtt://host:1883", "mqtt://host:1883"),
        ("https://host/a:b?user=me", "https://host/a:b?user=me"),
        ("ask: ann@example.org", "ask: ann@example.org"),
        ("10.0.0.2:1883", "10.0.0.2:1883"),
        ("local", "local"),
        ("secret:broker-url", "secret:broker-url"),
    ],
)
def test_the_password_of_a_url_is_hidden_wherever_it_stands(url: str, seen: str) -> None:
    config = {"broker": {"url": url}, "mesh": {"peers": [url]}, "sinks": {"cloud": {"url": url}}}
    expected = {"broker": {"url": seen}, "mesh": {"peers": [seen]}, "sinks": {"cloud": {"url": seen}}}
    assert redacted(config, {}) == expected
    assert redacted(expected, {}) == expected


@pytest.mark.parametrize(
    "key",
    SAYING.split(),
)
def test_keys_that_say_that_they_hold_a_secret(key: str) -> None:
    assert says_secret(key)
    assert options({key: S, "x": {key: [S, {"y": S}]}}) == {key: "***", "x": {key: "***"}}
    assert options({key: 1234}) == {key: "***"}
    assert options({key: ""}) == {key: ""}
    assert options({key: None}) == {key: None}
    assert options({key: "secret:press.key-1"}) == {key: "secret:press.key-1"}
    assert options({key: "secret:no name"}) == {key: "***"}


@pytest.mark.parametrize(
    "key",
    SILENT.split(),
)
def test_keys_that_hold_none(key: str) -> None:
    assert not says_secret(key)
    assert options({key: "seen"}) == {key: "seen"}


def test_what_an_adapter_declares_to_be_secret() -> None:
    content = {
        "host": "seen", "lock": S, "code": 1234, "chiffre": S, "login": {"user": "seen", "word": S, "spare": [S]},
        "logins": {"host": {"user": "seen", "word": S}}, "several": [{"user": "seen", "word": S}],
    }  # fmt: skip
    hidden = {
        "host": "seen", "lock": "***", "code": "***", "chiffre": "***", "login": {"user": "seen", "word": "***", "spare": "***"},
        "logins": {"host": {"user": "seen", "word": "***"}}, "several": [{"user": "seen", "word": "***"}],
    }  # fmt: skip
    assert options(content) == hidden


def test_points_may_have_secrets_too_as_a_list_and_in_a_patch_by_name() -> None:
    listed = {"devices": {"d": {"adapter": "guarded", "points": [{"name": "token", "unit": "Cel", "opener": S}]}}}
    by_name = {"devices": {"d": {"adapter": "guarded", "points": {"token": {"unit": "Cel", "opener": S}}}}}
    assert redacted(listed, SCHEMAS)["devices"]["d"]["points"] == [{"name": "token", "unit": "Cel", "opener": "***"}]
    assert redacted(by_name, SCHEMAS)["devices"]["d"]["points"] == {"token": {"unit": "Cel", "opener": "***"}}


@pytest.mark.parametrize("adapter", ["missing", "broken", None, 7])
def test_of_an_adapter_that_nobody_knows_every_text_is_hidden(adapter: Any) -> None:
    device = {
        "adapter": adapter,
        "options": {"host": S, "several": [S], "rate": 5},
        "points": [{"name": "t", "unit": "Cel", "x": S}],
    }
    shown = redacted({"devices": {"d": device}}, SCHEMAS)["devices"]["d"]
    assert shown["options"] == {"host": "***", "several": ["***"], "rate": 5}
    assert shown["points"] == [{"name": "t", "unit": "Cel", "x": "***"}]


def test_a_patch_takes_the_adapter_from_the_configuration_that_it_changes() -> None:
    patch = {"devices": {"d": {"options": {"host": "seen", "lock": S}}}}
    known = {"devices": {"d": {"adapter": "guarded"}}}
    assert redacted(patch, SCHEMAS, known)["devices"]["d"]["options"] == {"host": "seen", "lock": "***"}
    assert redacted(patch, SCHEMAS)["devices"]["d"]["options"] == {"host": "***", "lock": "***"}


def test_names_that_people_gave_are_no_keys() -> None:
    config = {
        "devices": {"token": {"adapter": "guarded", "period_s": 1}},
        "pipelines": {
            "secret": {"device": "token", "rules": [{"name": "key", "above": 5}]},
            "x": {"rules": {"pin": {"above": 5}}},
        },
        "sinks": {"password": {"type": "mqtt", "url": "local"}},
    }
    assert redacted(config, SCHEMAS) == config


def test_half_a_character_is_shown_as_what_a_message_can_carry() -> None:
    assert json.dumps(redacted({"a": "x\ud800"}, {})).encode()
    redacted({"a": "x\ud800"}, {})["a"].encode()


@given(
    st.lists(
        st.tuples(st.integers(0, 5), PLAIN, st.text(st.characters(codec="utf-8", exclude_characters="@"), min_size=1)), max_size=5
    )
)
def test_a_planted_secret_is_never_seen_and_nothing_else_is_hidden(planted: list[tuple[int, Any, str]]) -> None:
    config: dict[str, Any] = {"devices": {}, "sinks": {}, "rest": {}}
    for number, (where, plain, around) in enumerate(planted):
        word, name = f"{around}{S}{around}", f"d{number}"
        config["rest"][name] = plain
        if where == 0:
            config["sinks"][name] = {"type": "https", "url": f"https://me:{word}@host", "x": plain}
        elif where == 1:
            config["devices"][name] = {"adapter": "guarded", "options": {"lock": word, "x": plain}}
        elif where == 2:
            config["devices"][name] = {"adapter": "other", "options": {"whatever": [{"deep": word}]}, "x": plain}
        elif where == 3:
            config["devices"][name] = {"adapter": "guarded", "options": {"x": {"password": {"old": [word]}}, "y": plain}}
        elif where == 4:
            config["sinks"][name] = {"type": "https", "token": word}
        else:
            config["devices"][name] = {"adapter": "guarded", "points": [{"name": name, "opener": word}]}
    shown = redacted(config, SCHEMAS)
    assert S not in json.dumps(shown)
    assert shown["rest"] == config["rest"]
    assert redacted(shown, SCHEMAS) == shown
    found = secrets(config, SCHEMAS)
    assert S not in scrub("\n".join(found), found)
    assert S not in scrub(" ".join(f"{around}{S}{around}" for _, _, around in planted), found)


@given(PLAIN)
def test_what_holds_no_secret_stays_as_it_is(plain: Any) -> None:
    assert redacted({"a": plain}, {}) == {"a": plain}


def test_a_text_is_scrubbed_of_secrets_and_of_passwords_in_urls() -> None:
    known = secrets({"broker": {"url": "mqtt://u:hunter22@h"}, "sinks": {"c": {"token": "abcd"}}, "x": {"pin": 12}}, {})
    assert known == ("hunter22", "abcd")
    assert scrub("hunter22 abcd 12 mqtt://a:b@c", known) == "*** *** 12 mqtt://a:***@c"
