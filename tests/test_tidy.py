"""The project keeps the rules of its house; and each rule notices when it is broken."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tidy import imports, style
from tidy.tree import Tree

ROOT = Path(__file__).resolve().parent.parent
Rule = Callable[[Tree], Iterator[str]]
RULES: tuple[Rule, ...] = (*imports.RULES, *style.RULES)


@pytest.fixture(scope="module")
def project() -> Tree:
    return Tree(ROOT)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule: Rule, project: Tree) -> None:
    """Fails with one line a place."""
    if found := list(rule(project)):
        pytest.fail(f"{rule.__doc__}\n" + "\n".join(found), pytrace=False)


DOC = '"""Planted."""\n'
PLANTED: list[tuple[Rule, str, str, str]] = [
    (imports.outside_libraries, "edge_runtime/outbox/store.py", "def f():\n    import paho.mqtt.client\n", ":3: paho may be"),
    (imports.outside_libraries, "edge_runtime/bus/broker.py", "from requests import get\n", ":2: requests is not in the table"),
    (imports.outside_libraries, "edge_runtime/pipeline/pipeline.py", "import sqlite3\n", ":2: sqlite3 may be"),
    (imports.extras_are_lazy, "edge_runtime/inference/engine_openvino.py", "import openvino\n", ":2: openvino is an extra"),
    (
        imports.extras_are_lazy,
        "edge_runtime/bus/host.py",
        "try:\n    import iotcore\nexcept ImportError:\n    pass\n",
        ":3: iotcore",
    ),
    (imports.rooms, "edge_runtime/bus/topics.py", "from edge_runtime.outbox import store\n", ":2: bus may not import outbox"),
    (imports.rooms, "edge_runtime/bus/topics.py", "from edge_runtime import gateway\n", ":2: bus may not import gateway"),
    (imports.rooms, "edge_runtime/bus/topics.py", "from ..pipeline import rules\n", ":2: bus may not import pipeline"),
    (imports.rooms, "edge_runtime/sources/x.py", "def f():\n    from edge_runtime.inference import y\n", ":3: sources may not"),
    (imports.rooms, "edge_runtime/receiver/x.py", "import edge_runtime.board.system\n", ":2: receiver may not import board"),
    (imports.rooms, "edge_runtime/gateway.py", "import edge_runtime.testing.loop\n", ":2: gateway may not import testing"),
    (imports.rooms, "edge_runtime/cli/demo.py", "from edge_runtime.testing import press\n", ":2: cli may not import testing"),
    (imports.rooms, "edge_runtime/attic/x.py", "", ":1: attic is not in the table"),
    (
        imports.adapters_know_their_contract_only,
        "adapters/edge_adapters/x.py",
        "def f():\n    from edge_runtime.ports import Clock\n",
        ":3: an adapter imports only edge_runtime.adapter, not edge_runtime.ports.Clock",
    ),
    (
        imports.core_does_not_know_adapters,
        "edge_runtime/gateway.py",
        "from edge_adapters import modbus\n",
        ":2: adapters are found",
    ),
    (style.clock_and_chance, "edge_runtime/outbox/store.py", "import time\n", ":2: time: take"),
    (style.clock_and_chance, "edge_runtime/cli/demo.py", "def f():\n    from random import random\n", ":3: random: take"),
    (style.clock_and_chance, "adapters/edge_adapters/x.py", "import datetime\nx = datetime.datetime.now()\n", ":3: datetime"),
    (style.clock_and_chance, "edge_runtime/outbox/epochs.py", "import os\nx = os.urandom(8)\n", ":3: os.urandom"),
    (style.repeatable, "edge_runtime/gateway.py", "import asyncio\nx = asyncio.as_completed([])\n", ":3: as_completed"),
    (style.repeatable, "edge_runtime/gateway.py", "for x in {1, 2}:\n    pass\n", ":2: iterates over a set"),
    (style.repeatable, "edge_runtime/gateway.py", "x = [y for y in set('ab')]\n", ":2: iterates over a set"),
    (style.broad_excepts, "edge_runtime/outbox/store.py", "try:\n    pass\nexcept Exception:\n    pass\n", ":4: broad except"),
    (style.broad_excepts, "edge_runtime/outbox/store.py", "try:\n    pass\nexcept:\n    pass\n", ":4: broad except"),
    (
        style.broad_excepts,
        "edge_runtime/x.py",
        "try:\n    pass\nexcept (OSError, BaseException):\n    raise OSError\n",
        ":4: broad",
    ),
    (
        style.broad_excepts,
        "edge_runtime/x.py",
        "import contextlib\nwith contextlib.suppress(Exception):\n    pass\n",
        ":3: broad",
    ),
    (style.lengths, "edge_runtime/x.py", "x = 1\n" * 400, ":1: 401 lines; at most 400"),
    (style.lengths, "edge_runtime/x.py", "def f():\n" + "    x = 1\n" * 60, ":2: f has 61 lines; at most 60"),
    (style.names, "edge_runtime/bus/utils.py", "", ":1: the file's name says nothing"),
    (style.names, "edge_runtime/bus/x.py", "class TopicManager:\n    pass\n", ":2: the name TopicManager says nothing"),
    (style.names, "edge_runtime/bus/x.py", "def _topic_helper():\n    pass\n", ":2: the name _topic_helper says nothing"),
    (style.prints, "edge_runtime/gateway.py", "print('x')\n", ":2: print outside cli/"),
    (style.machine_texts, "docs/x.md", "see /" + "work/main\n", ":2: names /" + "work/"),
    (style.machine_texts, "Makefile", "x:\n\tpip install -i https://pypi" + ".org/simple y\n", ":3: names pypi"),
    (style.generic_packages, "packaging/__init__.py", "", ":1: packaging must not be a package"),
]


@pytest.mark.parametrize(("rule", "path", "source", "expected"), PLANTED, ids=lambda value: getattr(value, "__name__", None))
def test_a_planted_violation_is_found(rule: Rule, path: str, source: str, expected: str, tmp_path: Path) -> None:
    _plant(tmp_path, path, DOC + source)
    assert [found for found in rule(Tree(tmp_path)) if found.startswith(path + expected)]


def test_a_module_without_docstring_is_found(tmp_path: Path) -> None:
    _plant(tmp_path, "edge_runtime/x.py", "x = 1\n")
    _plant(tmp_path, "edge_runtime/empty/__init__.py", "")
    assert list(style.docstrings(Tree(tmp_path))) == ["edge_runtime/x.py:1: has no docstring"]


def test_a_circle_is_found(tmp_path: Path) -> None:
    _plant(tmp_path, "edge_runtime/bus/a.py", "from edge_runtime.bus import b\n")
    _plant(tmp_path, "edge_runtime/bus/b.py", "def f():\n    from edge_runtime.bus.a import x\n")
    [found] = imports.circles(Tree(tmp_path))
    assert found.endswith("circle: edge_runtime.bus.a -> edge_runtime.bus.b -> edge_runtime.bus.a")


def test_what_is_allowed_is_not_reported(tmp_path: Path) -> None:
    """The rules have to tell violations from their look-alikes."""
    _plant(tmp_path, "edge_runtime/board/system.py", DOC + "import time\nimport random\n")
    _plant(tmp_path, "edge_runtime/sources/supervisor.py", DOC + "try:\n    pass\nexcept Exception:\n    pass\n")
    _plant(tmp_path, "edge_runtime/bus/topics.py", DOC + "if __name__ == '__main__':\n    print('x')\n")
    _plant(tmp_path, "edge_runtime/bus/x.py", DOC + "try:\n    pass\nexcept BaseException:\n    x = 1\n    raise\n")
    _plant(tmp_path, "edge_runtime/testing/loop.py", DOC + "import random\nfrom edge_runtime import gateway\n")
    _plant(
        tmp_path,
        "edge_runtime/outbox/store.py",
        DOC + "from edge_runtime.bus import topics\nfrom edge_runtime.records import Lane\n",
    )
    _plant(
        tmp_path,
        "adapters/edge_adapters/modbus_link.py",
        DOC + "from edge_runtime import adapter\n\ndef f():\n    import pymodbus\n",
    )
    assert not [found for rule in RULES for found in rule(Tree(tmp_path))]


def test_every_rule_has_a_planted_violation() -> None:
    planted = {rule for rule, *_ in PLANTED} | {style.docstrings, imports.circles}
    assert set(RULES) == planted


def test_every_dependency_is_explained() -> None:
    """In docs/dependencies.md, with its licence and its reason."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    names = {re.split(r"[\[<>=;~ ]", one)[0] for one in wanted} - {"edge-runtime"}
    rows = [line.split("|")[1] for line in (ROOT / "docs" / "dependencies.md").read_text().splitlines() if line.startswith("| ")]
    explained = {name.strip() for row in rows for name in row.split(",")}
    assert names - explained == set()


def test_every_room_is_on_the_map() -> None:
    """docs/architecture.md names each file and folder of the package's first level, and the tidy table knows it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    for path in (ROOT / "edge_runtime").iterdir():
        if path.suffix == ".py" and not path.name.startswith("__"):
            assert f"`{path.name}`" in text
        if path.is_dir() and any(path.glob("*.py")):
            assert f"`{path.name}/`" in text


def _plant(root: Path, path: str, source: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
