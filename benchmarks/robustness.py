"""Full precision, round-to-nearest, DA-PTQ and da-ptq-plus beyond the nominal scene: success and robustness gap.

    python benchmarks/robustness.py [--variants camera-pose-1 ...] [--episodes 40] [--workers 2] [--batch 8]

Every policy drives the same episodes in the nominal scene and on every variant; the baseline is run once per condition.
Writes results/<date>-robustness.json and .md beside this file. The quantized policies and the finished episodes are
kept under runs/robustness, so that a killed run continues; remove that folder after the policy has changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _page import (
    add_policy_arguments,
    add_results_argument,
    add_work_argument,
    add_worker_arguments,
    run_benchmark,
    write_table,
)
from markdown_tables import variant_markdown

import daptq
from daptq.cli.console import reported_progress
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.run import run_evaluation
from daptq.report.table import gap_text


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Success of quantized policies on variants of the scene.")
    add_policy_arguments(parser)
    parser.add_argument("--variants", nargs="+", default=["all"], help="variants to run beside the nominal scene")
    parser.add_argument("--episodes", type=int, default=40, help="episodes per policy and condition")
    add_worker_arguments(parser)
    add_work_argument(parser, "robustness")
    add_results_argument(parser)
    options = parser.parse_args(arguments)
    with reported_progress() as progress:
        request = Evaluation(
            candidates=quantized(options.policy, options.data, options.work),
            variants=options.variants,
            against=options.policy,
            episodes=options.episodes,
            workers=options.workers,
            batch=options.batch,
            drift_states=0,
            journal=options.work / f"episodes-{options.episodes}",
        )
        result = run_evaluation(request, progress)
    stem = f"{result.provenance.time[:10]}-robustness"
    write_table(options.results, stem, shortened(result.to_json()), page(result, stem))


def quantized(name: str, data: str, work: Path) -> dict[str, Path]:
    """Quantizes the policy in three ways, as far as that was not done; the folder of each by label."""
    recipes = daptq.recipes
    made = {
        "round-to-nearest": recipes.round_to_nearest(),
        "DA-PTQ": recipes.da_ptq(),
        "da-ptq-plus": recipes.da_ptq_plus(),
    }
    policy = daptq.load_policy(name)
    folders = {}
    for label, recipe in made.items():
        folders[label] = work / label.lower()
        if not folders[label].exists():
            with reported_progress() as progress:
                daptq.quantize(policy, recipe, data=data, output=folders[label], progress=progress)
    return folders


def shortened(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result without what it says of single layers and single episodes' drift."""

    def comparison(entry: Mapping[str, Any]) -> dict[str, Any]:
        return {key: entry[key] for key in ("policy", "against", "paired")}

    policies = [{key: value for key, value in one.items() if key != "layers"} for one in result["policies"]]
    variants = [
        {**entry, "comparisons": [comparison(one) for one in entry["comparisons"]]} for entry in result["variants"]
    ]
    nominal = [comparison(one) for one in result["comparisons"]]
    kept = {key: value for key, value in result.items() if key not in ("paired", "drift")}
    return {**kept, "policies": policies, "comparisons": nominal, "variants": variants}


def page(result: EvaluationResult, stem: str) -> str:
    """The Markdown page.

    Args:
        result: The evaluation with its variants.
        stem: Name of the JSON file without its ending.
    """
    provenance, entries = result.provenance, result.variants or ()
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items() if version)
    gaps = "\n".join(f"- {gap.policy}: {gap_text(gap)} points" for gap in result.robustness_gap or ())
    variants = "\n".join(f"| {entry.variant} | {entry.description} |" for entry in entries)
    return f"""# Beyond the nominal scene

{result.episodes} paired episodes per policy and condition on `{result.environment}`, nominal and {len(entries)}
variants, {provenance.time[:10]}, {provenance.cpu} ({provenance.cpu_count} CPUs). Written by
`benchmarks/robustness.py`; what is not in the table is in [{stem}.json]({stem}.json).

Robustness gap, all variants together (success of the quantized policy minus full precision on variants, minus that
difference in the nominal scene; 95 %, an episode's variants are a cluster; below 0, quantization costs more there):

{gaps}

{variant_markdown(result)}

Success at any step, with Wilson intervals; the gap on one variant with intervals from Tango's limits. All conditions
share initial states and diffusion noise, seed {result.seed}.

| variant | what is changed |
| --- | --- |
{variants}

Python {provenance.python}, {versions}.
"""


if __name__ == "__main__":
    run_benchmark(main)
