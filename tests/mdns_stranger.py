"""Somebody else on the network who announces gateways: python mdns_stranger.py ADDRESS (garbage | crowd) COUNT SITE

Sends mDNS packets from the interface with that address. `crowd`: so many gateways, each well announced, again and again.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Iterator

from zeroconf import DNSAddress, DNSOutgoing, DNSPointer, DNSService, DNSText, ServiceInfo

from edge_runtime.mesh import announcing
from edge_runtime.mesh.discovery import TYPE
from edge_runtime.ports_mesh import Announcement

GROUP = ("224.0.0.251", 5353)


def packets(name: str, text: bytes, port: int = 1883, alias: str = "") -> list[bytes]:
    """PTR, SRV, TXT and A of one announcement."""
    out = DNSOutgoing(0x8400)
    host = f"{name.partition('.')[0]}.local."
    out.add_answer_at_time(DNSPointer(TYPE, 12, 1, 120, alias or name), 0)
    out.add_answer_at_time(DNSService(name, 33, 0x8001, 120, 0, 0, port, host), 0)
    out.add_answer_at_time(DNSText(name, 16, 0x8001, 120, text), 0)
    out.add_answer_at_time(DNSAddress(host, 1, 0x8001, 120, socket.inet_aton("10.77.0.99")), 0)
    return list(out.packets())


def good(number: int, site: str) -> list[bytes]:
    mine = Announcement(site=site, gateway=f"crowd-{number}", instance=f"{number:016x}", role="candidate")
    name = f"{announcing.label(mine.gateway, mine.instance)}.{TYPE}"
    return packets(name, ServiceInfo(TYPE, name, port=1, properties=announcing.encode(mine, 0)).text)


def garbage(count: int, site: str) -> Iterator[bytes]:
    dice = random.Random(7)
    whole = b"".join(good(1, "elsewhere"))  # torn it may still be whole where it matters
    for number in range(count):
        yield dice.randbytes(dice.randrange(1, 1_400))
        yield whole[: dice.randrange(len(whole))]
        torn = bytearray(whole)
        for _ in range(dice.randrange(1, 20)):
            torn[dice.randrange(len(torn))] = dice.randrange(256)
        yield bytes(torn)
        texts = [b"", b"\xff" * 200, b"\x05site=", dice.randbytes(300), b"\x00" * 50, b"\x02\xff\xfe", b"\x0asite=plant"]
        for text in texts:
            yield from packets(f"odd-{number}.{TYPE}", text)
        yield from packets(f"{'x' * 60}.{TYPE}", b"", port=0)
        yield from packets(f"odd.{number}.{TYPE}", b"", alias=TYPE)
        yield from packets(f"odd-{number}.{TYPE}", b"", alias=f"elsewhere-{number}._http._tcp.local.")


def crowd(count: int, site: str) -> Iterator[bytes]:
    every = [packet for number in range(count) for packet in good(number, site)]
    while True:
        yield from every


def main(address: str, kind: str, count: int, site: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        wire.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        wire.bind((address, 5353))
        many = garbage(count, site) if kind == "garbage" else crowd(count, site)
        for number, packet in enumerate(many):
            wire.sendto(packet, GROUP)
            if number % 20 == 0:
                time.sleep(0.005)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])
