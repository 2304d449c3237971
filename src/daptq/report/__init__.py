"""Writes an evaluation as one self-contained HTML page: verdict first, figures inline, nothing loaded from elsewhere.

The page is made from the result's JSON, that of a benchmark where there is one, and animations that were made before.
It runs no script, and a browser that reads it is told to fetch nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from daptq.artifacts import write_bytes
from daptq.benchmarking import benchmark as benchmarks
from daptq.errors import ForeignArtifactError, SchemaVersionError
from daptq.evaluation.paired import SCHEMA_VERSION
from daptq.report.cost import cost_section
from daptq.report.drift import drift_section
from daptq.report.episodes import episodes_section
from daptq.report.figures import patterns, series_style
from daptq.report.films import Filming
from daptq.report.layers import bit_map_section, sensitivity_section
from daptq.report.markup import Json, Policies, count_of
from daptq.report.monitor import monitor_section
from daptq.report.motion import motion_section
from daptq.report.provenance import provenance_section
from daptq.report.robustness import robustness_section
from daptq.report.success import difference_section, success_section
from daptq.report.verdict import verdicts

__all__ = ["check_inputs", "write_report"]

_CONTENTS = {
    "success": "Success",
    "difference": "Difference",
    "episodes": "Discordant episodes",
    "drift": "Drift",
    "motion": "Motion",
    "robustness": "Robustness",
    "monitor": "Monitor",
    "bits": "Bits",
    "sensitivity": "Sensitivity",
    "cost": "Memory and latency",
    "provenance": "Provenance",
}


def write_report(
    result: Mapping[str, Any],
    path: Path | str,
    *,
    benchmark: Mapping[str, Any] | None = None,
    filming: Filming | None = None,
) -> Path:
    """Writes the page.

    Args:
        result: What `evaluate` returned, with what `measure_latency` returned under `latency` where it was measured.
        path: HTML file to write; an existing one is replaced.
        benchmark: What `daptq.benchmarking.benchmark.benchmark` returned for the same policies.
        filming: Animations of discordant episodes, from `daptq.report.films.film_discordant`.

    Returns:
        The path.

    Raises:
        ForeignArtifactError: `result` is no evaluation, or `benchmark` no benchmark.
        SchemaVersionError: One of them was written by a version with another format.
        OutputWriteError: The disk refused the write.
    """
    check_inputs(result, benchmark)
    files = resources.files("daptq.report")
    page = Template(files.joinpath("page.html").read_text(encoding="utf-8")).substitute(
        title=escape(_title(result)),
        style=files.joinpath("style.css").read_text(encoding="utf-8") + series_style(),
        body=_body(result, benchmark, filming or Filming()),
    )
    write_bytes(Path(path), page.encode())
    return Path(path)


def check_inputs(result: Any, benchmark: Any) -> None:
    """Refuses what no page can be made of; arguments and errors as in `write_report`."""
    _check("evaluation", result, ("policies", "comparisons"), SCHEMA_VERSION)
    if benchmark is not None:
        _check("benchmark", benchmark, ("policies", "float_path"), benchmarks.SCHEMA_VERSION)


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


def _body(result: Json, benchmark: Json | None, filming: Filming) -> str:
    policies = Policies.of(result)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title in _CONTENTS.items())
    sections = (
        success_section(result, policies),
        difference_section(result, policies),
        episodes_section(result, policies, filming),
        drift_section(result, policies),
        motion_section(result, policies),
        robustness_section(result, policies),
        monitor_section(result, policies),
        bit_map_section(result, policies),
        sensitivity_section(result, policies),
        cost_section(result, policies, benchmark),
        provenance_section(result, policies, benchmark),
    )
    return "\n".join(
        (
            patterns(),
            _head(result),
            f"<main>{verdicts(result, policies, benchmark)}",
            f'<nav aria-label="Contents"><ul>{links}</ul></nav>',
            *sections,
            "</main>",
        )
    )


def _head(result: Json) -> str:
    tasks = f"{count_of(len(result['tasks']), 'task')}, up to {result['horizon']} control steps each"
    return (
        f"<header><h1>{escape(_title(result))}</h1>"
        f"<p>{count_of(result['episodes'], 'paired episode')} over {tasks}, "
        f"seed {result['seed']}. Every policy starts from the same states and sees the same diffusion noise. Success "
        f"counts {escape(result['success_rule'])} unless said otherwise; intervals are 95 %.</p></header>"
    )
