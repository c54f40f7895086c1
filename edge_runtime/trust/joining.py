"""Enrolment, the gateway's end (runs): finds the authority of its token, and asks to be let in. The other is enrolment.py.

Nobody has to be trusted on the way. The gateway connects twice. First without any belief: whoever answers shows a CA certificate,
and the gateway compares it with the mark in its token. Then again, over TLS that this CA vouches for: only there it shows the
secret. Certificates are never judged by the clock here: a gateway at 1970 joins its site.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from edge_runtime.ports import EdgeError
from edge_runtime.trust import desk, tls
from edge_runtime.trust.desk import BadMessage, Greeting, Issued, Joined, Refusal, Request
from edge_runtime.trust.enrolment import receive
from edge_runtime.trust.token import ASK, Token, ca_mark

CONNECT_S_MAX = 5.0
ANSWER_S_MAX = 10.0
GOODBYE_S_MAX = 2.0
ATTEMPTS_MAX = 5
ATTEMPT_PAUSE_S = 0.3

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class NotEnrolled(EdgeError):
    """The gateway has not joined."""


class Stranger(NotEnrolled):
    """Who answers is not the authority that the token speaks of. It has learnt nothing."""


class Interrupted(NotEnrolled):
    """The connection was cut before the answer."""


class Refused(NotEnrolled):
    """The authority says no; `reason` is for programs."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"the authority refuses: {refusal.cause}", refusal.hint)
        self.reason = refusal.reason


@asynccontextmanager
async def enrolled(token: Token, csr: str) -> AsyncIterator[Issued]:
    """Gives what the authority has issued for the CSR. When the block ends well the authority hears that the gateway has joined;
    if it does not hear it, that does no harm.

    Raises NotEnrolled: nobody answers, a Stranger, Refused, Interrupted. The same token and CSR may be tried again."""
    host, ca = await _found(token)
    async with AsyncExitStack() as stack:
        issued, (reader, writer) = await _persistently_asked(token, csr, host, ca, stack)
        if ssl.PEM_cert_to_DER_cert(issued.ca) != ssl.PEM_cert_to_DER_cert(ca):
            raise Stranger("the authority has sent another CA certificate than its own", ASK)
        yield issued
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S_MAX):
                writer.write(desk.encode(Joined(desk.VERSION)))
                await reader.read(1)  # it closes when it has heard that


async def _persistently_asked(token: Token, csr: str, host: str, ca: str, stack: AsyncExitStack) -> tuple[Issued, Streams]:
    """What was issued, and the connection, which `stack` closes."""
    error: OSError | TimeoutError | None = None
    for attempt in range(ATTEMPTS_MAX):
        if attempt:
            await asyncio.sleep(ATTEMPT_PAUSE_S)
        async with AsyncExitStack() as attempting:
            try:
                streams = await attempting.enter_async_context(_connected(host, token.port, _pinned(ca), desk.LINE_BYTES_MAX))
                _check_desk(streams[1], token)
                async with asyncio.timeout(ANSWER_S_MAX):
                    issued = await _asked(token, csr, *streams)
            except (OSError, TimeoutError) as each:
                error = each
                continue
            stack.push_async_exit(attempting.pop_all())
            return issued, streams
    raise Interrupted(
        f"the connection to the authority at {host}:{token.port} was cut ({_why(error)})",
        "type the same command again: the token is still good until it expires",
    )


async def _asked(token: Token, csr: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Issued:
    if await receive(reader, Greeting) is None:
        raise ConnectionResetError
    writer.write(desk.encode(Request(desk.VERSION, token.site, token.gateway, token.secret, csr)))
    answer = await receive(reader, Issued, Refusal)
    if isinstance(answer, Refusal):
        raise Refused(answer)
    if not isinstance(answer, Issued):
        raise ConnectionResetError
    return answer


async def _found(token: Token) -> tuple[str, str]:
    """The host at which the authority of the token answers, and its CA certificate (PEM). All are asked at once: one that does
    not answer takes the time of nobody."""
    asking = [asyncio.create_task(_greeted(host, token), name=f"enrolment: {host}") for host in token.hosts]
    waiting = asking
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            waiting = [task for task in waiting if task not in done]
            for host, task in zip(token.hosts, asking, strict=True):
                if task in done and task.exception() is None:
                    return host, task.result()
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    raise _unfound(token, [task.exception() for task in asking])


async def _greeted(host: str, token: Token) -> str:
    """The CA certificate that is shown there. Raises OSError, TimeoutError; Stranger: it is not the one of the token."""
    believing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    believing.minimum_version = ssl.TLSVersion.TLSv1_3
    believing.check_hostname = False
    believing.verify_mode = ssl.CERT_NONE  # nothing is said here, and nothing believed: see _pinned
    for attempt in range(ATTEMPTS_MAX):
        if attempt:
            await asyncio.sleep(ATTEMPT_PAUSE_S)
        try:
            async with _connected(host, token.port, believing, desk.OPEN_BYTES_MAX) as (reader, _):
                async with asyncio.timeout(CONNECT_S_MAX):
                    greeting = await receive(reader, Greeting)
        except ConnectionRefusedError:
            raise
        except ConnectionError:  # a cable, or crowded out by a flood: it goes on
            continue
        except BadMessage as error:
            raise Stranger(error.cause, error.hint) from None
        if greeting is not None:
            return _compared(greeting.ca, token)
    raise ConnectionResetError


def _compared(ca: str, token: Token) -> str:
    try:
        mark = ca_mark(ssl.PEM_cert_to_DER_cert(ca))
    except ValueError:
        mark = b""
    if mark != token.ca:
        raise Stranger(f"another authority than that of {token.site} answers", ASK)
    return ca


def _pinned(ca: str) -> ssl.SSLContext:
    """Only who has a certificate of this CA."""
    context = tls.client_context(ca=ca)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _check_desk(writer: asyncio.StreamWriter, token: Token) -> None:
    """A member of the site has a certificate of the CA, too: a stolen gateway must not be told the secret. Raises Stranger."""
    certificate = writer.get_extra_info("peercert") or {}
    subject = {key: value for pairs in certificate.get("subject", ()) for key, value in pairs}
    if (subject.get("organizationName"), subject.get("organizationalUnitName")) != (token.site, "authority"):
        raise Stranger(f"a member of {token.site} answers in place of its authority", "find out which: it may be stolen")


@asynccontextmanager
async def _connected(host: str, port: int, context: ssl.SSLContext, limit: int) -> AsyncIterator[Streams]:
    """Raises OSError, TimeoutError, Stranger."""
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname="", limit=limit)
    except ssl.SSLCertVerificationError:
        raise Stranger("who answers has no certificate of the site's CA", ASK) from None
    except ssl.SSLError:
        raise Stranger("who answers does not speak as an authority does (TLS 1.3)", ASK) from None
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def _unfound(token: Token, errors: list[BaseException | None]) -> NotEnrolled:
    """What is to be said of all the addresses: a stranger is the worst of it."""
    for error in errors:
        if isinstance(error, Stranger):
            return error
    tried = ", ".join(f"{host}:{token.port} ({_why(error)})" for host, error in zip(token.hosts, errors, strict=True))
    hint = "does `edge-runtime site token` still wait there (it ends when the token is used or expired)? Is a firewall between?"
    return NotEnrolled(f"no authority answers at {tried}", hint)


def _why(error: BaseException | None) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number and number > 0 else "cut off"  # asyncio's own words repeat the address
