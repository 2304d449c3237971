"""The page of the metrics says of every metric of motion what the code says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from daptq.metrics.motion import METRICS
from daptq.metrics.motion_metric import MotionMetric

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def row(name: str, metric: MotionMetric) -> str:
    marks = [mark for mark in (metric.change, metric.average) if mark in ("difference", "mean")]
    marked = f"`{name}` ({', '.join(marks)})" if marks else f"`{name}`"
    return f"| {marked} | {metric.unit} | {metric.definition} |"


@pytest.mark.parametrize("name", METRICS)
def test_the_page_holds_the_row_of_a_metric(name: str) -> None:
    assert row(name, METRICS[name]) in PAGE.read_text(encoding="utf-8").splitlines()


def test_another_definition_would_be_noticed() -> None:
    changed = replace(METRICS["path_length"], unit="km")
    assert row("path_length", changed) not in PAGE.read_text(encoding="utf-8").splitlines()
