"""Where this machine can be reached: what a token says to the gateway. Asks the kernel; works without a route to anywhere."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from fnmatch import fnmatch

from edge_runtime.trust.token import HOSTS_MAX

NOT_THE_NETWORK = ("lo", "docker*", "br-*", "veth*", "virbr*", "cni*", "flannel*", "cali*", "vboxnet*", "vmnet*")
_SIOCGIFADDR = 0x8915


def reachable(listening: str) -> tuple[str, ...]:
    """Of what it listens on: the address itself, or, where that is every one, the first of each interface; loopback if there is
    no network at all."""
    try:
        if not ipaddress.ip_address(listening).is_unspecified:
            return (listening,)
    except ValueError:
        return (listening,)
    names = [name for _, name in socket.if_nameindex() if not any(fnmatch(name, each) for each in NOT_THE_NETWORK)]
    found = [address for name in names if (address := _ipv4(name))]
    return tuple(found[:HOSTS_MAX]) or ("127.0.0.1",)


def _ipv4(interface: str) -> str:
    """ "": it has none."""
    request = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            return socket.inet_ntoa(fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""
