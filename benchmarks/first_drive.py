"""The table of the first drive: full precision, round-to-nearest W4A8 and DA-PTQ W4A8 on the same 400 episodes.

    python benchmarks/first_drive.py [--episodes 400] [--workers 2]

Writes results/<date>-first-drive.json and .md beside this file. The quantized policies and the finished episodes are
kept under runs/first-drive, so that a killed run continues; remove that folder after the policy has changed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from markdown_tables import result_markdown, task_markdown

import daptq
from daptq.artifacts import write_bytes, write_json
from daptq.cli.console import reported_progress
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.run import run_evaluation

RESULTS = Path(__file__).resolve().parent / "results"
LABELS = {"round-to-nearest": "round-to-nearest W4A8", "da-ptq": "DA-PTQ W4A8"}


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Success and drift of the quantized reference policy.")
    parser.add_argument("--policy", default="reference", help="policy to quantize: name or folder")
    parser.add_argument("--data", default="tabletop:train", help="calibration data, as source:split")
    parser.add_argument("--episodes", type=int, default=400, help="paired episodes over all tasks")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--work", type=Path, default=Path("runs/first-drive"), help="folder for what a rerun continues")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the table")
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
    write_json(options.results / f"{stem}.json", result.to_json())
    write_bytes(options.results / f"{stem}.md", page(result, stem).encode())
    print(options.results / f"{stem}.md")


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
    try:
        main()
    except daptq.DaptqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
