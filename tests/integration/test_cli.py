"""The command line from the outside: exit codes, one clear line per failure, machine-readable results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import daptq
from daptq.cli import main
from daptq.cli._console import reported_progress
from daptq.errors import CheckFailedError, CorruptArtifactError, DaptqError, RecipeError


def run(*arguments: str | Path) -> Result:
    """Runs a command in this process; a programming error is raised, not turned into an exit code."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, *fragments: str) -> None:
    """Asserts exit code 2 and one line of error that contains the fragments."""
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    assert "Traceback" not in result.output
    for fragment in fragments:
        assert fragment in line


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckFailedError("no"), 1), (DaptqError("no"), 2), (RecipeError("no"), 2), (CorruptArtifactError("no"), 2)],
)
def test_exit_codes(error: DaptqError, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    result = run("fail")
    assert result.exit_code == code
    assert result.stderr == "error: no\n"


def test_a_message_of_many_lines_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DaptqError("first\n   second")

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    assert run("fail").stderr == "error: first second\n"


def test_a_programming_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("bug")

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    with pytest.raises(KeyError):
        run("fail")


def test_the_installed_command_answers() -> None:
    script = Path(sys.executable).with_name("daptq")
    version = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == f"daptq, version {daptq.__version__}\n"
    unknown = subprocess.run([script, "quantise"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert "No such command 'quantise'" in unknown.stderr


def test_list(tmp_path: Path) -> None:
    result = run("list", "methods", "--json", tmp_path / "methods.json")
    assert result.exit_code == 0
    names = result.stdout.split()
    assert {"da-ptq", "round-to-nearest"} <= set(names)
    assert json.loads((tmp_path / "methods.json").read_text()) == {
        "schema_version": 1,
        "kind": "methods",
        "names": names,
    }
    assert run("list", "animals").exit_code == 2


def test_progress_is_one_line_per_step_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with reported_progress() as progress:
        progress(1, 2, "first")
        progress(2, 2, "second")
    captured = capsys.readouterr()
    assert captured.err == "[1/2] first\n[2/2] second\n"
    assert captured.out == ""


def test_progress_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with reported_progress() as progress:
        progress(1, 2, "first")
    assert "1/2" in capsys.readouterr().err


QUANTIZE = ("quantize", "reference", "--output")


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--method", "da-ptk"], ["method must be one of", "'da-ptk'", "Did you mean 'da-ptq'"]),
        (["--weight-bits", "5.5"], ["--weight-bits", "5.5"]),
        (["--weight-bits", "9"], ["weight_bits", "9"]),
        (["--activation-bits", "1"], ["activation_bits", "1"]),
        (["--keep-fraction", "1.5"], ["keep_fraction", "1.5"]),
        (["--keep-fraction", "nan"], ["keep_fraction", "nan"]),
        (["--method", "round-to-nearest", "--keep-fraction", "0.3"], ["round-to-nearest", "--keep-fraction"]),
        (["--calibration-states", "0"], ["calibration_states", "0"]),
        (["--data", "tabletpo:train"], ["source must be", "Did you mean 'tabletop'"]),
        (["--data", "tabletop"], ["source:split", "'tabletop'"]),
        (["--data", "tabletop:no-such-split"], ["no-such-split"]),
        (["--seed", "one"], ["--seed", "'one'"]),
    ],
)
def test_bad_settings_of_quantize(tmp_path: Path, options: list[str], fragments: list[str]) -> None:
    refused(run(*QUANTIZE, tmp_path / "out", *options), *fragments)
    assert list(tmp_path.iterdir()) == []


def test_unknown_policy(tmp_path: Path) -> None:
    refused(
        run("quantize", "refrence", "--output", tmp_path / "out"), "policy", "'refrence'", "Did you mean 'reference'"
    )
    refused(run("evaluate", "refrence", "--episodes", "4"), "policy", "'refrence'", "Did you mean 'reference'")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_output_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*args: object, **kwargs: object) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr("daptq.packing.checkpoint.load_policy", work)
    (tmp_path / "note.txt").write_text("mine")
    refused(run(*QUANTIZE, tmp_path), "output must be a new or empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--environment", "tabletpo"], ["environment must be one of", "Did you mean 'tabletop'"]),
        (["--task", "stack-green-on-yelow"], ["task must be one of", "Did you mean"]),
        (["--episodes", "0"], ["episodes must be", "got 0"]),
        (["--workers", "0"], ["workers must be", "got 0"]),
        (["--seed", "-1"], ["seed must be", "got -1"]),
        (["--against", "refrence"], ["policy", "Did you mean 'reference'"]),
    ],
)
def test_bad_settings_of_evaluate(tmp_path: Path, options: list[str], fragments: list[str]) -> None:
    refused(run("evaluate", "reference", "--json", tmp_path / "out.json", *options), *fragments)
    assert not (tmp_path / "out.json").exists()


def test_bad_files_for_report(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    refused(run("report", tmp_path / "nothing.json", "--output", page), "nothing.json", "No such file")
    half = tmp_path / "half.json"
    half.write_text('{"schema_version": 1')
    refused(run("report", half, "--output", page), "half.json must be valid JSON")
    half.write_text('{"schema_version": 1}')
    refused(run("report", half, "--output", page), "must be an evaluation")
    assert not page.exists()


def test_inspect_refuses_what_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    refused(run("inspect", tmp_path), "must be a folder written by daptq", "model.pt")
