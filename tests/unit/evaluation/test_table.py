"""The table for the terminal and for Markdown."""

from __future__ import annotations

import copy
import io
from typing import Any

from rich.console import Console

from daptq.report.table import markdown_table, result_table, table_rows, task_table
from tests.unit.evaluation.conftest import add_latency


def test_each_policy_is_a_row_with_its_numbers(result: dict[str, Any]) -> None:
    add_latency(result)
    header, rows = table_rows(result)
    assert [row[0] for row in rows] == ["reference", "round-to-nearest W4A8", "DA-PTQ <W4A8>"]
    assert "after 16 steps" in header[3]
    reference, rounded, _ = (dict(zip(header, row, strict=True)) for row in rows)
    policy, comparison = result["policies"][1], result["comparisons"][0]
    assert rounded["success [95 %]"].startswith(f"{100 * policy['success_rate']:.1f} % [")
    assert rounded["difference [points, 95 %]"].startswith(f"{comparison['paired']['difference']:+.1f} [")
    after = comparison["drift"]["identical_states"]["after_steps"][-1]
    assert rounded[header[3]].startswith(f"{after['position_mm']['median']['value']:.2f} / ")
    assert (rounded["disk [MiB]"], rounded["memory [MiB]"], rounded["latency [ms]"]) == (
        "14.25",
        "17.00",
        "88.0 (0.86x)",
    )
    assert [reference[name] for name in header[2:5]] == ["-", "-", "-"]


def test_what_was_not_measured_is_a_dash(result: dict[str, Any]) -> None:
    bare = copy.deepcopy(result)
    bare["comparisons"] = []
    bare["policies"][0]["weights"]["bytes_on_disk"] = None
    _, rows = table_rows(bare)
    assert rows[0][2:6] == ("-", "-", "-", "-")
    assert rows[0][7] == "-"


def test_terminal_and_markdown_hold_the_same_cells(result: dict[str, Any]) -> None:
    header, rows = table_rows(result)
    lines = markdown_table(result).splitlines()
    assert len(lines) == 2 + len(rows)
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == list(header)
    assert [cell.strip() for cell in lines[3].strip("|").split("|")] == list(rows[1])
    output = io.StringIO()
    Console(file=output, width=140).print(result_table(result))
    for cell in (*header[1:], *(cell for row in rows for cell in row)):
        assert cell in output.getvalue()
    assert "n = 40 paired episodes" in output.getvalue()


def test_each_task_is_a_row_by_both_rules(result: dict[str, Any]) -> None:
    lines = task_table(result).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == result["tasks"]
    rate = result["policies"][1]["per_task"][result["tasks"][0]]
    cell = lines[2].split("|")[4].strip()
    assert cell.startswith(f"{100 * rate['success_rate']:.1f} % [{100 * rate['low']:.1f}, ")
    assert cell.endswith(f"at last step {100 * rate['at_last_step']['success_rate']:.1f} %")
    assert lines[2].split("|")[2].strip() == "10"
