"""The command line without a policy: exit codes, one clear line per failure, light commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click
import pytest

import daptq
from daptq.cli import main
from daptq.cli.console import reported_progress
from daptq.errors import CheckFailedError, CorruptArtifactError, DaptqError, RecipeError
from tests.integration.conftest import Refused, Run


@pytest.mark.parametrize(
    ("error", "code"),
    [(CheckFailedError("no"), 1), (DaptqError("no"), 2), (RecipeError("no"), 2), (CorruptArtifactError("no"), 2)],
)
def test_exit_codes(run: Run, error: DaptqError, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    result = run("fail")
    assert result.exit_code == code
    assert result.stderr == "error: no\n"


def test_a_message_of_many_lines_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise DaptqError("first\n   second")

    monkeypatch.setitem(main.commands, "fail", click.Command("fail", callback=fail))
    assert run("fail").stderr == "error: first second\n"


def test_a_programming_error_is_not_hidden(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_list(run: Run, tmp_path: Path) -> None:
    result = run("list", "methods", "--json", tmp_path / "methods.json")
    assert result.exit_code == 0
    names = result.stdout.split()
    assert {"da-ptq", "round-to-nearest"} <= set(names)
    assert json.loads((tmp_path / "methods.json").read_text()) == {
        "schema_version": 1,
        "kind": "methods",
        "names": names,
    }
    assert "reference" in run("list", "policies").stdout.split()
    assert run("list", "animals").exit_code == 2


def test_list_of_settings(run: Run, tmp_path: Path) -> None:
    said = " ".join(run("list", "roundings", "--settings").stdout.split())
    assert "gptq: " in said
    assert "--set rounding.damping=0.01 " in said
    assert "--set rounding.scale=searched" in said
    assert "One of searched, absmax." in said
    assert "--asymmetric " in run("list", "methods", "--settings").stdout
    path = tmp_path / "parts.json"
    assert run("list", "parts", "--settings", "--json", path).exit_code == 0
    told = json.loads(path.read_text())
    assert told["names"] == sorted(told["settings"]) == run("list", "parts").stdout.split()
    horizon = next(one for one in told["settings"]["recipe"] if one["written"] == "--set recipe.drift_horizon")
    assert (horizon["default"], horizon["choices"]) == ("executed", ["executed", "chunk"])
    (rounding,) = told["settings"]["rounding"]
    assert (rounding["written"], rounding["choices"]) == ("--rounding", ["gptq", "nearest"])
    assert "daptq list roundings --settings" in rounding["meaning"]


@pytest.mark.parametrize("kind", ["kernels", "policies"])
def test_what_has_no_settings_says_so(run: Run, kind: str) -> None:
    result = run("list", kind, "--settings")
    assert result.exit_code == 2
    assert "--settings must come with one of methods, parts, roundings" in result.stderr


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


def test_bad_files_for_report(refused: Refused, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    refused(["report", tmp_path / "nothing.json", "--output", page], "nothing.json", "No such file")
    half = tmp_path / "half.json"
    half.write_text('{"schema_version": 1')
    refused(["report", half, "--output", page], "half.json must be valid JSON")
    half.write_text('{"schema_version": 1}')
    refused(["report", half, "--output", page], "must be the evaluation result")
    assert not page.exists()


def test_inspect_refuses_what_is_no_artifact(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    refused(["inspect", tmp_path], "must be a folder written by daptq", "model.pt")
    refused(["inspect", tmp_path / "model.pt"], "must be a folder written by daptq", "a .pt file")
    refused(["inspect", tmp_path / "nowhere"], "a path that does not exist")
