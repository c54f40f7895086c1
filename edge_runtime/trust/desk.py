"""One enrolment at the site's authority (decides): who may be let in with a token, and what is said on the wire.

Both ends speak JSON, one message a line, inside TLS:

    authority -> gateway   Greeting   the CA's certificate; whoever connects gets it, the gateway compares it with its token
    gateway -> authority   Request    the secret of the token and a request for a certificate (CSR)
    authority -> gateway   Issued     certificate, CA, roster; or a Refusal
    gateway -> authority   Joined     all of it is on the gateway's disk

The first request with the secret binds the token to its CSR. The same CSR gets the same answer until the token expires: a gateway
that was cut off asks again. (An Ed25519 signature is the same every time, so the same key and names make the same CSR.)
"""

from __future__ import annotations

import hmac
from typing import Annotated, Literal

import msgspec

from edge_runtime.ports import EdgeError
from edge_runtime.trust.token import ASK, Token

VERSION: Literal[1] = 1
LINE_BYTES_MAX = 4 * 2**20
"""Of an answer, from an authority that is proved: it holds the roster of the largest site."""
OPEN_BYTES_MAX = 16 * 2**10
"""Of what a stranger may send: a request, a greeting."""
PAUSE_S = 0.05
PAUSE_S_MAX = 2.0

Pem = Annotated[str, msgspec.Meta(max_length=OPEN_BYTES_MAX)]
Reason = Literal["wrong", "name", "used", "expired", "failed"]


class BadMessage(EdgeError):
    """What came is no message of an enrolment."""


class Greeting(msgspec.Struct, frozen=True, tag_field="kind", tag="greeting", forbid_unknown_fields=True):
    v: Literal[1]
    ca: Pem


class Request(msgspec.Struct, frozen=True, tag_field="kind", tag="request", forbid_unknown_fields=True):
    v: Literal[1]
    site: str
    gateway: str
    secret: bytes
    csr: Pem

    def __repr__(self) -> str:
        return f"Request({self.gateway}.{self.site})"


class Wanted(msgspec.Struct, frozen=True, tag_field="kind", tag="wanted", forbid_unknown_fields=True):
    """A request without a secret, as a file on a USB stick: the person who carries it says whose it is."""

    v: Literal[1]
    site: str
    name: str
    csr: Pem


class Issued(msgspec.Struct, frozen=True, tag_field="kind", tag="issued", forbid_unknown_fields=True):
    """What a member gets. As a file it is the answer that `site sign` writes for a USB stick."""

    v: Literal[1]
    site: str
    name: str
    ca: Pem
    certificate: Pem
    roster: bytes
    """Signed by the CA: the content of roster.json."""


class Refusal(msgspec.Struct, frozen=True, tag_field="kind", tag="refusal", forbid_unknown_fields=True):
    v: Literal[1]
    reason: Reason
    cause: str
    hint: str = ""


class Joined(msgspec.Struct, frozen=True, tag_field="kind", tag="joined", forbid_unknown_fields=True):
    v: Literal[1]


Message = Greeting | Request | Wanted | Issued | Refusal | Joined

_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Raises BadMessage; its words hold nothing of the line, which may hold a secret."""
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise BadMessage(
            "what came is no message of an enrolment", "another program answers there, or another version of this one"
        ) from None


class Desk:
    """Where one gateway is waited for."""

    def __init__(self, token: Token, until_ns: int) -> None:
        """`until_ns`: by the monotonic clock of the authority's machine, whatever its wall clock says."""
        self.token = token
        self.until_ns = until_ns
        self.wrong = 0
        """Requests without the secret."""
        self.issued: Issued | None = None
        self.joined = False
        self._csr = ""

    def judge(self, request: Request, now_ns: int) -> Refusal | None:
        """None: it gets `issued`, or what is issued now and handed to `keep`. Whoever has not the secret learns nothing, not even
        whether the token is used."""
        if not hmac.compare_digest(request.secret, self.token.secret):
            self.wrong += 1
            return _refusal("wrong", "the token is not the one that is waited for here", f"is it the newest? Or {ASK}")
        if (request.site, request.gateway) != (self.token.site, self.token.gateway):
            return _refusal("name", f"the token is for {self.token.gateway} of {self.token.site}", ASK)
        if now_ns >= self.until_ns:
            return _refusal("expired", "the token has expired", ASK)
        if self._csr and request.csr != self._csr:
            cause = "the token is used: another key has got a certificate with it"
            return _refusal(
                "used", cause, f"was that not you? `edge-runtime site revoke {self.token.gateway}`; then ask for a new one"
            )
        return None

    def keep(self, request: Request, issued: Issued) -> None:
        """From now on the token is good for this CSR only."""
        self._csr, self.issued = request.csr, issued

    def pause_s(self) -> float:
        """How long a wrong secret waits for its answer; who has the right one waits never."""
        return min(PAUSE_S_MAX, PAUSE_S * 2.0 ** min(self.wrong, 10))


def failed(error: EdgeError) -> Refusal:
    """The authority cannot do it."""
    return _refusal("failed", error.cause, error.hint)


def _refusal(reason: Reason, cause: str, hint: str) -> Refusal:
    return Refusal(VERSION, reason, cause, hint)
