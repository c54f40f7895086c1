"""edge-runtime gateway replace: new hardware takes the place of a gateway that is dead.

Each step can be repeated: what is done already is seen and left as it is.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from edge_runtime.cli.mesh.finding import Plan
    from edge_runtime.config import Config
    from edge_runtime.trust.identity import Identity

SUMMARY = "replace a gateway that is dead by this machine: its name, configuration, models and what it had not delivered"

FILE, DATA = "gateway.yaml", "data"

NOT_TAKEN = ("control", "site_dir", "secrets_dir")
"""Of a report: who may configure this machine, and whom it trusts, nobody says from elsewhere."""


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="replace", required=True)
    replace = verbs.add_parser("replace", help="this machine becomes the gateway OLD of its site, with a key of its own")
    replace.add_argument("old", metavar="OLD", help="name of the gateway that is dead")
    replace.add_argument(
        "token", nargs="?", metavar="TOKEN", help="as `edge-runtime site token OLD --replace` prints it; - reads it from "
        "standard input; once this machine has joined it is not needed again"
    )  # fmt: skip
    replace.add_argument("--folder", type=Path, default=Path(), metavar="DIR", help=f"gets {FILE} and {DATA}/ (default: here)")
    replace.add_argument("--outbox", type=Path, metavar="OLD.db", help="outbox.db of the old disk: what was not delivered")
    replace.add_argument("--broker", metavar="URL", help="the site's broker (default: looked for with mDNS)")
    replace.add_argument("--site", help="where the site has no authority, and so no TOKEN: its name")
    replace.add_argument("--json", action="store_true", help="print JSON")


State = Literal["done", "already", "left"]


@dataclass
class Steps:
    """What was done, in order; people see each at once. `left`: for a person, or for later."""

    json: bool
    all: list[dict[str, str]] = field(default_factory=list)

    def say(self, step: str, state: State, detail: str, hint: str = "") -> None:
        self.all.append({"step": step, "state": state, "detail": detail, "hint": hint})
        if not self.json:
            print(f"{step:<14}{state:<9}{detail}" + (f"\n{'':<23}{hint}" if hint else ""), flush=True)


def run(args: argparse.Namespace) -> int:
    """0: `edge-runtime run` can begin; 1: something has to be given first. Raises EdgeError."""
    from edge_runtime.cli import terminal

    steps = Steps(args.json)
    file = args.folder / FILE
    _make_data(args.folder / DATA)
    identity = _join(args, steps)
    _take_configuration(args, identity, file, steps)
    from edge_runtime import config
    from edge_runtime.sources.registry import Registry

    settings = config.load_file(file, Registry()).config
    missing = _secrets(settings, file, steps)
    _models(settings, file, steps)
    _outbox(args, settings, file, steps)
    if args.json:
        terminal.emit_json({"gateway": args.old, "file": str(file), "ready": not missing, "secrets": missing, "steps": steps.all})
    else:
        print(f"next: {'the secrets above, then ' if missing else ''}edge-runtime run {file}")
    return 1 if missing else 0


def _make_data(folder: Path) -> None:
    """First: what comes into it is its owner's. Raises EdgeError."""
    from edge_runtime.trust import files

    if not folder.exists():
        files.make_folder(folder)
        files.hand_over(folder)


# --- who it is -------------------------------------------------------------------------------------------------------


def _join(args: argparse.Namespace, steps: Steps) -> Identity | None:
    """None: the site has no authority."""
    from edge_runtime.cli import join
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust.identity import Identity

    place = join.Place(args.folder / DATA / "identity")
    identity = Identity.load(place.folder)
    if identity is None and args.token is None:
        if args.site is None:
            raise EdgeError("the TOKEN is missing", f"on the laptop of the site: edge-runtime site token {args.old} --replace")
        steps.say("identity", "already", f"none: {args.site} has no authority")
        return None
    state: State = "already"
    if identity is None:
        _check_token(args)
        try:
            identity, state = join.with_token(args.token, place), "done"
        finally:
            join.hand_over(place.folder)
    if (identity.name, identity.role) != (args.old, "gateway"):
        raise EdgeError(f"{place.folder}: here is {identity.name} of {identity.site}, not {args.old}", "another --folder")
    steps.say("identity", state, f"{identity.name} of {identity.site}, key {identity.key.fingerprint}; the old key is revoked")
    return identity


def _check_token(args: argparse.Namespace) -> None:
    """Before it is used: it is good once. One from standard input shows itself too late."""
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import token

    if args.token != "-" and (name := token.read(args.token).gateway) != args.old:
        raise EdgeError(f"the token is for {name}, not for {args.old}", f"edge-runtime site token {args.old} --replace")


# --- its configuration -----------------------------------------------------------------------------------------------


def _take_configuration(args: argparse.Namespace, identity: Identity | None, file: Path, steps: Steps) -> None:
    """What peers keep of it, or what the broker remembers."""
    import json

    from edge_runtime import config
    from edge_runtime.sources.registry import Registry
    from edge_runtime.trust import files

    if file.exists():
        steps.say("configuration", "already", f"{file} is there, and stays as it is")
        return
    site = identity.site if identity else args.site
    found, where = asyncio.run(_kept(_plan(args, site, identity), args.old))
    settings = taken(found, site, args.old)
    text = _text(args.old, where, settings)
    config.load(text, Registry())
    files.write(file, text.encode())
    files.hand_over(file)
    steps.say("configuration", "done", f"{file}, as {where} keeps it")
    for key in (each for each in NOT_TAKEN if each in found):
        told = json.dumps(found[key])
        steps.say("configuration", "left", f"{key}: it said {told}", f"write it into {file} if that is still right")


def taken(found: dict[str, Any], site: str, name: str) -> dict[str, Any]:
    """What of a reported configuration becomes that of the new hardware."""
    settings = {key: value for key, value in found.items() if key not in NOT_TAKEN}
    referring: dict[str, Any] = _referring(settings | {"site": site, "gateway": name, "data_dir": DATA}, ())
    return referring


def _plan(args: argparse.Namespace, site: str, identity: Identity | None) -> Plan:
    from edge_runtime.address import address
    from edge_runtime.cli.mesh.finding import Plan

    places = (address(args.broker),) if args.broker else ()
    return Plan(site, places, discover=not places, identity=identity)


async def _kept(plan: Plan, old: str) -> tuple[dict[str, Any], str]:
    """The newest effective configuration, without its secrets, and where it is from."""
    from edge_runtime.bus import topics
    from edge_runtime.bus.control import Reported
    from edge_runtime.bus.messages import BadMessage
    from edge_runtime.cli.talking import Talk
    from edge_runtime.control.neighbours import opened_kept, report_of
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust.roster import Forged

    kept, reported = (topics.gateway(plan.site, old, "config", each) for each in ("kept", "reported"))
    found: dict[str, Reported] = {}
    async with Talk(plan) as talk:
        async for message in talk.kept(kept, reported):
            try:
                if message.topic == kept:
                    found[kept] = opened_kept(message.payload, plan.identity, old)[2]
                else:
                    found[reported] = report_of(message.payload, plan.identity, old)
            except (BadMessage, Forged):  # the old gateway has not said it
                continue
        where = talk.where
    for topic in (kept, reported):
        if topic in found and found[topic].config:
            return dict(found[topic].config or {}), "a peer" if topic == kept else f"the broker at {where}"
    hint = "is another gateway running? It says it within 10 s. Or write the file by hand, and try again: the rest is done then"
    raise EdgeError(f"{where}: nobody keeps the configuration of {old}", hint)


def _referring(value: Any, path: tuple[str | int, ...]) -> Any:
    """Secrets that a report does not show become references, where one can stand."""
    from edge_runtime import references
    from edge_runtime.control.redaction import HIDDEN

    if isinstance(value, dict):
        return {key: _referring(inner, (*path, key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_referring(inner, (*path, number)) for number, inner in enumerate(value)]
    if not isinstance(value, str) or HIDDEN not in value or not references.taken_at(path):
        return value
    name = "-".join(str(step) for step in path if step != "options")
    return value.replace(HIDDEN, f"secret:{name}", 1)


def _text(old: str, where: str, settings: dict[str, Any]) -> str:
    """JSON is YAML."""
    import json

    return f"# Of {old}, as {where} kept it when this machine took its place.\n" + json.dumps(settings, indent=2) + "\n"


# --- what else it needs ----------------------------------------------------------------------------------------------


def _secrets(settings: Config, file: Path, steps: Steps) -> list[str]:
    """Those that are asked for and not here."""
    from edge_runtime import config, references
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.document import dotted
    from edge_runtime.ports import SecretError

    said = settings.model_dump(mode="json", exclude_unset=True)
    kept, missing = SystemSecrets(file.resolve().parent / config.secrets_folder(settings)), []
    for path, name in references.found(said):
        try:
            kept.get(name)
        except SecretError:
            missing.append(name)
            steps.say("secret", "left", f"{name}, for {dotted(path)}", f"edge-runtime secret set {name} {file}")
    for path in _hidden(said, ()):
        missing.append(dotted(path))
        steps.say("secret", "left", f"{dotted(path)} stands as *** in {file}", "write what belongs there")
    return list(dict.fromkeys(missing))


def _hidden(value: Any, path: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
    from edge_runtime.control.redaction import HIDDEN

    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in _hidden(inner, (*path, key))]
    if isinstance(value, list):
        return [found for number, inner in enumerate(value) for found in _hidden(inner, (*path, number))]
    return [path] if isinstance(value, str) and HIDDEN in value else []


def _models(settings: Config, file: Path, steps: Steps) -> None:
    """Those that are missing come from peers when the gateway runs."""
    import re

    from edge_runtime.document import NAME
    from edge_runtime.inference import store

    wanted = dict.fromkeys(each.model for each in settings.pipelines.values() if each.model)
    for model in wanted:
        try:
            steps.say("model", "already", f"{model} is in {store.find(model, [file.parent / settings.models_dir])}")
        except store.ModelMissing:
            if re.fullmatch(NAME, model):
                steps.say("model", "left", f"{model} comes from a peer that has it, as soon as the gateway runs")
            else:
                steps.say(
                    "model", "left", f"{model} is a folder that is not here", "copy it: only models with a name come from peers"
                )


def _outbox(args: argparse.Namespace, settings: Config, file: Path, steps: Steps) -> None:
    from edge_runtime import config
    from edge_runtime.cli import outbox_import
    from edge_runtime.outbox import importing
    from edge_runtime.outbox.database import FileDisk

    place = outbox_import.place(settings, file.resolve().parent)
    if args.outbox is None:
        lanes = {name: config.lanes(sink) for name, sink in settings.sinks.items()}
        state: State = "done" if importing.reserve(place.path, lanes, FileDisk()) else "already"
        hint = f"when the old disk is found: edge-runtime outbox import OLD.db --into {file}"
        steps.say("outbox", state, "there is room for what the old one had not delivered", hint)
        return
    with outbox_import.progress() as tell:
        done = outbox_import.take_in(args.outbox, file, tell)
    if done.already:
        steps.say("outbox", "already", f"{args.outbox} was taken in before")
        return
    gone = sum(done.unreadable.values())
    told = f", {gone} that could not be read are told as gone" if gone else ""
    left = sum(count for count, _ in done.samples_left.values())
    told += f", {left} samples of open windows were not taken" if left else ""
    steps.say("outbox", "done", f"{sum(done.records.values())} records of {args.outbox}{told}")
