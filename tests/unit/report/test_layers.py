"""The bit map and the sensitivity: a cell per layer, a mark per score."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from daptq.report import write_report
from tests.unit.made_up_results import typed


@pytest.fixture
def page(result: dict[str, Any], tmp_path: Path) -> str:
    return write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")


def test_each_layer_is_a_cell_with_its_bits(page: str, result: dict[str, Any]) -> None:
    cells = re.findall(r'<span class="cell (\w+)" title="([^"]+)">(\d+)</span>', page)
    expected = [layer for policy in result["policies"][1:] for layer in policy["layers"]]
    assert [int(bits) for _, _, bits in cells] == [layer["num_bits"] for layer in expected]
    assert [title.split(":")[0] for _, title, _ in cells] == [layer["name"] for layer in expected]
    assert {shade for shade, _, bits in cells if bits == "4"} == {"low"}
    assert "All 66 layers in floating point, 32 bits." in page
    for policy in result["policies"]:
        mean = sum(layer["num_bits"] for layer in policy["layers"]) / len(policy["layers"])  # equally large layers
        assert f"{mean:.2f} bits per weight" in page
    assert "18 at 4 bits, 9 at 16 bits" in page


def test_each_scored_layer_is_a_mark(page: str, result: dict[str, Any]) -> None:
    plan = result["policies"][2]["plan"]["layers"]
    bits = {layer["name"]: layer["num_bits"] for layer in result["policies"][2]["layers"]}
    scored = [layer for layer in plan if layer["score"] is not None]
    marks = re.findall(r'<circle r="3.6" class="(\w+)"><title>([^:]+): (\S+), (\d+) bits', page)
    assert [name for _, name, _, _ in marks] == [layer["name"] for layer in scored]
    scores = [float(score) for _, _, score, _ in marks]
    assert scores == pytest.approx([layer["score"] for layer in scored], rel=1e-2)
    assert {name: shape for shape, name, _, _ in marks} == {
        layer["name"]: "ring" if bits[layer["name"]] == 16 else "dot" for layer in scored
    }
    assert "The 10 most sensitive layers" in page
    assert "No layer was scored" in page  # round-to-nearest


def test_scores_that_are_all_zero_make_no_axis(result: dict[str, Any], tmp_path: Path) -> None:
    for layer in result["policies"][2]["plan"]["layers"]:
        layer["score"] = 0.0
    assert "Every score is 0." in write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
