"""Where a person speaks to a gateway that a change moves, and as whom."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.address import address
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli.config.places import Here, is_elsewhere, places, said_there, url_of
from edge_runtime.cli.mesh.finding import Plan
from edge_runtime.config import Config
from edge_runtime.ports import Address, EdgeError, SecretError

NOW = Here(Plan("plant", (address("mqtt://ann:pw@10.0.0.1"),)), "plant")


def wanted(mode: str, url: str, **more: Any) -> dict[str, Config]:
    mesh = {"mesh": more.pop("mesh")} if "mesh" in more else {}
    found = {"site": "plant", "gateway": "press-1", "broker": {"mode": mode, "url": url, **more}, **mesh}
    return {"press-1": Config.model_validate(found)}


def secret(name: str) -> str:
    if name == "BROKER":
        return "open-sesame"
    raise SecretError(f"secret {name} is not here", "asked were ...")


def as_whom(place: Address) -> tuple[str, int, str, str]:
    return place.host, place.port, place.username, place.password


# --- to a broker of nobody at the site -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "whom", "doubt"),
    [
        ("mqtt://gw:secret:BROKER@10.0.0.2", ("gw", "open-sesame"), ""),
        ("mqtt://gw:typed@10.0.0.2", ("gw", "typed"), ""),
        ("mqtt://10.0.0.2", ("ann", "pw"), ""),
        ("mqtt://gw:secret:OTHER@10.0.0.2", ("ann", "pw"), "secret OTHER is not here (asked were ...)"),
    ],
)
def test_as_the_url_says_or_as_who_we_are(url: str, whom: tuple[str, str], doubt: str) -> None:
    (place,) = places(NOW, wanted("external", shown(url)), url, secret)
    assert [as_whom(each) for each in place.plan.places] == [("10.0.0.2", 1883, *whom)]
    assert place.doubt == doubt


def shown(url: str) -> str:
    """As a preview shows it."""
    return url.replace("typed", "****")


@pytest.mark.parametrize("url", ["mqtt://gw:***@10.0.0.2", "mqtt://gw:secret:BROKER@10.0.0.2", "mqtt://10.0.0.2"])
def test_no_password_goes_where_only_a_gateway_says_so(url: str) -> None:
    (place,) = places(NOW, wanted("external", url), None, secret)
    assert [as_whom(each) for each in place.plan.places] == [("10.0.0.2", 1883, "", "")]
    assert place.doubt.startswith("the document does not say broker.url")


def test_a_password_for_tls_does_not_go_over_an_open_line() -> None:
    now = Here(Plan("plant", (address("mqtts://ann:pw@10.0.0.1"),)), "plant")
    (place,) = places(now, wanted("external", "mqtt://10.0.0.2"), "mqtt://10.0.0.2", secret)
    assert place.plan.user == ""
    (place,) = places(now, wanted("external", "mqtts://10.0.0.2"), "mqtts://10.0.0.2", secret)
    assert place.plan.user == "ann"


def test_with_the_ca_of_a_site_a_password_goes_to_that_site_only() -> None:
    own = Address(host="10.0.0.1", port=8884, username="ann", password="pw", tls=True, site_ca=True, ca_file="ca.pem")
    now = Here(Plan("plant", (own,), authority=b"key"), "plant")
    (place,) = places(now, wanted("external", "mqtt://10.0.0.2:1999"), "mqtt://10.0.0.2:1999", secret)
    (there,) = place.plan.places
    assert (there.host, there.port, there.tls, there.site_ca, place.plan.authority) == ("10.0.0.2", 1999, True, True, b"key")
    (place,) = places(now, wanted("hosted", "mqtt://127.0.0.1:1999", people_listen="0.0.0.0:8885"), None, secret)
    assert [(each.host, each.port, each.site_ca) for each in place.plan.places] == [
        ("127.0.0.1", 8885, True),
        ("10.0.0.1", 8885, True),
    ]
    (place,) = places(now, wanted("hosted", "mqtt://127.0.0.1:1999"), None, secret)
    assert "nobody comes there with a password" in place.doubt


def test_the_url_with_which_we_get_there_can_be_said() -> None:
    place = said_there(NOW, "mqtts://gw:secret:BROKER@10.0.0.2", secret)
    assert as_whom(place.plan.places[0]) == ("10.0.0.2", 8883, "gw", "open-sesame")
    with pytest.raises(EdgeError, match="secret OTHER is not here"):
        said_there(NOW, "mqtts://gw:secret:OTHER@10.0.0.2", secret)


def test_a_password_that_was_typed_belongs_to_its_own_url() -> None:
    typed = "mqtt://gw:typed@10.0.0.2"
    assert url_of("mqtt://gw:****@10.0.0.2", typed) == typed
    assert url_of("mqtt://gw:***@10.0.0.3", typed) == "mqtt://gw:***@10.0.0.3"  # another layer counts more
    assert url_of("mqtt://10.0.0.3", typed) == "mqtt://10.0.0.3"
    assert url_of("mqtt://gw:***@10.0.0.2", None) == "mqtt://gw:***@10.0.0.2"


# --- to one that a gateway hosts -------------------------------------------------------------------------------------


def test_who_says_no_address_is_looked_for_and_doubted() -> None:
    (place,) = places(NOW, wanted("hosted", "mqtt://127.0.0.1:1999"), None, secret)
    assert [(each.host, each.port) for each in place.plan.places] == [("127.0.0.1", 1999), ("10.0.0.1", 1999)]
    assert "where it will be is not known here" in place.doubt
    assert not place.plan.discover

    told = Here(NOW.plan, "plant", hosts={"press-1": ("10.0.0.7",)})
    (place,) = places(told, wanted("hosted", "mqtt://127.0.0.1:1999"), None, secret)
    assert place.plan.places[-1].host == "10.0.0.7"
    assert place.doubt == ""

    (place,) = places(
        NOW, wanted("auto", "mqtt://127.0.0.1:1999", mesh={"discovery": "off", "peers": ["10.0.0.8"]}), None, secret
    )
    assert (place.plan.places[-1].host, place.plan.discover, place.doubt) == ("10.0.0.8", False, "")
    (place,) = places(NOW, wanted("auto", "mqtt://127.0.0.1:1999", mesh={}), None, secret)
    assert (place.plan.discover, place.doubt) == (True, "")


def test_each_place_is_gone_to_once() -> None:
    two = {
        **wanted("auto", "mqtt://127.0.0.1:1", mesh={}),
        "press-2": wanted("auto", "mqtt://127.0.0.1:1", mesh={})["press-1"],
    }
    assert [each.name for each in places(NOW, two, None, secret)] == ["the broker of press-1, press-2"]
    two = {
        "press-1": wanted("external", "mqtt://10.0.0.2")["press-1"],
        "press-2": wanted("external", "mqtt://10.0.0.2")["press-1"],
    }
    assert [each.name for each in places(NOW, two, None, secret)] == ["10.0.0.2:1883"]


def test_where_we_are_already_is_not_where_it_goes() -> None:
    def said(host: str, run: str) -> Brokers:
        return Brokers(site="plant", host=host, instance=f"{host}-1", run=run)

    here = Here(NOW.plan, "plant", said("press-1", "r1"))
    assert not is_elsewhere(here, said("press-1", "r1"), ["press-2"], meets=False)
    assert not is_elsewhere(here, said("press-1", "r9"), ["press-2"], meets=True)  # it has lost its own broker for a moment
    assert is_elsewhere(here, said("press-2", "r2"), ["press-2"], meets=False)
    assert not is_elsewhere(here, said("press-3", "r3"), ["press-2"], meets=False)
    assert is_elsewhere(here, said("press-3", "r3"), ["press-2"], meets=True)
    # It hosts the one where we are, and will host the next one.
    assert not is_elsewhere(here, said("press-1", "r1"), ["press-1"], meets=True)
    assert is_elsewhere(here, said("press-1", "r2"), ["press-1"], meets=True)
    assert is_elsewhere(NOW, said("press-1", "r1"), ["press-1"], meets=False)
