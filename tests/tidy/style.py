"""What a file may hold: its length, its names, no clock, no chance, no broad except, no path of somebody's machine."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tidy.tree import Module, Tree

FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 60
CLOCK_MODULES = ("time", "random", "uuid", "secrets")
CLOCK_CALLS = ("datetime.now", "datetime.utcnow", "datetime.today", "date.today", "os.urandom", "os.getrandom")
CLOCK_PLACES = ("edge_runtime/board/system.py", "edge_runtime/testing/")
SUPERVISORS = (
    "edge_runtime/sources/supervisor.py",
    "edge_runtime/services.py",
    "edge_runtime/foreign.py",
    "edge_runtime/testing/",
)
"""foreign.py asks what is not ours. The testing kit is one, too: its loop and its node outlive whatever runs in them."""
EMPTY_NAMES = ("manager", "helper", "helpers", "util", "utils", "misc", "common", "stuff")
GENERIC_PACKAGES = ("packaging", "adapters", "models", "hil", "firmware-profiles", "docs")
TEXT_BYTES_MAX = 2**20

# In pieces: this file is searched, too.
MACHINE_TEXTS = re.compile(
    "|".join(
        [
            "/" + "work/",
            "/" + "home/[a-z]",
            "/" + "root/",
            "pypi" + r"\.org",
            "python" + "hosted",
            "npmjs" + r"\.(org|com)",
            "/opt/" + "pypi",
        ]
    )
)


def clock_and_chance(tree: Tree) -> Iterator[str]:
    """One file knows the time and throws the dice, so that everything else runs the same in the simulator."""
    for module in _runtime(tree):
        if _at(module, CLOCK_PLACES):
            continue
        for found in module.imports:
            if found.root in CLOCK_MODULES:
                yield module.at(found.line, f"{found.root}: take ports.Clock or ports.Dice")
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.Attribute) and any(ast.unparse(node).endswith(call) for call in CLOCK_CALLS):
                yield module.at(node, f"{ast.unparse(node)}: take ports.Clock or ports.Dice")


def repeatable(tree: Tree) -> Iterator[str]:
    """What goes another way every time (by the addresses of objects) breaks "same seed, same trace"."""
    for module in _runtime(tree):
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.Attribute | ast.Name) and ast.unparse(node) in ("asyncio.as_completed", "as_completed"):
                yield module.at(node, "as_completed: its order is no order")
            if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension) and _is_set(node.iter):
                yield module.at(node.iter, "iterates over a set: sort it, or use dict.fromkeys")


def _is_set(node: ast.expr) -> bool:
    calls = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("set", "frozenset")
    return calls or isinstance(node, ast.Set | ast.SetComp)


def broad_excepts(tree: Tree) -> Iterator[str]:
    """Only supervisors, and who asks foreign code, catch what they do not know. Who tidies up and raises again does not."""
    for module in tree.modules:
        if _at(module, SUPERVISORS):
            continue
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _raises_again(node):
                yield module.at(node, "broad except")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress") and any(map(_is_broad, node.args)):
                yield module.at(node, "broad suppress")


def _raises_again(node: ast.ExceptHandler) -> bool:
    return isinstance(last := node.body[-1], ast.Raise) and last.exc is None


def _is_broad(node: ast.expr | None) -> bool:
    return node is None or any(
        isinstance(part, ast.Name) and part.id in ("Exception", "BaseException") for part in ast.walk(node)
    )


def lengths(tree: Tree) -> Iterator[str]:
    """A file has one subject, a function fits on a screen."""
    for module in tree.modules:
        lines = module.source.count("\n")
        if lines > FILE_LINES_MAX:
            yield module.at(1, f"{lines} lines; at most {FILE_LINES_MAX}")
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    yield module.at(node, f"{node.name} has {length} lines; at most {FUNCTION_LINES_MAX}")


def names(tree: Tree) -> Iterator[str]:
    """A name that says nothing hides two subjects."""
    for module in tree.modules:
        if _is_empty(module.path.rpartition("/")[2].removesuffix(".py")):
            yield module.at(1, "the file's name says nothing")
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_empty(node.name):
                yield module.at(node, f"the name {node.name} says nothing")


def _is_empty(name: str) -> bool:
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)
    return any(word.lower() in EMPTY_NAMES for word in words)


def docstrings(tree: Tree) -> Iterator[str]:
    """A module says what it is for. The empty __init__.py of a room says nothing and may."""
    for module in tree.modules:
        if module.source.strip() and not ast.get_docstring(module.syntax):
            yield module.at(1, "has no docstring")


def prints(tree: Tree) -> Iterator[str]:
    """Standard output belongs to the command line, and to a module that is run as a program."""
    for module in tree.modules:
        if module.room in ("cli", "testing"):
            continue
        library = [node for node in module.syntax.body if not _is_main(node)]
        for node in (inner for outer in library for inner in ast.walk(outer)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield module.at(node, "print outside cli/")


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def generic_packages(tree: Tree) -> Iterator[str]:
    """A folder of the checkout that becomes a package shadows others (packaging is one that pip needs)."""
    for folder in GENERIC_PACKAGES:
        if (tree.root / folder / "__init__.py").exists():
            yield f"{folder}/__init__.py:1: {folder} must not be a package"


def machine_texts(tree: Tree) -> Iterator[str]:
    """Nothing in the project knows the machine that it was written on, or where packages come from."""
    for file in _texts(tree.root):
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
            if found := MACHINE_TEXTS.search(line):
                yield f"{file.relative_to(tree.root).as_posix()}:{number}: names {found.group()}"


def _texts(root: Path) -> Iterator[Path]:
    """What git knows or would add; in a tree without git, everything."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if (root / ".git").exists():
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
        files = [root / name for name in listed if name]
    else:
        files = sorted(root.rglob("*"))
    for file in files:
        if file.is_file() and file.stat().st_size <= TEXT_BYTES_MAX and b"\0" not in file.read_bytes()[:4096]:
            yield file


def _runtime(tree: Tree) -> Iterator[Module]:
    return (module for module in tree.modules if module.room != "testing")


def _at(module: Module, places: tuple[str, ...]) -> bool:
    return module.path.startswith(places)


RULES = (
    clock_and_chance,
    repeatable,
    broad_excepts,
    lengths,
    names,
    docstrings,
    prints,
    generic_packages,
    machine_texts,
)
