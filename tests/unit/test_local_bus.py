"""The bus of a gateway's own clients: what `local` is, as whom they come, and what falls when a host is revoked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trusted import Site

from edge_runtime.bus.local import LocalBus
from edge_runtime.bus.member import Dress
from edge_runtime.ports import Address, BrokerError, Revoked
from edge_runtime.trust.identity import Identity

HERE = Address(host="10.0.0.7", port=8883, keepalive_s=9)
OWN = "mqtt://10.0.0.1:1884"
REFUSES = "refuses us"
"""In place of a serial number."""


class Connection:
    def __init__(self, address: Address, serial: str) -> None:
        self.address, self.peer_serial, self.closed = address, serial, False

    def abort(self) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True


class Bus:
    """Whoever comes, meets this serial number."""

    serial = "abc"

    def __init__(self) -> None:
        self.meanwhile: Callable[[], object] = lambda: None

    async def connect(self, address: Address, **_: Any) -> Connection:
        self.meanwhile()
        if self.serial == REFUSES:
            raise Revoked("revoked, says the broker", "bring us the roster")
        return Connection(address, self.serial)


def made(identity: Identity | None, url: str = OWN) -> tuple[LocalBus, Bus]:
    bus = Bus()
    local = LocalBus(bus, url, identity)  # type: ignore[arg-type]
    local.local = lambda: Dress(identity)(HERE) if identity else HERE
    return local, bus


def reached(local: LocalBus, address: Address) -> Address:
    found: Any = asyncio.run(local.connect(address))
    where: Address = found.address
    return where


def test_local_is_where_the_sites_broker_is_now() -> None:
    local, _ = made(None)
    found = reached(local, Address(host="local", client_id="press", clean=False, keepalive_s=30))
    assert (found.host, found.port, found.client_id, found.clean, found.keepalive_s) == ("10.0.0.7", 8883, "press", False, 30)
    local.local = None
    with pytest.raises(BrokerError, match="no local broker"):
        reached(local, Address(host="local"))


def test_the_url_of_the_own_broker_is_local_where_there_is_a_site(tmp_path: Path) -> None:
    own, others = Address(host="10.0.0.1", port=1884), Address(host="10.0.0.1", port=1885)
    press = Site(tmp_path).member("press")
    assert reached(made(None)[0], own) == own
    assert reached(made(press, "")[0], own) == own
    assert reached(made(press)[0], others) == others
    assert reached(made(press)[0], own).site_ca
    foreign = Address(host="10.0.0.1", port=1884, tls=True)  # mqtts://: by its host name, somebody else's
    assert reached(made(press)[0], foreign) == foreign


def test_nobody_else_knows_a_client_id_at_the_sites_broker(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw, named = site.member("press"), site.member("saw"), Address(host="local", client_id="edge-plant-press-cloud")
    found = reached(made(press)[0], named).client_id
    assert found.startswith(f"{named.client_id}-")
    assert len(found) == len(named.client_id) + 33
    assert found == reached(made(press)[0], named).client_id, "a session that is kept is found again"
    assert found != reached(made(saw)[0], named).client_id
    assert reached(made(press)[0], Address(host="local")).client_id == ""
    assert reached(made(None)[0], named).client_id == named.client_id
    elsewhere = Address(host="10.9.9.9", port=1883, client_id="as-its-owner-wants-it")
    assert reached(made(press)[0], elsewhere) == elsewhere


def test_a_broker_of_the_site_says_that_we_are_revoked_until_another_gateways_takes_us(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    local, bus = made(press)

    def comes(serial: str, host: str = "local") -> None:
        bus.serial = serial
        with contextlib.suppress(Revoked):
            reached(local, Address(host=host))

    comes(REFUSES, "elsewhere")  # somebody else's: his list of the revoked is not the site's
    assert local.refuses_us is None
    comes(REFUSES)
    assert local.refuses_us is not None
    assert (local.refuses_us.cause, local.refuses_us.hint) == ("revoked, says the broker", "bring us the roster")
    comes(press.subject.serial)  # our own does not know it either
    comes(saw.subject.serial, "elsewhere")
    assert local.refuses_us is not None
    comes(saw.subject.serial)
    assert local.refuses_us is None


def test_only_connections_to_who_was_revoked_fall(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw, oven = (site.member(name) for name in ("press", "saw", "oven"))
    local, bus = made(press)

    async def main() -> None:
        held: list[Any] = []
        for host in (saw, oven):
            bus.serial = host.subject.serial
            held.append(await local.connect(Address(host="local")))
        foreign: Any = await local.connect(Address(host="elsewhere"))
        site.authority.revoke("oven", "stolen")
        press.take_roster(site.authority.roster())
        assert local.leave_revoked() == 1
        assert [each.closed for each in (*held, foreign)] == [False, True, False]

    asyncio.run(main())


def test_a_host_that_is_revoked_while_we_connect(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    local, bus = made(press)
    bus.serial = saw.subject.serial

    def revoke() -> None:
        site.authority.revoke("saw", "stolen")
        press.take_roster(site.authority.roster())

    bus.meanwhile = revoke
    with pytest.raises(BrokerError, match="was revoked"):
        reached(local, Address(host="local"))
