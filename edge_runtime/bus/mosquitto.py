"""What mosquitto is told: its configuration, and the files that it reads again at a SIGHUP (decides).

Two doors at most. `listen`: without a site for whoever is there; with one for certificates of the site alone, whatever name and
password a client gives beside it. `people_listen`: people of the site who have a password; what they show of a certificate is
not looked at. Each door has its own access rules: a name is a gateway's at the one and a person's at the other.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from edge_runtime.bus.acl import acl, acl_of_names
from edge_runtime.config import Broker
from edge_runtime.trust.identity import Identity

INFLIGHT_MAX = 100
"""QoS 1 messages that a client may have unacknowledged (mosquitto's default is 20)."""
MESSAGE_BYTES_MAX = 17 * 2**20
"""A batch (messages.BATCH_BYTES_MAX) and its topic. iotcore's own default is 20 KiB: it closes the connection beyond it."""

QUEUED_BYTES_MAX = 64 * 2**20
"""Of QoS 1 that waits for one client, beside `queued_messages_max`: those may be large. Whoever publishes faster than others
read would fill the memory."""

MEMORY_BYTES_MAX = 512 * 2**20
"""Of the whole broker, and so of what it keeps on the disk, beside our outbox. Retained messages and sessions that are kept are
otherwise without number: one member could fill both. Beyond it, who publishes is disconnected; what is small still passes."""

PASSWORD_CLIENTS_MAX = 100
"""Connections at that door. A stranger can open one and say nothing, and each holds a descriptor that a gateway may need. And at
a SIGHUP mosquitto hashes the password of each client that is connected again (which is how those are dropped that have lost
it): with 50 of them it answers nobody for 0.4 s."""

ACL, CRL, PASSWORDS, NAMES_ACL = "acl", "crl.pem", "passwords", "acl-passwords"

_SETTINGS = """\
# Written at every start: changes are lost.
{user}{listeners}
persistence true
persistence_location {folder}/
autosave_interval 1
persistent_client_expiration 30d
max_queued_messages {queued}
max_queued_bytes {queued_bytes}
max_inflight_messages {inflight}
memory_limit {memory}
message_size_limit {size}
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""
_TLS = """\
certfile {cert}
keyfile {key}
tls_version tlsv1.2
"""
"""tls_version is the lowest."""
_MEMBERS_ONLY = """\
cafile {ca}
require_certificate true
use_identity_as_username true
"""
_PEOPLE_ONLY = """\
allow_anonymous false
password_file {folder}/passwords
acl_file {folder}/acl-passwords
max_connections {clients}
"""


class Doors(NamedTuple):
    """Where it listens: addresses and a port each; `people`: with a password, nowhere if there are no addresses."""

    members: list[str]
    port: int
    people: list[str]
    people_port: int


def configuration(settings: Broker, doors: Doors, folder: Path, identity: Identity | None) -> str:
    """Of mosquitto.conf in `folder`, where also its other files are."""
    folder = folder.resolve()
    return _SETTINGS.format(
        user="user root\n" if os.geteuid() == 0 else "",  # else it becomes `mosquitto`, which cannot read our key or folder
        listeners="\n".join(_listeners(doors, folder, identity)),
        folder=folder,
        queued=settings.queued_messages_max,
        queued_bytes=QUEUED_BYTES_MAX,
        inflight=INFLIGHT_MAX,
        memory=MEMORY_BYTES_MAX,
        size=MESSAGE_BYTES_MAX,
    )


def _listeners(doors: Doors, folder: Path, identity: Identity | None) -> Iterator[str]:
    if identity is None:
        yield from (f"listener {doors.port} {each}" for each in doors.members)
        yield "allow_anonymous true"
        return
    cert, key, ca = (each.resolve() for each in (identity.cert_file, identity.key_file, identity.ca_file))
    closed = f"allow_anonymous false\nacl_file {folder}/{ACL}\n"
    tls = _TLS.format(cert=cert, key=key)
    members = tls + _MEMBERS_ONLY.format(ca=ca) + (f"crlfile {folder}/{CRL}\n" if identity.roster.crl else "")
    yield "log_type notice\nlog_type debug"  # refusals.py judges them
    if doors.people:
        yield "per_listener_settings true"
        members += closed
    else:
        yield closed
    for each in doors.members:
        yield f"listener {doors.port} {each}\n{members}"
    for each in doors.people:
        yield f"listener {doors.people_port} {each}\n{tls}" + _PEOPLE_ONLY.format(folder=folder, clients=PASSWORD_CLIENTS_MAX)


def access(identity: Identity) -> Mapping[str, str]:
    """File -> what stands in it, as the roster has it now."""
    roster = identity.roster
    return {
        CRL: roster.crl,
        ACL: acl(identity.site, roster, identity.name),
        NAMES_ACL: acl_of_names(identity.site, roster),
        PASSWORDS: "".join(f"{each.password_line}\n" for each in roster.members if each.password),
    }
