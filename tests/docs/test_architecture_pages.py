"""The glossary, the rooms and the layers: what they name exists, and nothing is left out."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "daptq"
GLOSSARY = ROOT / "docs" / "concepts" / "glossary.md"
ARCHITECTURE = ROOT / "docs" / "concepts" / "architecture.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
ARTIFACTS = ROOT / "docs" / "reference" / "artifacts.md"


def missing_modules(text: str) -> list[str]:
    """Dotted module paths that a page names and that are neither a file nor a folder with an `__init__`."""
    named = sorted(set(re.findall(r"`daptq\.([\w.]+)`", text)))
    paths = [SOURCE / name.replace(".", "/") for name in named]
    return [
        name
        for name, path in zip(named, paths, strict=True)
        if not (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())
    ]


def rooms() -> set[str]:
    """Folders and modules of the package."""
    folders = {path.parent.name for path in SOURCE.glob("*/__init__.py")}
    return folders | {path.stem for path in SOURCE.glob("*.py") if path.name != "__init__.py"}


def first_column(text: str) -> list[str]:
    """The code in the first cell of every row of a page's tables."""
    return re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)


def import_layers(text: str) -> list[set[str]]:
    """The layers of pyproject.toml from the top; the members of a set may not import each other."""
    (block,) = re.findall(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    return [set(line.split(" | ")) for line in re.findall(r'"([^"]+)"', block)]


def described_layers(text: str) -> list[set[str]]:
    """The layers that CONTRIBUTING lists, one per line of its block."""
    (block,) = re.findall(r"^```layers\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [set(line.split(", ")) for line in block.strip().splitlines()]


def artifact_kinds() -> Iterator[str]:
    """The string of every constant of the package whose name ends in KIND, and of every stage's kind."""
    for path in SOURCE.rglob("*.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        stages = [node for node in body if isinstance(node, ast.ClassDef) and node.name.endswith("Stage")]
        for node in [*body, *(entry for stage in stages for entry in stage.body)]:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if any(name.endswith("KIND") or name == "kind" for name in names) and isinstance(node.value.value, str):
                    yield node.value.value


def listed_kinds(text: str) -> set[str]:
    """The kinds in the table of the page about artifacts."""
    (table,) = re.findall(r"^\| kind \|.*?\n\n", text, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE))


def test_every_module_of_the_glossary_exists() -> None:
    text = GLOSSARY.read_text(encoding="utf-8")
    assert missing_modules(text) == []
    assert len(re.findall(r"^\| [^|]+ \| [^|]+\. \| `daptq[\w.]+` \|$", text, re.MULTILINE)) >= 25
    assert missing_modules("see `daptq.policies.nowhere`") == ["policies.nowhere"]


def test_every_room_has_a_line() -> None:
    listed = first_column(ARCHITECTURE.read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(rooms())


def test_rooms_are_listed_from_the_top() -> None:
    listed = first_column(ARCHITECTURE.read_text(encoding="utf-8"))
    layers = import_layers((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    heights = [next(height for height, layer in enumerate(layers) if room in layer) for room in listed]
    assert heights == sorted(heights)


def test_contributing_lists_the_layers_that_are_checked() -> None:
    layers = import_layers((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert described_layers(CONTRIBUTING.read_text(encoding="utf-8")) == layers
    assert set().union(*layers) == rooms()


@pytest.mark.parametrize("text", ["```layers\ncli\n```\n", "```layers\nerrors\ncli\n```\n"])
def test_the_check_of_layers_can_fail(text: str) -> None:
    assert described_layers(text) != import_layers((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_list_of_artifact_kinds_is_complete() -> None:
    kinds = set(artifact_kinds())
    assert len(kinds) >= 10
    assert listed_kinds(ARTIFACTS.read_text(encoding="utf-8")) == kinds
