"""`benchmarks/markdown_tables.py`: rows of policies and of tasks."""

from __future__ import annotations

from types import ModuleType

import pytest

from daptq.evaluation.result import EvaluationResult
from daptq.report.table import table_rows
from tests.integration.test_evaluation_scripts import load
from tests.unit.made_up_results import synthetic_result, typed


@pytest.fixture
def tables() -> ModuleType:
    return load("benchmarks/markdown_tables.py")


@pytest.fixture
def result() -> EvaluationResult:
    return typed(synthetic_result())


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_each_policy_is_a_row(tables: ModuleType, result: EvaluationResult) -> None:
    header, rows = table_rows(result)
    lines = tables.result_markdown(result).splitlines()
    assert len(lines) == 2 + len(rows)
    assert cells(lines[0]) == list(header)
    assert cells(lines[3]) == list(rows[1])


def test_each_task_is_a_row_by_both_rules(tables: ModuleType, result: EvaluationResult) -> None:
    lines = tables.task_markdown(result).splitlines()
    assert [cells(line)[0] for line in lines[2:]] == list(result.tasks)
    success = result.policies[1].success
    assert success is not None
    rates = success.per_task[result.tasks[0]]
    _, count, _, cell, _ = cells(lines[2])
    assert count == "10"
    assert cell.startswith(f"{100 * rates.success_rate:.1f} % [{100 * rates.low:.1f}, ")
    assert cell.endswith(f"at last step {100 * rates.at_last_step.success_rate:.1f} %")
