"""The table of the first drive: full precision, round-to-nearest W4A8 and DA-PTQ W4A8 on the same 400 episodes.

    python benchmarks/first_drive.py [--episodes 400] [--workers 2]

Writes results/<date>-first-drive.json and .md beside this file. The quantized policies and the finished episodes are
kept under runs/first-drive, so that a killed run continues; remove that folder after the policy has changed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _page import (
    add_policy_arguments,
    add_results_argument,
    add_work_argument,
    add_worker_arguments,
    run_benchmark,
    write_table,
)
from markdown_tables import result_markdown, task_markdown

import daptq
from daptq.cli.console import reported_progress
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.run import run_evaluation

LABELS = {"round-to-nearest": "round-to-nearest W4A8", "da-ptq": "DA-PTQ W4A8"}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Success and drift of the quantized reference policy.")
    add_policy_arguments(parser)
    parser.add_argument("--episodes", type=int, default=400, help="paired episodes over all tasks")
    add_worker_arguments(parser, batch=False)
    add_work_argument(parser, "first-drive")
    add_results_argument(parser)
    options = parser.parse_args(arguments)
    policy = daptq.load_policy(options.policy)
    recipes = {"round-to-nearest": daptq.recipes.round_to_nearest(), "da-ptq": daptq.recipes.da_ptq()}
    folders: dict[str, Path] = {}
    for name, recipe in recipes.items():
        folders[LABELS[name]] = options.work / name
        with reported_progress() as progress:
            daptq.quantize(policy, recipe, data=options.data, output=folders[LABELS[name]], progress=progress)
    with reported_progress() as progress:
        request = Evaluation(
            candidates=folders,
            against=options.policy,
            episodes=options.episodes,
            workers=options.workers,
            journal=options.work / "episodes.jsonl",
        )
        result = run_evaluation(request, progress)
    stem = f"{result.provenance.time[:10]}-first-drive"
    write_table(options.results, stem, result.to_json(), page(result, stem))


def page(result: EvaluationResult, stem: str) -> str:
    """The Markdown page.

    Args:
        result: The evaluation.
        stem: Name of the JSON file without its ending.
    """
    provenance = result.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items() if version)
    states = result.comparisons[0].drift.identical_states
    return f"""# First drive

{result.episodes} paired episodes on `{result.environment}`, {provenance.time[:10]}, {provenance.cpu}
({provenance.cpu_count} CPUs). Written by `benchmarks/first_drive.py`; every number with its interval is in
[{stem}.json]({stem}.json).

{result_markdown(result)}

Success counts at any step. Every policy starts from the same states and sees the same diffusion noise. Drift from
identical states: {states.n} states of {states.episodes} full-precision episodes. Intervals are 95 %: Wilson (rates),
Tango (paired differences).

{pairs_text(result)}

## By task

{task_markdown(result)}

Seed {result.seed}. Python {provenance.python}, {versions}.
"""


def pairs_text(result: EvaluationResult) -> str:
    """One line per comparison: discordant episodes, test, and the difference by the other rule."""
    lines = []
    for comparison in result.comparisons:
        paired = comparison.paired
        if paired is None:
            continue
        last = paired.at_last_step
        lines.append(
            f"- {comparison.policy}: {paired.only_baseline} episodes lost, {paired.only_candidate} won, exact "
            f"McNemar p = {paired.mcnemar_p:.3g}; at the last step {last.difference:+.1f} points "
            f"[{last.low:+.1f}, {last.high:+.1f}]."
        )
    return "\n".join(lines)


if __name__ == "__main__":
    run_benchmark(main)
