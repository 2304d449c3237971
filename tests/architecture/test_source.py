"""Rules about files: size, names, and what is never used."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = sorted(path for folder in ("src", "tests", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
SOURCE = [path for path in PYTHON if path.is_relative_to(ROOT / "src")]
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc"}


def imported_modules(source: str) -> set[str]:
    """Top-level names of the packages that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_there_is_source() -> None:
    assert len(SOURCE) > 20


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_file(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 500, "one concept per file, at most 500 lines"
    assert not {part.strip("_") for part in path.with_suffix("").parts} & VAGUE
    if path in SOURCE:
        assert not imported_modules(source) & {"pickle", "dill", "joblib", "shelve", "marshal"}
        assert ast.get_docstring(ast.parse(source)), "the module docstring says what the module does"


@pytest.mark.parametrize("source", ["import pickle", "def f():\n    from pickle import loads"])
def test_the_ban_on_pickle_can_fail(source: str) -> None:
    assert "pickle" in imported_modules(source)


def strange_folders(tests: Path, rooms: set[str]) -> list[str]:
    """Folders of tests of single rooms that have no room's name."""
    kinds = [tests / kind for kind in ("unit", "golden", "property", "integration")]
    folders = [path for kind in kinds if kind.is_dir() for path in sorted(kind.iterdir()) if any(path.glob("*.py"))]
    return [str(path.relative_to(tests)) for path in folders if path.name not in rooms]


def test_folders_of_tests_are_named_after_rooms() -> None:
    rooms = {path.parent.name for path in (ROOT / "src" / "daptq").glob("*/__init__.py")}
    assert {"quantization", "statistics"} <= rooms
    assert strange_folders(ROOT / "tests", rooms) == []


def test_a_folder_of_no_room_is_found(tmp_path: Path) -> None:
    for folder in ("unit/quantization", "golden/evaluate", "unit/__pycache__"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("unit/quantization/test_a.py", "golden/evaluate/test_b.py", "unit/test_c.py"):
        (tmp_path / file).touch()
    assert strange_folders(tmp_path, {"quantization"}) == ["golden/evaluate"]
