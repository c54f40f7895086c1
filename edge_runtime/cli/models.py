"""edge-runtime models: which models there are, and what each way to compute one gives on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.inference.model import Model
    from edge_runtime.inference.trial import Trial

SUMMARY = "list the models, or try one on every engine of this machine"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="NAME|PATH", help="open this model as a gateway would; show what was tried")
    parser.add_argument("--dir", type=Path, metavar="FOLDER", help="models looked for before the shipped ones (default: models)")
    parser.add_argument("--accelerator", default="cpu", help="the first choice: cpu (default), gpu, npu, edgetpu")
    parser.add_argument("--json", action="store_true", help="the same as JSON")


def run(args: argparse.Namespace) -> int:
    """0; listing: 1 if the manifest of one is wrong. Raises EngineError where nothing computes the model here."""
    from edge_runtime.ports import EdgeError

    if args.dir is not None and not args.dir.is_dir():
        raise EdgeError(f"{args.dir}: there is no such folder", "--dir FOLDER: in it stands a folder for each model")
    folder = args.dir or Path("models")
    return _try(args.model, folder, args.accelerator, args.json) if args.model else _list(folder, args.json)


def _list(folder: Path, as_json: bool) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.inference import store

    rows = [_described(store.find(name, [folder])) for name in store.names([folder])]
    if as_json:
        terminal.emit_json(rows)
    else:
        columns = ("name", "version", "window", "folder", "summary")
        terminal.table(columns, [[row[column] for column in columns] for row in rows])
    return 1 if any(row["error"] for row in rows) else 0


def _described(folder: Path) -> dict[str, Any]:
    """`window`: samples x points."""
    from edge_runtime.inference import store
    from edge_runtime.inference.engine import EngineError

    row: dict[str, Any] = {
        "name": folder.name,
        "version": None,
        "window": None,
        "artefacts": [],
        "folder": str(folder),
        "error": None,
    }
    try:
        manifest = store.read_manifest(folder)
    except EngineError as error:
        first = error.cause.partition("\n")[0]
        return row | {"error": error.cause, "summary": f"broken: {first}"}
    return row | {
        "version": manifest.version,
        "window": f"{manifest.input.rows} x {len(manifest.input.points)}",
        "artefacts": [artefact.file for artefact in manifest.artefacts],
        "summary": manifest.description,
    }


def _try(reference: str, folder: Path, accelerator: str, as_json: bool) -> int:
    import asyncio

    import msgspec

    from edge_runtime.cli import terminal

    model = asyncio.run(_opened(reference, folder, accelerator))
    if as_json:
        taken = {key: getattr(model, key) for key in ("file", "artefact", "executed_on", "inline", "threshold")}
        trials = msgspec.to_builtins(model.trials)
        terminal.emit_json({"name": model.name, "version": model.version, "trials": trials, "taken": taken})
    else:
        columns = ("file", "engine", "accelerator", "p50 us", "p99 us", "outcome")
        terminal.table(columns, [_cells(trial) for trial in model.trials], f"{model.name} {model.version}")
        how = "on the event loop" if model.inline else "on a thread of its own"
        print(f"taken: {model.file} on {model.executed_on}, {how}, threshold {model.threshold}")
    return 0


async def _opened(reference: str, folder: Path, accelerator: str) -> Model:
    """What was tried and taken; it is closed already. Raises EngineError."""
    from edge_runtime.board.system import SystemClock, ThreadWorker
    from edge_runtime.inference.model import open_model

    model = await open_model(reference, [folder], "auto", accelerator, lambda: ThreadWorker("model"), SystemClock())
    model.close()
    return model


def _cells(trial: Trial) -> tuple[str, ...]:
    p50, p99 = (f"{ns / 1e3:.1f}" if trial.works else "" for ns in (trial.p50_ns, trial.p99_ns))
    return trial.file, trial.engine, trial.accelerator, p50, p99, trial.reason or "works"
