"""By what a gateway is steered, from one of its configurations to the next: it outlives each `gateway.Gateway` of a process."""

from __future__ import annotations

from dataclasses import dataclass

from edge_runtime.control.audit import AuditLog
from edge_runtime.control.book import Book
from edge_runtime.control.origin import Origin
from edge_runtime.trust.identity import Identity


@dataclass(frozen=True)
class Steering:
    """`identity` None: there is no site."""

    origin: Origin
    book: Book
    audit: AuditLog
    identity: Identity | None
