"""Discordant episodes: all are listed, and animations start paused and say what is in them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from daptq.report import write_report
from daptq.report.videos import Videos
from tests.unit.made_up_results import typed, video


def section(page: str) -> str:
    return page[page.index('<section id="episodes"') : page.index('<section id="drift"')]


def test_every_discordant_episode_is_listed(result: dict[str, Any], tmp_path: Path) -> None:
    page = section(write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8"))
    rows = re.findall(
        r'<tr><th scope="row">(\d+)</th><td[^>]*>([^<]+)</td><td>(\d+)</td><td[^>]*>(\w+)</td><td[^>]*>([^<]+)</td>',
        page,
    )
    for number, comparison in enumerate(result["comparisons"]):
        entries = comparison["paired"]["discordant"]
        assert sum(len(one["paired"]["discordant"]) for one in result["comparisons"]) == len(rows)
        mine = rows[: len(entries)] if number == 0 else rows[-len(entries) :]
        assert {int(index) for index, *_ in mine} == {entry["index"] for entry in entries}
        lost = {entry["index"] for entry in entries if entry["succeeds"] == "baseline"}
        assert {int(index) for index, _, _, outcome, _ in mine if outcome == "lost"} == lost
        assert {name for *_, outcome, name in mine if outcome == "lost"} == {"reference"}
    assert "daptq report --animate 4" in page


def test_no_discordant_episode_is_said(result: dict[str, Any], tmp_path: Path) -> None:
    for comparison in result["comparisons"]:
        comparison["paired"].update(only_baseline=0, only_candidate=0, discordant=[])
    page = section(write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.count("None: in each of 40 episodes both succeed or both fail.") == 2


def test_an_animation_says_what_is_in_it_and_waits(result: dict[str, Any], tmp_path: Path) -> None:
    page = write_report(typed(result), tmp_path / "report.html", videos=video(result)).read_text(encoding="utf-8")
    shown = section(page)
    assert shown.count('<figure class="video"') == 1
    entry = result["comparisons"][0]["paired"]["discordant"][0]
    assert f"succeeds after step {entry['first_success']}" in shown
    assert "does not succeed" in shown
    (alternative,) = re.findall(r'<img alt="([^"]+)" src="data:image/webp;base64,', shown)
    assert "left reference, right round-to-nearest W4A8" in alternative
    # 12 s and 8 frames; frame 5 is on while 5 / 8 to 6 / 8 of the time have passed.
    assert "--duration:12.00s;--frames:8;--delay:-8.25s" in shown
    assert "infinite paused" in page
    assert re.search(
        r'<input type="checkbox" id="(video-0-0)" class="play">.*<label for="video-0-0">', shown, re.DOTALL
    )


def test_what_is_to_be_said_of_animations_is_said(result: dict[str, Any], tmp_path: Path) -> None:
    (one,) = video(result).videos
    videos = Videos(videos=(replace(one, note="It came out differently."),), note="3 more are not animated.")
    page = section(write_report(typed(result), tmp_path / "report.html", videos=videos).read_text(encoding="utf-8"))
    assert "It came out differently." in page
    assert "3 more are not animated." in page
