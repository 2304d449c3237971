"""The commands on a small policy: results, bad input, damaged checkpoints, a disk that fills up."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import daptq
from daptq.artifacts import read_artifact
from daptq.environments.tabletop.objects import TASKS
from daptq.evaluation import watched_drive
from tests.integration.conftest import Refused, Run


def test_quantize_inspect_load(run: Run, tiny: Path, tmp_path: Path, little_source: None) -> None:
    out, described = tmp_path / "out", tmp_path / "out.json"
    result = run(
        "quantize", tiny, "--output", out, "--data", "little:good", "--keep-fraction", "0.5", "--json", described
    )
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    assert "] write\n" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.json"]

    written = json.loads(described.read_text())
    assert (written["kind"], written["recipe"]["name"], written["recipe"]["activation_bits"]["language"]) == (
        "quantized-policy",
        "da-ptq",
        8,
    )
    assert written["recipe"]["allocation"]["fraction"] == 0.5
    bits = {layer["name"]: layer["num_bits"] for layer in written["layers"]}
    assert {bits[name] for name in bits if name.startswith("llm_backbone.")} == {4}
    assert {bits[name] for name in bits if name.startswith("vision_backbone.")} == {16}
    # Nothing is smaller than its bits say, and only scales come on top.
    assert all(8 * layer["bytes"] >= layer["num_bits"] * layer["parameters"] for layer in written["layers"])
    assert 4 < written["mean_bits"] < 16
    assert written["provenance"]["data_hash"]

    shown = run("inspect", out, "--json", tmp_path / "again.json")
    assert shown.exit_code == 0
    assert all(name in shown.stdout for name in bits)
    assert json.loads((tmp_path / "again.json").read_text()) == written
    assert daptq.load_policy(out).linear_layers().keys() == bits.keys()


def test_inspect_of_a_float_policy(run: Run, tiny: Path, tmp_path: Path) -> None:
    assert run("inspect", tiny, "--json", tmp_path / "tiny.json").exit_code == 0
    written = json.loads((tmp_path / "tiny.json").read_text())
    assert (written["kind"], written["layers"], written["mean_bits"]) == ("policy", [], None)


def test_evaluate_and_report(run: Run, tiny: Path, tmp_path: Path) -> None:
    """A policy against itself: no difference, no drift; finished episodes are beside the result."""
    options = [
        "--environment",
        "tabletop",
        "--task",
        next(iter(TASKS)),
        "--episodes",
        "1",
        "--json",
        tmp_path / "result.json",
    ]
    result = run("evaluate", tiny, "--against", tiny, *options)
    assert result.exit_code == 0, result.output
    assert "success" in result.stdout
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["episodes"] == 1
    assert written["paired"]["difference"] == 0
    page = tmp_path / "page.html"
    assert run("report", tmp_path / "result.json", "--output", page).stdout == f"{page}\n"
    assert "<html" in page.read_text()
    files = ["page.html", "result.episodes.jsonl", "result.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    again = run("evaluate", tiny, "--against", tiny, *options)
    assert again.exit_code == 2
    assert "result.episodes.jsonl of another run. Continue from it with --resume" in again.stderr
    (tmp_path / "result.json").unlink()
    resumed = run("evaluate", tiny, "--against", tiny, *options, "--resume")
    assert (resumed.exit_code, resumed.stderr) == (0, "")  # no step is done again
    assert {**json.loads((tmp_path / "result.json").read_text()), "provenance": None} == {**written, "provenance": None}


def test_variants_run_on_the_same_episodes(run: Run, tiny: Path, tmp_path: Path) -> None:
    asked = ["--task", next(iter(TASKS)), "--episodes", "2", "--batch", "2", "--variant", "push-object"]
    result = run("evaluate", tiny, "--against", tiny, *asked, "--json", tmp_path / "result.json")
    assert result.exit_code == 0, result.output
    assert "gap of" in result.stdout
    written = json.loads((tmp_path / "result.json").read_text())
    (variant,) = written["variants"]
    assert (variant["variant"], variant["policies"][0]["n"]) == ("push-object", 2)
    assert written["robustness_gap"][0]["value"] == 0.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.episodes", "result.json"]
    kept = sorted(path.name for path in (tmp_path / "result.episodes").iterdir())
    assert kept == ["nominal.jsonl", "push-object.jsonl"]
    again = run("evaluate", tiny, "--against", tiny, *asked, "--json", tmp_path / "result.json")
    assert again.exit_code == 2
    assert "must go to a new folder" in again.stderr


def test_a_monitor_makes_its_reference_once_and_says_when_perception_changed(
    run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_drive, "take_reference", partial(watched_drive.take_reference, episodes=4))
    normal = tmp_path / "normal"
    asked = ["--task", next(iter(TASKS)), "--episodes", "2", "--batch", "2", "--monitor", normal]
    results = []
    for name in ("first", "second"):
        result = run("evaluate", tiny, *asked, "--json", tmp_path / f"{name}.json")
        assert result.exit_code == 0, result.output
        assert "monitor, nominal: no shift in 2 episodes" in result.stdout
        assert ("normal episodes" in result.stderr) == (name == "first")
        results.append(json.loads((tmp_path / f"{name}.json").read_text())["monitor"])
    assert results[0] == results[1]
    assert [one["index"] for one in results[0]["episodes"]] == [0, 1]
    assert read_artifact(normal, kind="interface-reference").metadata["episodes"] == 4


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--batch", "0"], ["batch must be at least 1, got 0"]),
        (["--episodes", "1"], ["episodes must be between", "got 1"]),
        (["--task", "pick_upp"], ["task must be one of", "'pick_upp'"]),
        (["--variant", "lighting-drak"], ["variant must be one of", "lighting-dark"]),
    ],
)
def test_what_an_evaluation_refuses_is_refused_before_a_reference_is_made(
    tiny: Path,
    refused: Refused,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str | Path],
    fragments: list[str],
) -> None:
    def work(*args: object, **kwargs: object) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr(watched_drive, "take_reference", work)
    refused(["evaluate", tiny, "--monitor", tmp_path / "normal", *options], *fragments)


def test_an_unknown_variant_is_refused(tiny: Path, refused: Refused) -> None:
    refused(["evaluate", str(tiny), "--variant", "lighting-drak"], "variant must be one of", "lighting-dark")


def test_what_a_gate_says_is_in_the_result(run: Run, tiny: Path, tmp_path: Path) -> None:
    """One pair does not exclude a loss of 5 points; a policy drifts by nothing from itself."""
    asked = ["--task", next(iter(TASKS)), "--episodes", "1", "--gate", "margin=0.05,drift=1.5"]
    result = run("evaluate", tiny, "--against", tiny, *asked, "--json", tmp_path / "result.json")
    assert result.exit_code == 1
    assert "FAIL  margin" in result.stdout
    assert "pass  drift" in result.stdout
    gate = json.loads((tmp_path / "result.json").read_text())["comparisons"][0]["gate"]
    assert (gate["passed"], gate["limits"]) == (False, {"margin": 0.05, "drift": 1.5})
    assert [check["passed"] for check in gate["checks"]] == [False, True]


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--method", "da-ptk"], ["method must be one of", "'da-ptk'", "Did you mean 'da-ptq'"]),
        (["--weight-bits", "5.5"], ["--weight-bits", "5.5"]),
        (["--weight-bits", "9"], ["weight_bits", "9"]),
        (["--weight-bits", "5"], ["weight_bits", "5"]),
        (["--activation-bits", "1"], ["activation_bits", "1"]),
        (["--keep-fraction", "1.5"], ["fraction", "1.5"]),
        (["--keep-fraction", "-0.1"], ["fraction", "-0.1"]),
        (["--keep-fraction", "nan"], ["fraction", "nan"]),
        (["--method", "round-to-nearest", "--keep-fraction", "0.3"], ["round-to-nearest", "--keep-fraction"]),
        (["--calibration-states", "0"], ["calibration_states", "0"]),
        (["--calibration-states", "many"], ["--calibration-states", "'many'"]),
        (["--data", "tabletpo:train"], ["source must be", "'tabletpo'", "Did you mean 'tabletop'"]),
        (["--data", "tabletop"], ["source:split", "'tabletop'"]),
        (["--data", "tabletop:trian"], ["'trian'", "Did you mean 'train'"]),
        (["--data", "little:empty"], ["at least one state"]),
        (["--data", "little:nan"], ["action of calibration batch 0 must be finite", "1 NaN"]),
        (["--data", "little:shape"], ["action of calibration batch 0 must have shape", "6)"]),
        (["--seed", "one"], ["--seed", "'one'"]),
    ],
)
def test_bad_settings_of_quantize(
    refused: Refused, tiny: Path, tmp_path: Path, little_source: None, options: list[str], fragments: list[str]
) -> None:
    refused(["quantize", tiny, "--output", tmp_path / "out", *options], *fragments)
    assert list(tmp_path.iterdir()) == []


def test_unknown_policy(refused: Refused, tmp_path: Path) -> None:
    fragments = ("policy must be", "'refrence'", "Did you mean 'reference'")
    refused(["quantize", "refrence", "--output", tmp_path / "out"], *fragments)
    refused(["evaluate", "refrence", "--episodes", "4"], *fragments)
    refused(["inspect", "refrence"], *fragments)
    assert list(tmp_path.iterdir()) == []


def test_a_quantized_policy_is_not_quantized_again(refused: Refused, run: Run, tiny: Path, tmp_path: Path) -> None:
    run("quantize", tiny, "--output", tmp_path / "out", "--method", "round-to-nearest")
    refused(["quantize", tmp_path / "out", "--output", tmp_path / "twice"], "policy must be in full precision")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_taken_output_is_refused_before_any_work(
    refused: Refused, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*args: object, **kwargs: object) -> None:
        raise AssertionError("long work began")

    monkeypatch.setattr("daptq.packing.checkpoint.load_policy", work)
    (tmp_path / "note.txt").write_text("mine")
    refused(["quantize", tiny, "--output", tmp_path], "output must be a new or empty folder")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--environment", "tabletpo"], ["environment must be one of", "Did you mean 'tabletop'"]),
        (["--task", "spoon"], ["task must be one of", "Did you mean 'spoon_on_towel'"]),
        (["--episodes", "0"], ["episodes must be", "got 0"]),
        (["--episodes", "2.5"], ["--episodes", "'2.5'"]),
        (["--workers", "0"], ["workers must be", "got 0"]),
        (["--seed", "-1"], ["seed must be", "got -1"]),
        (["--against", "refrence"], ["policy", "Did you mean 'reference'"]),
        (["--against", "./nowhere"], ["a path that does not exist"]),
    ],
)
def test_bad_settings_of_evaluate(
    refused: Refused, tiny: Path, tmp_path: Path, options: list[str], fragments: list[str]
) -> None:
    refused(["evaluate", tiny, "--json", tmp_path / "out.json", *options], *fragments)
    assert not (tmp_path / "out.json").exists()


# --- damaged checkpoints ---------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(run: Run, tiny: Path, tmp_path: Path) -> Path:
    """A quantized checkpoint that a test may damage."""
    assert run("quantize", tiny, "--output", tmp_path / "out", "--method", "round-to-nearest").exit_code == 0
    return tmp_path / "out"


def _everywhere(checkpoint: Path) -> list[list[str | Path]]:
    """Every command that reads a checkpoint."""
    output = checkpoint.parent / "again"
    return [
        ["inspect", checkpoint],
        ["evaluate", checkpoint, "--episodes", "4"],
        ["quantize", checkpoint, "--output", output],
    ]


@pytest.mark.parametrize("name", ["tensors-00001.safetensors", "tokenizer.json", "manifest.json"])
def test_a_flipped_byte(refused: Refused, checkpoint: Path, name: str) -> None:
    data = bytearray((checkpoint / name).read_bytes())
    data[len(data) // 2] ^= 1
    (checkpoint / name).write_bytes(data)
    for command in _everywhere(checkpoint):
        refused(command, name, "Copy or write it again")


def test_a_missing_shard(refused: Refused, checkpoint: Path) -> None:
    (checkpoint / "tensors-00001.safetensors").unlink()
    for command in _everywhere(checkpoint):
        refused(command, "must hold the file tensors-00001.safetensors")


def test_another_schema_version(refused: Refused, checkpoint: Path) -> None:
    path = checkpoint / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema_version": 2}))
    for command in _everywhere(checkpoint):
        refused(command, "schema_version", "must be 1, got 2")


def test_a_disk_that_fills_up(tiny: Path, tmp_path: Path) -> None:
    """The kernel refuses files larger than 16 KiB to the whole command."""
    daptq_command = [Path(sys.executable).with_name("daptq"), "quantize", tiny, "--output", tmp_path / "out"]
    words = " ".join(shlex.quote(str(word)) for word in [*daptq_command, "--method", "round-to-nearest"])
    result = subprocess.run(["bash", "-c", f"ulimit -f 16; exec {words}"], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "must be writable" in line
    assert not (tmp_path / "out").exists()
