"""A name server that does not answer holds up one connection, and nothing else."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from edge_runtime.bus import wire
from edge_runtime.bus.broker import PahoBus
from edge_runtime.ports import Address, BrokerError


class DeafNameServer:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.answers = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, *_: Any, **__: Any) -> Any:
        self.asked += 1
        self.answers.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def refusal(host: str) -> str:
    with pytest.raises(BrokerError) as caught:
        await PahoBus().connect(Address(host=host), timeout_s=0.05)
    return caught.value.cause


def test_a_program_that_looks_up_a_name_can_end(monkeypatch: pytest.MonkeyPatch) -> None:
    server = DeafNameServer(monkeypatch)
    assert "no answer within 0.05 s" in asyncio.run(refusal("plant.example"))
    assert server.asked == 1
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "look up plant.example"] == [True]
    server.answers.set()


def test_it_does_not_look_up_any_number_of_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        server = DeafNameServer(monkeypatch)
        found = await asyncio.gather(*(refusal(f"plant-{number}.example") for number in range(wire.LOOKUPS_MAX + 5)))
        assert sum("looked up already" in each for each in found) == 5
        assert server.asked == wire.LOOKUPS_MAX
        server.answers.set()
        for thread in [each for each in threading.enumerate() if each.name.startswith("look up")]:
            await asyncio.to_thread(thread.join)
        assert "name resolution" in await refusal("again.example")

    asyncio.run(scenario())


@pytest.mark.parametrize("host", ["a\0b", "x" * 70, ".."])
def test_what_is_no_name_is_refused(host: str) -> None:
    """Anybody on the network may announce it as the place of a broker."""
    asyncio.run(refusal(host))
