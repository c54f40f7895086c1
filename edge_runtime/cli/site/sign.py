"""edge-runtime site sign: answers the request of a gateway that came by file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.trust.authority import Authority
    from edge_runtime.trust.desk import Wanted


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import certificates, desk, files, keys

    authority = opening.authority(args)
    wanted = read(args.file, authority)
    issued = opening.certify(authority, wanted.csr, wanted.name, "gateway", replace=args.replace)
    output = args.output or args.file.with_name(args.file.name + ".answer")
    files.write(output, desk.encode(issued))
    key = keys.fingerprint(certificates.requested(wanted.csr.encode()))
    mark = opening.mark(authority.ca)
    if args.json:
        terminal.emit_json({"site": authority.site, "name": wanted.name, "key": key, "ca": mark, "answer": str(output)})
        return 0
    print(f"{wanted.name} belongs to {authority.site} now: key {key} (the gateway said the same?), authority {mark}")
    print(f"on the gateway: edge-runtime join --answer {output.name}")
    print(opening.SPREAD)
    return 0


def read(file: Path, authority: Authority) -> Wanted:
    """What `join --request` wrote. Raises EdgeError, also for another site's."""
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import desk, files

    hint = "`edge-runtime join --request FILE` writes one on the gateway"
    try:
        wanted = desk.decode(files.read(file))
    except desk.BadMessage:
        raise EdgeError(f"{file}: is no request of a gateway", hint) from None
    if not isinstance(wanted, desk.Wanted):
        raise EdgeError(f"{file}: is no request, but an answer ({type(wanted).__name__.lower()})", hint)
    if wanted.site != authority.site:
        raise EdgeError(f"{file}: is a request to {wanted.site}, and this is {authority.site}", "--folder DIR says which site")
    return wanted
