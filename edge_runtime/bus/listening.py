"""Where a hosted broker listens (decides; `check_free` tries the port)."""

from __future__ import annotations

import errno
import ipaddress
import socket

from edge_runtime.address import address, listener
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError, EdgeError

ANYWHERE = ("0.0.0.0", "::")


def where(settings: Broker) -> tuple[list[str], Address]:
    """The addresses to listen on, and the one for clients on this machine: loopback, so that they need no network. Raises
    BrokerError unless it is plain MQTT at an address."""
    where = address(settings.url)
    if where.tls or where.username:
        hint = "url: mqtt://127.0.0.1:1883; with TLS and passwords: a broker of your own, and mode external"
        raise BrokerError("a hosted broker listens on loopback or the network without TLS and passwords", hint)
    listen = "127.0.0.1" if settings.listen == "localhost" else settings.listen
    if listen == "127.0.0.1":
        host = "127.0.0.1" if where.host == "localhost" else where.host
        if not is_loopback(host):
            hint = f"broker.listen: 0.0.0.0 opens it to the network; url: mqtt://127.0.0.1:{where.port}"
            raise BrokerError(f"a hosted broker listens on loopback unless broker.listen says more, not on {host}", hint)
        return [host], Address(host=host, port=where.port)
    try:
        parsed = ipaddress.ip_address(listen)
    except ValueError:
        raise BrokerError(f"broker.listen: {listen} is no address", "an address of this machine, or 0.0.0.0") from None
    near = Address(host="127.0.0.1" if parsed.version == 4 else "::1", port=where.port)
    if listen == "::":
        return ["::", "0.0.0.0"], near
    if listen == "0.0.0.0":
        return [listen], near
    if parsed.is_loopback:
        return [listen], Address(host=listen, port=where.port)
    return [listen, near.host], near


def for_passwords(settings: Broker) -> tuple[list[str], int]:
    """Where people come with a password: addresses, none if they cannot, and the port. Raises BrokerError."""
    if not settings.people_listen:
        return [], 0
    try:
        host, port = listener(settings.people_listen)
    except EdgeError as error:
        raise BrokerError(f"broker.people_listen: {settings.people_listen}: {error.cause}", "0.0.0.0:8884") from None
    if not port or port == address(settings.url).port:
        raise BrokerError(f"broker.people_listen: port {port}", "a port of its own, not that of broker.url: 8884")
    host = "127.0.0.1" if host == "localhost" else host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise BrokerError(f"broker.people_listen: {host} is no address", "an address of this machine, or 0.0.0.0") from None
    return (["::", "0.0.0.0"] if host == "::" else [host]), port


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_free(host: str, port: int) -> None:
    """Else we would take another program's broker for our own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "another broker? take it with `mode: external`, or another port in broker.url"
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "broker.listen is an address of this machine, or 0.0.0.0"
            raise BrokerError(f"port {port} on {host}: {(error.strerror or str(error)).lower()}", hint) from None
