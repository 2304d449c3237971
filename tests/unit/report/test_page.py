"""The page: complete, self-contained, well-formed, and what is absent is said to be."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from daptq.errors import ForeignArtifactError, SchemaVersionError
from daptq.metrics.motion import METRICS
from daptq.report import write_report
from daptq.report.wording import points
from tests.unit.made_up_results import add_variants, typed, video

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Balance(HTMLParser):
    """Checks that every element is closed in order; collects text, tags, and attribute values."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.faults: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
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


def words(page: str) -> str:
    """The text of a page on one line."""
    return " ".join(" ".join(parse(page).text).split())


def fetched(page: str) -> list[str]:
    """What a browser would get from elsewhere to show the page."""
    parsed = parse(page)
    found = [value for name, value in parsed.attributes if name == "href" and not value.startswith(("#", "data:,"))]
    found += [value for name, value in parsed.attributes if name == "src" and not value.startswith("data:image/webp")]
    found += [name for name, _ in parsed.attributes if name in ("srcset", "data", "action", "background", "xlink:href")]
    found += [name for name, _ in parsed.attributes if name.startswith("on")]
    found += parsed.tags & {"script", "iframe", "object", "embed", "base", "form"}
    return found + re.findall(r"url\((?!#)[^)]*\)|@import|https?:", re.sub(r"data:image/webp[^\"]*", "", page))


@pytest.fixture
def page(result: dict[str, Any], benchmark: dict[str, Any], tmp_path: Path) -> str:
    path = write_report(typed(result), tmp_path / "report.html", benchmark=benchmark, videos=video(result))
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed(page: str) -> None:
    parsed = parse(page)
    assert (parsed.faults, parsed.open) == ([], [])
    assert parse("<div><p>open</div>").faults  # The checker sees a fault where there is one.
    names = [value for name, value in parsed.attributes if name == "id"]
    assert len(names) == len(set(names))
    referred = {value.lstrip("#") for name, value in parsed.attributes if name in ("href", "for", "aria-labelledby")}
    assert referred - {"data:,"} <= set(names)


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    assert fetched(page) == []
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    for code in ('<img src="a.png">', "<script>1</script>", '<p onclick="x">', "<b style='background:url(x)'>"):
        assert fetched(page + code)


def test_the_verdict_comes_first(page: str) -> None:
    titles = (
        "Success",
        "Paired difference",
        "Discordant",
        "Drift of",
        "Motion",
        "Robustness",
        "Bits of",
        "Sensitivity",
        "Memory and",
    )
    places = [page.index('class="verdict'), *(page.index(f'-title">{title}') for title in (*titles, "Provenance"))]
    assert places == sorted(places)
    text = words(page)
    assert "Fail round-to-nearest W4A8: success is lower" in text
    assert "DA-PTQ <W4A8>" in text


def test_every_number_of_the_result_is_on_the_page(page: str, result: dict[str, Any]) -> None:
    text = words(page)
    for policy in result["policies"]:
        assert f"{100 * policy['success_rate']:.1f} % [{100 * policy['low']:.1f}, {100 * policy['high']:.1f}]" in text
        assert f"{policy['weights']['bytes_in_memory'] / 2**20:.2f}" in text
        assert policy["weights"]["sha256"] in text
    for comparison in result["comparisons"]:
        assert f"{comparison['paired']['mcnemar_p']:.3g}" in text
        for entry in comparison["drift"]["identical_states"]["after_steps"]:
            assert f"{entry['position_mm']['median']['value']:.3g} [" in text
        for entry in comparison["motion"].values():
            assert not entry["n"] or f"{entry['candidate']:.3g}".replace("-", "\N{MINUS SIGN}") in text
        for entry in comparison["paired"]["discordant"]:
            assert str(entry["seed"]) in text
    for task in ("Spoon on towel", "Carrot on plate", "Stack green on yellow", "Eggplant in basket"):
        assert task in text
    for number in ("102.4", "133.00", "1.28 [1.25, 1.31]", "1.10 ×"):
        assert number in text


def test_every_metric_of_motion_has_its_unit_and_definition(page: str, result: dict[str, Any]) -> None:
    assert set(result["comparisons"][0]["motion"]) == set(METRICS)
    for metric in METRICS.values():
        assert metric.title in page
        assert metric.definition.replace("'", "&#39;") in page
        assert f">{metric.unit}</td>" in page


def test_names_are_escaped(page: str) -> None:
    assert "DA-PTQ &lt;W4A8&gt;" in page
    assert "<W4A8>" not in page


def test_tables_have_captions_and_headings_and_figures_descriptions(page: str) -> None:
    assert len(re.findall("<table", page)) == len(re.findall("<caption><span>[^<]", page)) > 8
    assert len(re.findall('<th scope="col">', page)) > 30
    plots = re.findall(r'<svg class="plot".*?</svg>', page, re.DOTALL)
    assert len(plots) == 3
    assert all(
        re.search(r'role="img" aria-label="[^"]+"><title>[^<]+</title><desc>[^<]+</desc>', plot) for plot in plots
    )


def test_folders_are_shown_by_their_last_part(result: dict[str, Any], tmp_path: Path) -> None:
    for old, new in (("round-to-nearest W4A8", "runs/a/nearest"), ("DA-PTQ <W4A8>", "runs/b/plus/")):
        result["policies"] = [{**one, "name": new} if one["name"] == old else one for one in result["policies"]]
        result["comparisons"] = [
            {**one, "policy": new} if one["policy"] == old else one for one in result["comparisons"]
        ]
    text = words(write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "nearest: success is lower" in text
    assert "plus: " in text
    assert "Full names of the policies" in text
    assert "runs/b/plus/" in text


def test_what_is_absent_is_said_to_be(result: dict[str, Any], tmp_path: Path) -> None:
    alone = copy.deepcopy(result)
    alone["policies"] = alone["policies"][:1]
    alone["policies"][0]["weights"]["bytes_on_disk"] = None
    alone.update(comparisons=[], paired=None, drift=None)
    page = write_report(typed(alone), tmp_path / "report.html").read_text(encoding="utf-8")
    parsed = parse(page)
    assert (parsed.faults, parsed.open) == ([], [])
    for said in (
        "No verdict",
        "No baseline was given",
        "No pair of whole episodes",
        "nothing to drift from",
        "Motion was not compared",
        "No policy is quantized",
        "No variant was run",
        "Latency was not measured",
        "Not on disk: reference",
    ):
        assert said in page


def test_branches_alone_make_a_page(result: dict[str, Any], tmp_path: Path) -> None:
    """An evaluation without whole episodes of the candidates has neither success nor motion of theirs."""
    for policy in result["policies"][1:]:
        for name in ("n", "successes", "success_rate", "low", "high", "at_last_step", "other_task", "per_task"):
            del policy[name]
    for comparison in result["comparisons"]:
        comparison.update(paired=None, motion=None)
        comparison["drift"]["whole_episode"] = None
    page = write_report(typed(result), tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("no whole episodes were run") == 2
    assert "Position drift" in page
    assert "Motion was not compared" in page


def test_variants_have_their_gaps_and_rates(result: dict[str, Any], tmp_path: Path) -> None:
    varied = add_variants(result)
    page = write_report(typed(varied), tmp_path / "report.html").read_text(encoding="utf-8")
    shown = page[page.index('<section id="robustness"') : page.index('<section id="bits"')]
    assert re.findall("<h3>(.*?)</h3>", shown) == ["Dark room", "Other camera", "All variants"]
    gaps = [entry["robustness_gap"] for entry in varied["variants"]] + [varied["robustness_gap"]]
    for gap in (one for entries in gaps for one in entries):
        assert points(gap["value"]) in shown
    assert gaps[0][0]["value"] < gaps[1][0]["value"] == 0.0
    assert "half as bright" in shown
    assert "0.0 % [0.0, 9.0]" in shown
    alone = {**varied, "variants": [{**one, "robustness_gap": []} for one in varied["variants"]], "robustness_gap": []}
    assert "Robustness gap" not in write_report(typed(alone), tmp_path / "report.html").read_text(encoding="utf-8")
    titled = write_report(typed({**result, "variant": "dark_room"}), tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert "<title>Closed-loop evaluation on tabletop, variant dark_room</title>" in titled


def test_an_existing_page_is_replaced(result: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_report(typed(result), str(path))
    assert path.read_text().startswith("<!DOCTYPE html>")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("value", [{}, {"schema_version": 1}])
def test_something_else_is_refused(result: dict[str, Any], value: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="must be the evaluation result"):
        write_report(value, tmp_path / "report.html")
    with pytest.raises(ForeignArtifactError, match="must be the benchmark result"):
        write_report(typed(result), tmp_path / "report.html", benchmark=value)
    assert list(tmp_path.iterdir()) == []


def test_another_format_is_refused(result: dict[str, Any], benchmark: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SchemaVersionError, match="must be 1, got 2"):
        write_report({**result, "schema_version": 2}, tmp_path / "report.html")
    with pytest.raises(SchemaVersionError, match="of the benchmark must be 1, got 2"):
        write_report(typed(result), tmp_path / "report.html", benchmark={**benchmark, "schema_version": 2})
