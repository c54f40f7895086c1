"""Whether a model fits a pipeline, and which points of a device a window holds, in which order (pure). A model that is fed with
columns in the wrong order answers all the same, and wrongly: so points are taken by name, and by place only where a person
wrote the places down. A rule on an output that the model does not have would never be raised: it does not fit either."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from edge_runtime import config
from edge_runtime.document import closest
from edge_runtime.inference.engine import EngineError


class Shape(Protocol):
    """What of a model must fit: a loaded one has it, and so has its manifest."""

    @property
    def name(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def points(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> tuple[str, ...]: ...


def window_points(name: str, settings: config.Pipeline, declared: Sequence[str], model: Shape | None) -> tuple[str, ...]:
    """The window's columns. `declared`: the device's points. Raises EngineError where the model does not fit the pipeline."""
    if model is None:
        return tuple(settings.points or declared)
    _check_rows(name, settings.window, model)
    _check_outputs(name, settings.rules, model)
    if settings.points is None:
        return _by_name(name, settings.device, declared, model)
    _check_places(name, settings.points, model)
    return tuple(settings.points)


def _check_rows(name: str, window: config.Window | None, model: Shape) -> None:
    if window is None or window.count == model.rows:
        return
    here = f"pipelines.{name}.window"
    has = f"{here}.count is {window.count}" if window.count else f"{here} is by time, so their number varies"
    raise EngineError(f"model {model.name} takes windows of {model.rows} samples, {has}", f"set {here}.count to {model.rows}")


def _check_outputs(name: str, rules: Sequence[config.Rule], model: Shape) -> None:
    for rule in rules:
        if rule.output not in model.outputs:
            raise EngineError(
                f"pipelines.{name}: rule {rule.name} is on output {rule.output}, which model {model.name} does not have",
                closest(rule.output, model.outputs, "its outputs are"),
            )


def _by_name(name: str, device: str, declared: Sequence[str], model: Shape) -> tuple[str, ...]:
    missing = [point for point in model.points if point not in declared]
    if missing:
        raise EngineError(
            f"model {model.name} takes points that device {device} does not declare: {', '.join(missing)}",
            f"declare them under these names, or say in pipelines.{name}.points which point stands for which, "
            f"in this order: {', '.join(model.points)}",
        )
    return model.points


def _check_places(name: str, points: Sequence[str], model: Shape) -> None:
    here, wanted = f"pipelines.{name}.points", ", ".join(model.points)
    if len(points) != len(model.points):
        raise EngineError(
            f"model {model.name} takes {len(model.points)} points ({wanted}), {here} names {len(points)} ({', '.join(points)})",
            f"name one for each, in the model's order, or leave {here} out: then they are taken by name",
        )
    misplaced = [point for point, place in zip(points, model.points, strict=True) if point != place and point in model.points]
    if misplaced:
        raise EngineError(
            f"{here} puts {', '.join(misplaced)} where model {model.name} takes another point (its order is {wanted})",
            f"write them in this order, or leave {here} out: then they are taken by name",
        )
