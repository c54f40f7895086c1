"""edge-runtime config: what gateways are configured to do, over MQTT; and the schema of it. One file a word.

| file          | what it does                                                                              |
|---------------|-------------------------------------------------------------------------------------------|
| get, set, ... | the words                                                                                 |
| wanting.py    | runs: what is there, what would happen, publishing, what came of it; for `set` and `apply` |
| patching.py   | decides: PATH=VALUE to a patch, a patch on a patch                                        |
| preview.py    | decides: what a document would do to a gateway that reports so and so                     |
| following.py  | decides: what came of it, from the gateways' reports                                      |
| places.py     | decides: where to speak to a gateway that goes to another broker                          |
| moving.py     | runs: speaks to it there                                                                  |
| seen.py       | what the broker has: reports, documents, who is there                                     |
| shape.py      | decides: a configuration as YAML, and its leaves by path                                  |
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime.cli.mesh import add_where

SUMMARY = "see and change what gateways are configured to do; the configuration's JSON schema, or a commented sample"

TARGET = "a gateway, or group/NAME (every gateway is in group/default)"


def arguments(parser: argparse.ArgumentParser) -> None:
    words = parser.add_subparsers(metavar="WHAT", required=True, dest="what", title="what")
    for word, add, summary in (
        ("get", _get, "the configuration that a gateway runs, and where each value comes from"),
        ("set", _set, "change values; shows what would restart, and follows what comes of it"),
        ("diff", _diff, "what a gateway runs against a file, or against what it was told to"),
        ("apply", _apply, "publish a whole configuration, or a patch, from a file"),
        ("history", _history, "the configurations that a gateway had: who, why, what came of it"),
        ("rollback", _rollback, "back to the last good configuration"),
    ):
        sub = words.add_parser(word, help=summary, description=summary)
        add(sub)
        add_where(sub)
    words.add_parser("schema", help="JSON schema, with the options and points of every installed adapter")
    sample = words.add_parser("example", help="a commented sample; every key that is commented out shows its default")
    sample.add_argument("--adapter", default="modbus", help="of the device in the sample (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """0; 1 where it was not taken, or there is a difference. Raises EdgeError."""
    import importlib

    return int(importlib.import_module(f"edge_runtime.cli.config.{args.what}").run(args))


def _get(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")
    parser.add_argument("path", nargs="?", metavar="PATH", help="only this part: pipelines.wear.rules.too-hot")
    parser.add_argument("--provenance", action="store_true", help="say of each value which layer it comes from")
    parser.add_argument("--json", action="store_true", help="the whole report as JSON")


def _set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=TARGET)
    parser.add_argument(
        "changes", nargs="+", metavar="PATH=VALUE", help="points and rules by their names; VALUE is YAML; nothing: removes it"
    )
    _publishing(parser)


def _apply(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="TARGET", help=TARGET)
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML; a whole configuration replaces all layers below it")
    parser.add_argument("--patch", action="store_true", help="FILE is a patch of what the layers below make")
    _publishing(parser)


def _diff(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="YAML (default: what was published for it)")


def _history(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _rollback(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _publishing(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--note", default="", help="why, for the history")
    parser.add_argument("--canary", action="append", default=[], metavar="G", help="of a group: these gateways try it first")
    parser.add_argument("--trial", type=float, metavar="S", help="look so long whether it works (default: control.trial_s)")
    parser.add_argument(
        "--there", metavar="URL", help="the change moves the broker: how we get to the new one, if that cannot be told from it"
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would happen, and end")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.add_argument("--unchecked", action="store_true", help="publish also what this computer thinks is wrong")
    parser.add_argument("--json", action="store_true", help="print JSON")
