"""edge-runtime site renew: certificates for the keys that members have, for another period."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.trust.authority import Authority


def run(args: argparse.Namespace) -> int:
    """All that are named, or none where one of them cannot be. Raises EdgeError."""
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import desk, files

    authority = opening.authority(args)
    answers = {}
    for name in [_member(each, authority) for each in args.names]:
        answers[name] = args.output / f"{name}.answer"
        files.write(answers[name], desk.encode(opening.packed(authority, name, authority.renew(name))))
    if args.json:
        terminal.emit_json({"site": authority.site, "answers": {name: str(file) for name, file in answers.items()}})
        return 0
    for name, file in answers.items():
        print(f"{name} is renewed: {file}; there: edge-runtime join --answer {file.name}")
    print(opening.SPREAD)
    return 0


def _member(word: str, authority: Authority) -> str:
    """Its name, from the name or its request. Raises EdgeError: nobody, or a request with another key."""
    from edge_runtime.cli.site import sign
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import certificates

    held = {each.name: each.public for each in authority.members}
    if word in held:
        return word
    if not Path(word).is_file():
        raise EdgeError(f"{word}: no member of {authority.site}, and no file", "`edge-runtime site members` lists them")
    wanted = sign.read(Path(word), authority)
    if held.get(wanted.name) != certificates.requested(wanted.csr.encode()):
        hint = f"let it in: edge-runtime site sign {word} (--replace, where it takes the place of another key)"
        raise EdgeError(f"{word}: {wanted.name} has not this key at {authority.site}", hint)
    return wanted.name
