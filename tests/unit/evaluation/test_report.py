"""The page: complete, self-contained, well-formed, and its verdict follows the interval."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from daptq.errors import ForeignArtifactError, SchemaVersionError
from daptq.evaluation._sections import _estimate, verdict
from daptq.evaluation._svg import Estimate, growth_plot, interval_track
from daptq.evaluation.report import write_report

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balance(HTMLParser):
    """Checks that every element is closed in order; collects text and attribute values."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    return parser


@pytest.fixture
def page(result: dict[str, Any], tmp_path: Path) -> str:
    return write_report(result, tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_page_is_well_formed(page: str) -> None:
    parsed = parse(page)
    assert (parsed.faults, parsed.open) == ([], [])
    assert parse("<div><p>open</div>").faults  # The checker sees a fault where there is one.


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    names = {name for name, _ in parse(page).attributes}
    assert not names & {"src", "href", "srcset", "data", "action", "background", "xlink:href"}
    assert not re.search(r"https?:|//|url\(|@import|<script|<link|<iframe", page.replace("<!DOCTYPE", ""))


def test_the_verdict_comes_first(page: str) -> None:
    text = " ".join(" ".join(parse(page).text).split())
    sections = ["Success", "Paired difference", "Drift of", "Weights and latency", "Bits of each", "Provenance"]
    places = [page.index('class="verdict"'), *(page.index(f"<h2>{section}") for section in sections)]
    assert places == sorted(places)
    assert "round-to-nearest W4A8: success is lower" in text
    assert "DA-PTQ <W4A8>: no difference in success was found" in text
    assert "do not rule out a loss of up to" in text


def test_every_number_of_the_result_is_on_the_page(page: str, result: dict[str, Any]) -> None:
    text = " ".join(parse(page).text)
    for policy in result["policies"]:
        assert f"{100 * policy['success_rate']:.1f} % [{100 * policy['low']:.1f}, {100 * policy['high']:.1f}]" in text
        assert f"{policy['weights']['bytes_in_memory'] / 2**20:.2f}" in text
        assert policy["weights"]["sha256"] in text
    for comparison in result["comparisons"]:
        assert f"{comparison['paired']['mcnemar_p']:.3g}" in text
        for entry in comparison["drift"]["identical_states"]["after_steps"]:
            assert f"{entry['position_mm']['median']['value']:.3g} [" in text
    for task in ("Spoon on towel", "Carrot on plate", "Stack green on yellow", "Eggplant in basket"):
        assert task in text
    for number in ("92.2", "102.4", "133.1", "88.0 (0.86)", "0.859 [0.842, 0.877]"):
        assert number in text


def test_each_layer_is_a_cell_with_its_bits(page: str, result: dict[str, Any]) -> None:
    cells = re.findall(r'<span class="cell (\w+)" title="([^"]+)">(\d+)</span>', page)
    expected = [layer for policy in result["policies"] for layer in policy["layers"]]
    assert [int(bits) for _, _, bits in cells] == [layer["num_bits"] for layer in expected]
    assert {shade for shade, _, bits in cells if bits == "4"} == {"low"}
    for policy in result["policies"]:
        mean = sum(layer["num_bits"] for layer in policy["layers"]) / len(policy["layers"])  # equally large layers
        assert f"{mean:.2f} bits per weight" in page


def test_names_are_escaped(page: str) -> None:
    assert "DA-PTQ &lt;W4A8&gt;" in page
    assert "<W4A8>" not in page


def test_series_differ_by_shape_and_not_by_colour_alone(page: str) -> None:
    legend = page[page.index('<ul class="legend">') : page.index("</ul>")]
    shapes = re.findall(r'<g class="s(\d)"><(\w+)', legend)
    assert [index for index, _ in shapes] == ["0", "1", "2"]
    assert len({shape for _, shape in shapes}) == 3


def test_it_adapts_to_the_dark_and_to_a_phone(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page
    assert "max-width: 40rem" in page


def test_a_result_without_baseline_latency_or_disk_makes_a_page(result: dict[str, Any], tmp_path: Path) -> None:
    alone = copy.deepcopy(result)
    alone["policies"] = alone["policies"][:1]
    alone["policies"][0]["weights"]["bytes_on_disk"] = None
    alone.update(comparisons=[], paired=None, drift=None)
    del alone["latency"]
    page = write_report(alone, tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = parse(page)
    assert (parsed.faults, parsed.open) == ([], [])
    assert "No baseline was given" in page
    assert "Latency" not in page
    assert "Paired difference" not in page


def test_an_existing_page_is_replaced(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(result, str(path))
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("value", [{}, [], {"schema_version": 1}, None])
def test_something_else_is_refused(value: Any, tmp_path: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="must be an evaluation"):
        write_report(value, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(result: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SchemaVersionError, match="must be 1, got 2"):
        write_report({**result, "schema_version": 2}, tmp_path / "report.html")


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [
        (-20.0, -0.1, "Success is lower"),
        (0.1, 5.0, "Success is higher"),
        (-3.0, 0.0, "No difference in success was found"),
        (0.0, 3.0, "No difference in success was found"),
    ],
)
def test_the_headline_follows_the_interval(result: dict[str, Any], low: float, high: float, headline: str) -> None:
    comparison = copy.deepcopy(result["comparisons"][0])
    comparison["paired"].update(low=low, high=high, difference=(low + high) / 2)
    assert verdict(comparison)[0] == headline


def test_marks_stand_where_the_numbers_say() -> None:
    track = interval_track(Estimate(value=0.5, low=0.25, high=0.75), series=0, low=0.0, high=1.0)
    assert 'x1="25.00%" x2="75.00%"' in track
    assert '<svg x="50.00%"' in track
    clipped = interval_track(Estimate(value=2.0, low=-1.0, high=3.0), series=0, low=0.0, high=1.0)
    assert 'x1="0.00%" x2="100.00%"' in clipped


def test_only_an_exact_zero_is_shown_as_zero() -> None:
    assert _estimate({"value": 0.0, "low": 0.0, "high": 1e-9}) == "0 [0, <0.01]"
    assert _estimate({"value": 0.01, "low": 0.0099, "high": 123.456}) == "0.01 [<0.01, 123]"


@pytest.mark.parametrize("largest", [0.0, 1e-7, 0.031, 0.99, 1.0, 7.2, 183.0, 1e6])
def test_the_axis_covers_the_largest_value_with_few_ticks(largest: float) -> None:
    line = [Estimate(value=largest, low=0.0, high=largest)]
    plot = growth_plot([(1, line)], labels=["16 steps"], unit="mm", description="drift")
    ticks = [float(tick) for tick in re.findall(r'text-anchor="end">([^<]+)<', plot)]
    assert ticks[0] == 0.0
    assert ticks[-1] >= largest
    assert 2 <= len(ticks) <= 6
    heights = [float(y) for y in re.findall(r'<svg x="[^"]+" y="([^"]+)"', plot)]
    assert all(0 <= y <= 200 for y in heights)
