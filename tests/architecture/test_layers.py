"""Imports follow the layers, methods of one stage ignore each other, and both guards can fail."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("policies", "environments", "drift", "compensation", "allocation", "rounding", "packing", "recipes", "cli")


def lint_imports(source: Path) -> subprocess.CompletedProcess[str]:
    """Runs the project's contracts over the package in `source`."""
    command = [
        str(Path(sys.executable).with_name("lint-imports")),
        "--config",
        str(ROOT / "pyproject.toml"),
        "--no-cache",
    ]
    environment = {"PYTHONPATH": str(source), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=source.parent)


@pytest.fixture
def copied_source(tmp_path: Path) -> Path:
    """A copy of the package that a test may spoil."""
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src" / "daptq", source / "daptq", ignore=shutil.ignore_patterns("__pycache__", "reference"))
    return source


def test_layers() -> None:
    result = lint_imports(ROOT / "src")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("errors.py", "from daptq import catalog", "Every layer imports only layers below it"),
        ("artifacts.py", "import daptq.policies.cogact", "Every layer imports only layers below it"),
        ("drift/virtual_chain.py", "import daptq.allocation.top_fraction", "Every layer imports only layers below it"),
        (
            "drift/virtual_chain.py",
            "import mujoco",
            "Only calibration data, evaluation and their users know a simulator",
        ),
        ("catalog.py", "import torch", "The look-up and the errors are light"),
    ],
)
def test_the_layers_can_fail(copied_source: Path, file: str, line: str, contract: str) -> None:
    with (copied_source / "daptq" / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    result = lint_imports(copied_source)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"{contract} BROKEN" in " ".join(result.stdout.split())


def test_a_new_module_must_have_a_layer(copied_source: Path) -> None:
    (copied_source / "daptq" / "somewhere.py").write_text("")
    assert lint_imports(copied_source).returncode == 1


def siblings_that_import_each_other(graph: grimp.ImportGraph) -> list[tuple[str, str]]:
    """Pairs of public modules of one stage of which the first imports the second."""
    pairs: list[tuple[str, str]] = []
    for stage in STAGES:
        package = f"daptq.{stage}"
        public = {m for m in graph.find_children(package) if not m.rpartition(".")[2].startswith("_")}
        for module in sorted(public):
            pairs += [(module, other) for other in sorted(public & graph.find_modules_directly_imported_by(module))]
    return pairs


# A stage whose file is a step that the others of the folder are built on, not a method among methods.
ALLOWED: set[tuple[str, str]] = set()


def test_methods_of_one_stage_ignore_each_other() -> None:
    graph = grimp.build_graph("daptq", cache_dir=None)
    assert all(f"daptq.{stage}" in graph.modules for stage in STAGES)
    assert set(siblings_that_import_each_other(graph)) == ALLOWED


def test_the_independence_can_fail() -> None:
    graph = grimp.build_graph("daptq", cache_dir=None)
    graph.add_module("daptq.rounding.other")
    graph.add_import(importer="daptq.rounding.nearest", imported="daptq.rounding.other")
    assert ("daptq.rounding.nearest", "daptq.rounding.other") in siblings_that_import_each_other(graph)
