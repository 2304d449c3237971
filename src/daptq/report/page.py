"""Puts the page together: the verdicts first, then a section for each question, drawn by ``templates/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from daptq.artifacts import write_bytes
from daptq.benchmarking.result import BenchmarkResult
from daptq.evaluation.result import EvaluationResult
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
from daptq.report.wording import count_of


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
    result: EvaluationResult | Mapping[str, Any],
    path: Path | str,
    *,
    benchmark: BenchmarkResult | Mapping[str, Any] | None = None,
    videos: Videos | None = None,
) -> Path:
    """Writes the page.

    Args:
        result: What `evaluate` returned, or the JSON of it.
        path: HTML file to write; an existing one is replaced.
        benchmark: What `daptq.benchmarking.benchmark.benchmark` returned for the same policies, or the JSON of it.
        videos: Videos of discordant episodes, from `daptq.report.videos.record_discordant`.

    Returns:
        The path.

    Raises:
        ForeignArtifactError: `result` is no evaluation, or `benchmark` no benchmark.
        SchemaVersionError: One of them was written by a version with another format.
        OutputWriteError: The disk refused the write.
    """
    if not isinstance(result, EvaluationResult):
        result = EvaluationResult.from_json(result)
    if benchmark is not None and not isinstance(benchmark, BenchmarkResult):
        benchmark = BenchmarkResult.from_json(benchmark)
    labels = PolicyLabels.of([policy.name for policy in result.policies])
    page = Page(
        title=_title(result),
        episodes=result.episodes,
        tasks=len(result.tasks),
        horizon=result.horizon,
        seed=result.seed,
        success_rule=result.success_rule,
        series_style=series_style(),
        patterns=patterns(),
        verdicts=verdict_cards(result, labels, benchmark),
        sections=_sections(result, labels, benchmark, videos or Videos()),
    )
    write_bytes(Path(path), templates().get_template("page.html").render(page=page, labels=labels).encode())
    return Path(path)


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


def _title(result: EvaluationResult) -> str:
    variant = "" if result.variant is None else f", variant {result.variant}"
    return f"Closed-loop evaluation on {result.environment}{variant}"


def _sections(
    result: EvaluationResult, labels: PolicyLabels, benchmark: BenchmarkResult | None, videos: Videos
) -> tuple[Section, ...]:
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
