"""Puts the page together: the verdicts first, then a section for each question, drawn by ``templates/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from daptq.artifacts import write_bytes
from daptq.benchmarking import benchmark as benchmarks
from daptq.errors import ForeignArtifactError, SchemaVersionError
from daptq.evaluation.paired import SCHEMA_VERSION
from daptq.report.discordant_episodes import discordant_section
from daptq.report.drift import drift_section
from daptq.report.elements import Section
from daptq.report.labels import PolicyLabels
from daptq.report.layer_bits import layer_bits_section
from daptq.report.layer_scores import layer_scores_section
from daptq.report.marks import patterns, series_style
from daptq.report.memory_and_time import memory_and_time_section
from daptq.report.monitor import monitor_section
from daptq.report.motion import motion_section
from daptq.report.provenance import provenance_section
from daptq.report.robustness import robustness_section
from daptq.report.success import difference_section, success_section
from daptq.report.verdict_cards import UnjudgedCard, VerdictCard, verdict_cards
from daptq.report.videos import Videos
from daptq.report.wording import Json, count_of


@dataclass(frozen=True, kw_only=True)
class Page:
    """What ``templates/page.html`` shows.

    Attributes:
        title: Title of the page.
        episodes: Number of paired episodes.
        tasks: Number of tasks.
        horizon: Most control steps of an episode.
        seed: Seed of the episodes.
        success_rule: When an episode counts as a success.
        series_style: CSS of the series.
        patterns: Patterns that bars are filled with.
        verdicts: A card per comparison.
        sections: The sections in their order.
    """

    title: str
    episodes: int
    tasks: int
    horizon: int
    seed: int
    success_rule: str
    series_style: Markup
    patterns: Markup
    verdicts: tuple[VerdictCard, ...] | tuple[UnjudgedCard, ...]
    sections: tuple[Section, ...]


def write_report(
    result: Mapping[str, Any],
    path: Path | str,
    *,
    benchmark: Mapping[str, Any] | None = None,
    videos: Videos | None = None,
) -> Path:
    """Writes the page.

    Args:
        result: What `evaluate` returned.
        path: HTML file to write; an existing one is replaced.
        benchmark: What `daptq.benchmarking.benchmark.benchmark` returned for the same policies.
        videos: Videos of discordant episodes, from `daptq.report.videos.record_discordant`.

    Returns:
        The path.

    Raises:
        ForeignArtifactError: `result` is no evaluation, or `benchmark` no benchmark.
        SchemaVersionError: One of them was written by a version with another format.
        OutputWriteError: The disk refused the write.
    """
    check_inputs(result, benchmark)
    labels = PolicyLabels.of([policy["name"] for policy in result["policies"]])
    page = Page(
        title=_title(result),
        episodes=result["episodes"],
        tasks=len(result["tasks"]),
        horizon=result["horizon"],
        seed=result["seed"],
        success_rule=result["success_rule"],
        series_style=series_style(),
        patterns=patterns(),
        verdicts=verdict_cards(result, labels, benchmark),
        sections=_sections(result, labels, benchmark, videos or Videos()),
    )
    write_bytes(Path(path), templates().get_template("page.html").render(page=page, labels=labels).encode())
    return Path(path)


def check_inputs(result: Any, benchmark: Any) -> None:
    """Refuses what no page can be made of; arguments and errors as in `write_report`."""
    _check("evaluation", result, ("policies", "comparisons"), SCHEMA_VERSION)
    if benchmark is not None:
        _check("benchmark", benchmark, ("policies", "float_path"), benchmarks.SCHEMA_VERSION)


def templates() -> Environment:
    """The templates: every text is escaped, and a name that does not exist is an error."""
    environment = Environment(
        loader=PackageLoader("daptq.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["count_of"] = count_of
    return environment


def _check(what: str, value: Any, keys: tuple[str, ...], version: int) -> None:
    if not isinstance(value, Mapping) or not {"schema_version", *keys} <= set(value):
        command = "evaluate" if what == "evaluation" else what
        article = "an" if what == "evaluation" else "a"
        message = f"JSON must be {article} {what}, got something else. Pass what daptq {command} wrote."
        raise ForeignArtifactError(message)
    if value["schema_version"] != version:
        found = value["schema_version"]
        message = f"schema_version of the {what} must be {version}, got {found!r}. Run it again with this version."
        raise SchemaVersionError(message)


def _title(result: Json) -> str:
    variant = f", variant {result['variant']}" if "variant" in result else ""
    return f"Closed-loop evaluation on {result['environment']}{variant}"


def _sections(result: Json, labels: PolicyLabels, benchmark: Json | None, videos: Videos) -> tuple[Section, ...]:
    return (
        success_section(result, labels),
        difference_section(result, labels),
        discordant_section(result, labels, videos),
        drift_section(result, labels),
        motion_section(result, labels),
        robustness_section(result, labels),
        monitor_section(result, labels),
        layer_bits_section(result, labels),
        layer_scores_section(result, labels),
        memory_and_time_section(result, labels, benchmark),
        provenance_section(result, labels, benchmark),
    )
