"""What the documents say can be typed, and where they point is something."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from edge_runtime import config
from edge_runtime.cli import VERBS
from edge_runtime.sources.registry import Registry

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("models/*/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_the_configuration_in_the_readme_is_valid() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        config.load(block, Registry())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_exist(page: Path) -> None:
    said = re.findall(r"(?:^ {4}|`)edge-runtime ([a-z-]+)", page.read_text(), re.MULTILINE)
    assert set(said) <= set(VERBS)


def test_tests_that_the_guarantees_name_exist() -> None:
    text = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(tests/[^`]+)`", text)
    assert named
    for each in named:
        assert list(ROOT.glob(each)), each


def test_every_event_in_the_operators_guide_is_logged_somewhere() -> None:
    guide = (ROOT / "docs/guide-operator.md").read_text()
    rows = [line for line in guide.splitlines() if line.startswith("| `") and "_" in line.split("|")[1]]
    events = [name for line in rows for name in re.findall(r"`([a-z_]+)`", line.split("|")[1])]
    source = "\n".join(file.read_text() for file in (ROOT / "edge_runtime").rglob("*.py"))
    assert len(events) > 8
    for event in events:
        phase = event.removeprefix("source_")
        assert f'"{event}"' in source or ('"source_" + phase' in source and f'"{phase}"' in source), event


def test_every_event_from_level_info_on_is_told_somewhere() -> None:
    """As docs/logs.md says. Names that are put together (`source_` and a phase) are those of the test above."""
    told = "\n".join((ROOT / "docs" / page).read_text() for page in ("logs.md", "guide-operator.md"))
    parts = [ROOT / "edge_runtime" / part for part in ("testing", "cli")]
    files = [file for file in (ROOT / "edge_runtime").rglob("*.py") if not any(file.is_relative_to(part) for part in parts)]
    events = {name for file in files for name in _logged(ast.parse(file.read_text()))}
    assert len(events) > 80
    assert not [name for name in sorted(events) if f"`{name}`" not in told]


def _logged(tree: ast.AST) -> set[str]:
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args]
    firsts = [call.args[0] for call in calls if call.func.attr in ("info", "warning", "error", "critical")]  # type: ignore[attr-defined]
    names = [part.value for first in firsts for part in ast.walk(first) if isinstance(part, ast.Constant)]
    return {name for name in names if isinstance(name, str) and re.fullmatch(r"[a-z]+(_[a-z]+)*", name)}


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [verb for verb in VERBS if f"`edge-runtime {verb}" not in text and f"`{verb}`" not in text]
