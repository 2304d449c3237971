"""What the page says of a monitor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from daptq.report import write_report
from tests.unit.made_up_results import add_monitor, add_variants, typed
from tests.unit.report.test_page import parse, words


def page(result: dict[str, Any], folder: Path) -> str:
    return write_report(typed(result), folder / "report.html").read_text(encoding="utf-8")


def test_without_a_monitor_the_option_is_named(result: dict[str, Any], tmp_path: Path) -> None:
    assert "Nothing was watched: daptq evaluate --monitor DIR does." in words(page(result, tmp_path))


def test_every_condition_says_when_the_flag_was_raised(result: dict[str, Any], tmp_path: Path) -> None:
    result = add_variants(result)
    add_monitor(result)
    dark = {"episodes": 40, "policies": result["policies"]}
    add_monitor(dark, flagged_at=12)
    result["variants"][0]["monitor"] = dark["monitor"]
    made = page(result, tmp_path)
    text = words(made)
    assert (parse(made).faults, parse(made).open) == ([], [])
    assert "shift flagged after 13 of 40 episodes shift at <condition>: channel 3 moved most" in text
    assert "no shift in 40 episodes (evidence up to 7.5, flag at 800)" in text
    assert text.count("raised") == 28 + 1  # the sentence below the table says it once
    assert "Episodes, nominal" in text
    assert "Episodes, dark room" in text
    assert "within 40 episodes with probability 5% at most" in text
    assert "Episodes, other camera" not in text
