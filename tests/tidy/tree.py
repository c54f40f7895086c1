"""The source tree as the rules see it: every module of the packages with its syntax tree and its imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGES = {"edge_runtime": "edge_runtime", "adapters/edge_adapters": "edge_adapters"}
"""Folder of a package -> its import name."""


@dataclass(frozen=True)
class Import:
    """One name that is imported. `top` is False inside functions; `typing` is True under `if TYPE_CHECKING:`."""

    name: str
    line: int
    top: bool
    typing: bool

    @property
    def root(self) -> str:
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """`path` is relative to the tree's root: "edge_runtime/bus/topics.py"."""

    path: str
    name: str
    source: str

    @cached_property
    def syntax(self) -> ast.Module:
        return ast.parse(self.source, self.path)

    @cached_property
    def imports(self) -> tuple[Import, ...]:
        return tuple(_imports(self, self.syntax.body, top=True, typing=False))

    @property
    def room(self) -> str:
        """First folder (or file) below the package: "bus", "records"."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else ""

    def at(self, node: ast.AST | int, message: str) -> str:
        line = node if isinstance(node, int) else getattr(node, "lineno", 1)
        return f"{self.path}:{line}: {message}"


class Tree:
    """A checkout: `root` holds edge_runtime/ and adapters/edge_adapters/ (or some of them)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def modules(self) -> tuple[Module, ...]:
        return tuple(self._find())

    def _find(self) -> Iterator[Module]:
        for folder, package in PACKAGES.items():
            for file in sorted((self.root / folder).rglob("*.py")):
                parts = file.relative_to(self.root / folder).with_suffix("").parts
                name = ".".join((package, *(part for part in parts if part != "__init__")))
                yield Module(file.relative_to(self.root).as_posix(), name, file.read_text())


def _imports(module: Module, body: list[ast.stmt], *, top: bool, typing: bool) -> Iterator[Import]:
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, top, typing)
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(module, node)
            for alias in node.names:
                yield Import(f"{base}.{alias.name}", node.lineno, top, typing)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(module, node.body, top=top, typing=True)
            yield from _imports(module, node.orelse, top=top, typing=typing)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for inner in _blocks(node):
                yield from _imports(module, inner, top=top and not inside, typing=typing)


def _blocks(node: ast.AST) -> Iterator[list[ast.stmt]]:
    """The lists of statements in a compound statement: bodies, else, finally, handlers, match cases."""
    for name in ("body", "orelse", "finalbody"):
        if isinstance(block := getattr(node, name, None), list):
            yield block
    for name in ("handlers", "cases"):
        for part in getattr(node, name, []):
            yield part.body


def _absolute(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    package = module.name.split(".") if module.path.endswith("__init__.py") else module.name.split(".")[:-1]
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, node.module) if node.module else base)
