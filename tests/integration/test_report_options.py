"""`daptq report`: a benchmark beside the evaluation, and animations where the policies are at hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.conftest import Refused, Run
from tests.unit.made_up_results import synthetic_benchmark, synthetic_result


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """An evaluation of policies that are on no disk."""
    path = tmp_path / "drive.json"
    path.write_text(json.dumps(synthetic_result()))
    return path


def test_a_benchmark_is_shown_beside_the_evaluation(run: Run, drive: Path, tmp_path: Path) -> None:
    benchmark, page, described = tmp_path / "benchmark.json", tmp_path / "page.html", tmp_path / "page.json"
    benchmark.write_text(json.dumps(synthetic_benchmark()))
    result = run("report", drive, "--benchmark", benchmark, "--animate", "0", "--output", page, "--json", described)
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{page}\n", "")
    text = page.read_text()
    assert "openvino-float32" in text
    assert "No animation was asked for." in text
    written = json.loads(described.read_text())
    assert written == {"schema_version": 1, "report": str(page), "bytes": page.stat().st_size}


def test_policies_that_are_not_at_hand_are_named(run: Run, drive: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = run("report", drive, "--output", page)
    assert result.exit_code == 0
    assert result.stderr.startswith("no animations: policy must be")
    assert "No animations: policy must be" in page.read_text()


def test_animations_that_were_asked_for_are_made_or_refused(refused: Refused, drive: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    refused(["report", drive, "--animate", "2", "--output", page], "policy must be")
    refused(["report", drive, "--animate", "-1", "--output", page], "at least 0, got -1")
    assert not page.exists()


def test_a_file_that_is_no_benchmark_is_refused(refused: Refused, drive: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    refused(["report", drive, "--benchmark", drive, "--output", page], "must be the benchmark result")
    refused(["report", drive, "--benchmark", tmp_path / "none.json", "--output", page], "none.json", "No such file")
    assert not page.exists()
