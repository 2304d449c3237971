"""`daptq audit`: exit codes, one line per layer, the JSON."""

from __future__ import annotations

import json
from pathlib import Path

from tests.integration.audit.conftest import LAYERS, ROTATED, write
from tests.integration.conftest import Refused, Run


def test_an_honest_folder_exits_with_0(run: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = run("audit", checkpoint, "--json", tmp_path / "audit.json")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[-1] == "every layer executed as planned"
    assert [line.split()[0] for line in lines[1 : len(LAYERS) + 1]] == list(LAYERS)
    (shown,) = [line.split() for line in lines if line.startswith(ROTATED)]
    assert shown[1:5] == ["language", "W4A8", "int8", "1"]
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written["verdict"] == "as planned"
    slower = [f"{name}: takes {ratio:.2f} times as long" for name, ratio in written["slower_than_bfloat16"].items()]
    said = [line for line in lines if "bfloat16 on this machine" in line]
    expected = slower or ["no layer was measured slower"]
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True))
    assert written["provenance"]["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]


def test_a_difference_exits_with_1_and_is_written(run: Run, tmp_path: Path) -> None:
    folder = write(tmp_path / "other", {"layers": [{"name": ROTATED, "num_bits": 16}]})
    result = run("audit", folder, "--json", tmp_path / "audit.json")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith(f"{ROTATED}: plan: must be stored as the bit plan says, 16 bits")
    assert "1 differences in 1 of" in result.stderr
    (difference,) = json.loads((tmp_path / "audit.json").read_text())["differences"]
    assert (difference["layer"], difference["kind"]) == (ROTATED, "plan")


def test_bad_input_exits_with_2(refused: Refused, tmp_path: Path) -> None:
    refused(["audit", "reference"], "must hold an artifact of kind 'quantized-policy'")
    refused(["audit", tmp_path / "nowhere"], "a path that does not exist")
