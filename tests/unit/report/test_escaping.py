"""Every string of a result is shown as text, whatever is in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from daptq.report import write_report
from daptq.report.videos import Videos
from tests.unit.made_up_results import add_monitor, add_variants, typed, video
from tests.unit.report.test_page import parse

HOSTILE = """<script>alert("1")</script>'><img src=x onerror='{{ 7*7 }}'>{% raw %}&amp;"""
# Strings that the type of the result restricts to a few values.
RESTRICTED = {"role", "succeeds", "success_rule", "kind", "sha256"}
# Objects whose keys are names.
NAMED = {"per_task", "versions", "ratio_to_float_path", "ratio_to_eager", "stages_ms"}


def spoilt(value: Any, spoil: Callable[[str], str], key: str = "") -> Any:
    """A JSON value in which every string that may be any string is spoilt; keys that are names, too."""
    if isinstance(value, dict):
        return {spoil(name) if key in NAMED else name: spoilt(one, spoil, name) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [spoilt(one, spoil, key) for one in value]
    return spoil(value) if isinstance(value, str) and key not in RESTRICTED else value


@pytest.fixture
def hostile_page(result: dict[str, Any], benchmark: dict[str, Any], tmp_path: Path) -> str:
    """A page with every section; each string of its inputs ends in HTML, in the syntax of templates, and in quotes."""
    seen: list[str] = []

    def spoil(text: str) -> str:
        seen.append(text)
        return text + HOSTILE

    (shown,) = video(result).videos
    policy, against, task = spoil(shown.policy), spoil(shown.against), spoil(shown.task)
    shown = replace(shown, policy=policy, against=against, task=task, note=spoil("note"))
    videos = Videos(videos=(shown,), note=spoil("note"))
    result["variant"] = "variant"
    result = add_variants(result)
    add_monitor(result, flagged_at=3)
    result = spoilt(result, spoil)
    check = {"name": "margin", "passed": False, "reason": spoil("reason")}
    result["comparisons"][0]["gate"] = {"passed": False, "limits": {"margin": 0.1}, "checks": [check]}
    assert len(seen) > 500
    path = tmp_path / "report.html"
    write_report(typed(result), path, benchmark=spoilt(benchmark, spoil), videos=videos)
    return path.read_text(encoding="utf-8")


def test_hostile_strings_are_shown_as_text(hostile_page: str) -> None:
    parsed = parse(hostile_page)
    assert (parsed.faults, parsed.open) == ([], [])
    assert "script" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name.startswith("on")]
    pictures = [value for name, value in parsed.attributes if name == "src"]
    assert all(value.startswith("data:image/webp;base64,") for value in pictures)
    # What a reader sees, and what a tool reads to those who cannot see, is the string of the result.
    assert "".join(parsed.text).count(HOSTILE) > 100
    titles = [value for name, value in parsed.attributes if name in ("title", "alt", "aria-label")]
    assert sum(HOSTILE in value for value in titles) > 50


def test_the_check_of_hostile_strings_can_fail(hostile_page: str) -> None:
    assert "script" in parse(hostile_page.replace("&lt;", "<").replace("&gt;", ">")).tags


def test_templates_are_in_the_package_and_trust_no_string() -> None:
    folder = resources.files("daptq.report").joinpath("templates")
    texts = {entry.name: entry.read_text(encoding="utf-8") for entry in folder.iterdir()}
    assert {"page.html", "elements.html", "verdict.html", "style.css"} <= set(texts)
    referred = {name for text in texts.values() for name in re.findall(r'(?:include|from) "([\w.]+)"', text)}
    assert referred <= set(texts)
    assert not [name for name, text in texts.items() if re.search(r"\|\s*safe\b|autoescape", text)]


def test_templates_are_shipped() -> None:
    project = Path(__file__).parents[3].joinpath("pyproject.toml").read_text(encoding="utf-8")
    _, _, shipped = project.partition("[tool.setuptools.package-data]")
    assert '"report/templates/*"' in shipped.partition("]")[0]
