"""Imports follow the layers, methods of one kind ignore each other, and both guards can fail."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

from daptq import catalog

ROOT = Path(__file__).parents[2]
FOLDERS = ("src", "tests", "scripts", "benchmarks")
CATALOGS = [value for value in vars(catalog).values() if isinstance(value, catalog.Catalog)]


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
        ("artifacts.py", "import daptq.policies.cogact_small", "Every layer imports only layers below it"),
        (
            "drift/models/virtual_chain.py",
            "import daptq.allocation.top_fraction",
            "Every layer imports only layers below it",
        ),
        (
            "drift/poses.py",
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
    """Pairs of methods of one kind of which the first imports the second."""
    pairs: list[tuple[str, str]] = []
    for kind in CATALOGS:
        methods = {f"{kind.package}.{name.replace('-', '_')}" for name in kind.names()}
        for module in sorted(methods):
            pairs += [(module, other) for other in sorted(methods & graph.find_modules_directly_imported_by(module))]
    return pairs


def test_methods_of_one_kind_ignore_each_other() -> None:
    graph = grimp.build_graph("daptq", cache_dir=None)
    assert len(CATALOGS) > 4
    assert siblings_that_import_each_other(graph) == []


def test_the_independence_can_fail() -> None:
    graph = grimp.build_graph("daptq", cache_dir=None)
    graph.add_import(importer="daptq.policies.cogact_small", imported="daptq.policies.cogact_public")
    assert siblings_that_import_each_other(graph) == [("daptq.policies.cogact_small", "daptq.policies.cogact_public")]


def private_imports(root: Path) -> list[str]:
    """Imports of a module ``a.b._c`` from outside of ``a.b``, in files below `root`, as "file: module"."""
    found: list[str] = []
    for path in sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        importer = ".".join(parts[1:] if parts[0] == "src" else parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            for name in names:
                private = re.match(r"(daptq(?:\.[a-zA-Z0-9]\w*)*)\._[A-Za-z]\w*", name)
                if private and not f"{importer}.".startswith(f"{private[1]}."):
                    found.append(f"{path.relative_to(root)}: {private[0]}")
    return sorted(set(found))


def test_what_is_private_stays_in_its_room() -> None:
    assert private_imports(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("src/daptq/drift/x.py", "from daptq.policies import _vit"),
        ("tests/x.py", "import daptq.policies._vit"),
        ("benchmarks/x.py", "from daptq.audit.rules import _hidden"),
    ],
)
def test_the_guard_of_privacy_can_fail(tmp_path: Path, file: str, line: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert len(private_imports(tmp_path)) == 1
    (tmp_path / "src/daptq/policies").mkdir(parents=True, exist_ok=True)
    path.write_text("from daptq.policies.contract import Policy")
    assert private_imports(tmp_path) == []
