"""What the pages say exists: paths, Python names and arguments, commands and options."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import daptq
from daptq.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOLDERS = ("src/", "docs/", "tests/", "scripts/", "benchmarks/", ".ci/")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of one language; `""` for those without."""
    return [block for name, block in FENCE.findall(text) if name == language]


def missing_paths(text: str, page: Path) -> list[str]:
    """Paths and relative links that a page names and that do not exist."""
    named = {path for path in re.findall(r"`([\w./-]+)`", text) if path.startswith(FOLDERS)}
    linked = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    missing = [path for path in sorted(named) if not (ROOT / path).exists()]
    return missing + [link for link in sorted(linked) if not (page.parent / link).exists()]


def check_calls(code: str) -> int:
    """Checks that every call `daptq.x(…)` names something public and fits its signature; returns how many there are."""
    calls = 0
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("daptq."):
            target: object = daptq
            for part in ast.unparse(node.func).split(".")[1:]:
                target = getattr(target, part)
            assert callable(target)
            keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(target).bind(*node.args, **keywords)
            calls += 1
    return calls


def commands(text: str) -> Iterator[list[str]]:
    """The arguments of every `daptq …` command in a page's blocks without a language."""
    for block in blocks(text, ""):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "daptq":
                yield words[1:]


def check_command(arguments: list[str]) -> None:
    """Parses the arguments of a command without running it."""
    name, *rest = arguments
    command = main.get_command(click.Context(main), name)
    assert command is not None, f"there is no command {name}"
    command.make_context(name, rest, resilient_parsing=False)


@pages
def test_paths_exist(page: Path) -> None:
    assert missing_paths(page.read_text(encoding="utf-8"), page) == []


@pages
def test_python_fits_the_library(page: Path) -> None:
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        compile(code, str(page), "exec")
        check_calls(code)


@pages
def test_commands_parse(page: Path) -> None:
    for arguments in commands(page.read_text(encoding="utf-8")):
        check_command(arguments)


def test_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 150
    assert "make demo" in text[:1500]
    assert "make test" in text[:1500]
    assert len(list(commands(text))) >= 4
    assert sum(check_calls(code) for code in blocks(text, "python")) >= 4


def test_the_artifact_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "reference" / "artifacts.md"
    (code,) = blocks(page.read_text(encoding="utf-8"), "python")
    exec(compile(code, str(page), "exec"), {})
    assert (tmp_path / "out" / "scales" / "manifest.json").is_file()


def test_the_errors_page_is_complete() -> None:
    text = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `(\w+)`", text, re.MULTILINE))
    classes = {name for name in daptq.errors.__all__ if name.endswith("Error")}
    assert listed == classes - {"DaptqError"}


@pytest.mark.parametrize("text", ["see `src/daptq/nowhere.py`", "see [this](nowhere.md)"])
def test_the_path_guard_can_fail(text: str) -> None:
    assert missing_paths(text, ROOT / "README.md")


@pytest.mark.parametrize("code", ["daptq.quantise()", "daptq.load_policy(colour=1)", "daptq.recipes.no_such_recipe()"])
def test_the_python_guard_can_fail(code: str) -> None:
    with pytest.raises((AttributeError, TypeError)):
        check_calls(code)


@pytest.mark.parametrize("line", ["daptq quantize reference", "daptq evaluate x --colour 1", "daptq list animals"])
def test_the_command_guard_can_fail(line: str) -> None:
    (arguments,) = commands(f"```\n{line}\n```")
    with pytest.raises(click.UsageError):
        check_command(arguments)
