"""The bus as a gateway's own clients see it (runs): its mesh, its sinks, its adapters.

`mqtt://local` is the site's broker, wherever it is now. Where this gateway has an identity, the url of its own broker means the
same, for nobody gets in there without a certificate. Each connection is made with the certificate and the list of revocations
that hold at that moment; when the gateway behind a broker is revoked, every connection to it falls. Client ids are made of the
names that we are given and of our key: other members, who know the names, take no connection and no session of ours.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol, cast

from msgspec.structs import replace

from edge_runtime.address import address
from edge_runtime.ports import Address, BrokerError, Bus, Connection, Revoked, Will
from edge_runtime.trust.identity import Identity

LOCAL = "local"
"""A host name that no broker has."""


class _Real(Protocol):
    """broker.PahoConnection."""

    peer_serial: str

    def abort(self) -> None: ...


class LocalBus:
    """ports.Bus. `local`: where the site's broker is now (raises BrokerError while nobody knows); None: there is none."""

    def __init__(self, bus: Bus, url: str, identity: Identity | None) -> None:
        """`url`: of the broker in the configuration of this gateway; "": it has none."""
        self.local: Callable[[], Address] | None = None
        self.refuses_us: Revoked | None = None
        """What a broker of the site said last, and no other gateway's has taken us since."""
        self._bus, self._identity = bus, identity
        self._own = address(url) if url else None
        self._there: weakref.WeakValueDictionary[int, Connection] = weakref.WeakValueDictionary()
        """Connections to brokers of the site."""
        self._count = 0

    def is_local(self, where: Address) -> bool:
        """Whether it is the site's broker that is meant."""
        if where.host == LOCAL:
            return True
        own = self._own
        if own is None or self._identity is None or where.tls:
            return False
        return (where.host, where.port) == (own.host, own.port)

    async def connect(self, address: Address, *, will: Will | None = None, timeout_s: float = 5.0) -> Connection:
        """Raises BrokerError."""
        if not address.site_ca and self.is_local(address):
            if self.local is None:
                raise BrokerError("there is no local broker", "set `broker.mode`, or give the url of a broker")
            address = replace(
                self.local(), client_id=address.client_id, clean=address.clean, keepalive_s=address.keepalive_s
            )  # fmt: skip
        if self._identity is not None and address.site_ca and address.client_id:
            address = replace(address, client_id=self._identity.client_id(address.client_id))
        try:
            connection = await self._bus.connect(address, will=will, timeout_s=timeout_s)
        except Revoked as error:
            if address.site_ca:
                self.refuses_us = Revoked(error.cause, error.hint)
            raise
        if self._is_revoked(connection):  # meanwhile
            await connection.close()
            raise BrokerError(f"{address.host}:{address.port}: the gateway that hosts it was revoked", "see `edge-runtime mesh`")
        if address.site_ca:
            self._count += 1
            self._there[self._count] = connection
            if self._identity is None or _serial(connection) != self._identity.subject.serial:  # our own takes us as ever
                self.refuses_us = None
        return connection

    def leave_revoked(self) -> int:
        """With a new roster. Returns how many connections fell: without a word, for who has them may close them meanwhile."""
        revoked = [each for each in self._there.values() if self._is_revoked(each)]
        for each in revoked:
            cast(_Real, each).abort()
        return len(revoked)

    def _is_revoked(self, connection: Connection) -> bool:
        serial = _serial(connection)
        return bool(serial) and self._identity is not None and self._identity.roster.is_revoked(serial=serial)


def _serial(connection: Connection) -> str:
    """Of the broker's certificate. Simulated ones have none."""
    return getattr(connection, "peer_serial", "")
