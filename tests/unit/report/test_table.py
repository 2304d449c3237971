"""The table for the terminal and for Markdown."""

from __future__ import annotations

import copy
import io
from typing import Any

from rich.console import Console

from daptq.report.table import result_table, table_rows
from tests.unit.made_up_results import typed


def test_each_policy_is_a_row_with_its_numbers(result: dict[str, Any]) -> None:
    header, rows = table_rows(typed(result))
    assert [row[0] for row in rows] == ["reference", "round-to-nearest W4A8", "DA-PTQ <W4A8>"]
    assert "after 16 steps" in header[3]
    reference, rounded, _ = (dict(zip(header, row, strict=True)) for row in rows)
    policy, comparison = result["policies"][1], result["comparisons"][0]
    assert rounded["success [95 %]"].startswith(f"{100 * policy['success_rate']:.1f} % [")
    assert rounded["difference [points, 95 %]"].startswith(f"{comparison['paired']['difference']:+.1f} [")
    after = comparison["drift"]["identical_states"]["after_steps"][-1]
    assert rounded[header[3]].startswith(f"{after['position_mm']['median']['value']:.2f} / ")
    assert (rounded["disk [MiB]"], rounded["memory [MiB]"]) == ("14.25", "17.00")
    assert [reference[name] for name in header[2:5]] == ["-", "-", "-"]


def test_what_was_not_measured_is_a_dash(result: dict[str, Any]) -> None:
    bare = copy.deepcopy(result)
    bare["comparisons"] = []
    bare["policies"][0]["weights"]["bytes_on_disk"] = None
    _, rows = table_rows(typed(bare))
    assert rows[0][2:6] == ("-", "-", "-", "-")


def test_without_whole_episodes_there_is_drift_from_states_alone(result: dict[str, Any]) -> None:
    for name in ("n", "successes", "success_rate", "low", "high", "at_last_step", "other_task", "per_task"):
        del result["policies"][1][name]
    result["comparisons"][0].update(paired=None, motion=None)
    result["comparisons"][0]["drift"]["whole_episode"] = None
    _, rows = table_rows(typed(result))
    assert rows[1][1:3] == ("-", "-")
    assert " / " in rows[1][3]
    assert rows[1][4] == "-"


def test_the_terminal_holds_every_cell(result: dict[str, Any]) -> None:
    header, rows = table_rows(typed(result))
    output = io.StringIO()
    Console(file=output, width=140).print(result_table(typed(result)))
    for cell in (*header[1:], *(cell for row in rows for cell in row)):
        assert cell in output.getvalue()
    assert "n = 40 paired episodes" in output.getvalue()
