"""An uplink that can be cut: a TCP relay, in its own process.

    python -m edge_runtime.testing.relay --to 127.0.0.1:8443

| line on stdin | what happens                                                                                       |
|---------------|----------------------------------------------------------------------------------------------------|
| cut           | every open connection is reset, what was on its way is lost; every new one is reset at once        |
| heal          | new connections pass again                                                                         |

The first line on stdout is {"port": N}; each line on stdin is answered with {"uplink": "cut"} or {"uplink": "up"} when it has
been done. It ends on SIGTERM, and when the process that started it dies. It needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import socket
import struct
import sys
import threading

from edge_runtime.testing.parent import die_with_parent

CHUNK_BYTES = 64 * 1024
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, 0 s: closing sends a reset, and what waits to be sent is thrown away."""


class Relay:
    """Listens on 127.0.0.1 and passes bytes both ways to one address, unless it is cut."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._open: list[asyncio.StreamWriter] = []
        self._cut = False

    async def listen(self, port: int) -> int:
        """Returns the port (0 asks for a free one)."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        return int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        self._cut = True
        for writer in self._open:
            _reset(writer)

    def heal(self) -> None:
        self._cut = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine = [writer]
        self._open.append(writer)
        try:
            if not self._cut:
                far_reader, far_writer = await asyncio.open_connection(self._host, self._port)
                mine.append(far_writer)
                self._open.append(far_writer)
            if not self._cut:
                await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
                for each in mine:  # both have said all: what is still on its way arrives
                    each.close()
                    await each.wait_closed()
        except OSError:
            pass  # one side reset its connection, or nobody listens there: the other side is to see the same
        finally:
            for each in mine:
                self._open.remove(each)
                _reset(each)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one side has no more to say; the other side may go on."""
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    writer.transport.abort()


async def serve(host: str, to_port: int, port: int) -> None:
    """Until it is killed."""
    relay = Relay(host, to_port)
    print(json.dumps({"port": await relay.listen(port)}), flush=True)
    loop = asyncio.get_running_loop()
    threading.Thread(target=_commands, args=(loop, relay), daemon=True).start()
    await asyncio.Event().wait()


def _commands(loop: asyncio.AbstractEventLoop, relay: Relay) -> None:
    """In a thread: stdin may be a pipe, a terminal or /dev/null, and the event loop cannot wait for all of these."""
    with open(0, "rb", buffering=0, closefd=False) as stdin:
        while line := stdin.readline():
            loop.call_soon_threadsafe(_obey, relay, line.decode(errors="replace").strip())


def _obey(relay: Relay, word: str) -> None:
    match word:
        case "cut":
            relay.cut()
            print(json.dumps({"uplink": "cut"}), flush=True)
        case "heal":
            relay.heal()
            print(json.dumps({"uplink": "up"}), flush=True)
        case _:
            print(f"{word!r}: say cut or heal", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="An uplink that can be cut: a TCP relay that obeys `cut` and `heal` on stdin")
    parser.add_argument("--to", required=True, metavar="HOST:PORT", help="where the bytes go")
    parser.add_argument("--port", type=int, default=0, help="listen here on 127.0.0.1; 0: a free one, printed on stdout as JSON")
    args = parser.parse_args()
    host, _, port = args.to.rpartition(":")
    if not host or not port.isdigit():
        parser.error(f"--to {args.to}: no HOST:PORT")
    die_with_parent()
    asyncio.run(serve(host, int(port), args.port))


if __name__ == "__main__":
    main()
