"""SimplerEnv's WidowX tasks: full precision, round-to-nearest W4A8 and DA-PTQ W4A8 in every official initial state.

    python benchmarks/simpler.py --policy runs/simpler/policy [--noise-seeds 4] [--workers 1]

An episode is an initial state and a stream of diffusion noise; every state of every task meets `--noise-seeds` streams,
and all policies see the same ones. Needs the extra `simpler`. Writes results/<date>-simpler.json and .md beside this
file; quantized policies and finished episodes are kept under runs/simpler-drive, so that a killed run continues.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _page import add_results_argument, run_benchmark, write_table
from simpler_expert import stage_hashes

import daptq
from daptq.artifacts import provenance
from daptq.cli.console import reported_progress
from daptq.environments.simpler.tasks import TASKS
from daptq.evaluation.request import Evaluation
from daptq.evaluation.run import run_evaluation
from daptq.statistics.paired_proportions import mcnemar_exact, paired_difference_interval
from daptq.statistics.proportion import wilson_interval

LABELS = {"round-to-nearest": "round-to-nearest W4A8", "da-ptq": "DA-PTQ W4A8"}
DRIFT_STATES = 12  # of each task: a state is reached again by repeating the actions that led to it
RULES = ("at any step", "at the last step")


def rate(policy: Mapping[str, Any], rule: str) -> tuple[int, int]:
    """Successes and episodes of one policy by a rule."""
    counts = policy if rule == RULES[0] else policy["at_last_step"]
    return int(counts["successes"]), int(counts["n"])


def pairs(comparison: Mapping[str, Any], rule: str) -> tuple[int, int, int]:
    """Episodes that only the candidate solves, that only the baseline solves, and all."""
    counts = comparison["paired"] if rule == RULES[0] else comparison["paired"]["at_last_step"]
    return int(counts["only_candidate"]), int(counts["only_baseline"]), int(counts["n"])


def pooled(results: Sequence[Mapping[str, Any]], label: str, rule: str) -> dict[str, Any]:
    """Success of one policy over the episodes of several evaluations, and its difference from the baseline."""
    policies = [one for result in results for one in result["policies"] if one["name"] == label]
    successes, n = (sum(column) for column in zip(*(rate(one, rule) for one in policies), strict=True))
    low, high = wilson_interval(successes, n)
    entry: dict[str, Any] = {"successes": successes, "n": n, "low": low, "high": high}
    comparisons = [one for result in results for one in result["comparisons"] if one["policy"] == label]
    if comparisons:
        gained, lost, n = (sum(column) for column in zip(*(pairs(one, rule) for one in comparisons), strict=True))
        interval = paired_difference_interval(gained, lost, n)
        entry["difference"] = {
            "points": 100 * (gained - lost) / n,
            "low": 100 * interval.low,
            "high": 100 * interval.high,
            "only_candidate": gained,
            "only_baseline": lost,
            "mcnemar_p": mcnemar_exact(gained, lost),
        }
    return entry


def cell(entry: Mapping[str, Any]) -> str:
    """A rate, and the difference where there is one, as text."""
    text = f"{100 * entry['successes'] / entry['n']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"
    if "difference" not in entry:
        return text
    difference = entry["difference"]
    return f"{text}; {difference['points']:+.1f} [{difference['low']:+.1f}, {difference['high']:+.1f}]"


def table(summary: Mapping[str, Any], rule: str) -> str:
    """Markdown: a row per policy, a column per task and one for all."""
    columns = [*TASKS, "all"]
    sizes = [next(iter(summary[column][rule].values()))["n"] for column in columns]
    head = " | ".join(f"{column} (n = {n})" for column, n in zip(columns, sizes, strict=True))
    labels = summary["all"][rule]
    rows = [f"| {label} | " + " | ".join(cell(summary[c][rule][label]) for c in columns) + " |" for label in labels]
    return "\n".join([f"| policy | {head} |", "|---" + "|---:" * len(columns) + "|", *rows])


def page(result: Mapping[str, Any], stem: str) -> str:
    """The Markdown page."""
    origin = result["provenance"]
    tables = "\n\n".join(f"## Success {rule}\n\n{table(result['summary'], rule)}" for rule in RULES)
    return f"""# SimplerEnv, WidowX

Every official initial state with {result["noise_seeds"]} streams of diffusion noise, {origin["time"][:10]},
{origin["cpu"]}. Written by `benchmarks/simpler.py`; every number is in [{stem}.json]({stem}.json). Rates in % with
Wilson's interval, then the paired difference from full precision in points with Tango's; intervals are 95 %.

{tables}

{result["note"]}
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Success of quantized policies on SimplerEnv's WidowX tasks.")
    parser.add_argument("--policy", required=True, help="float policy that knows these tasks: name or folder")
    parser.add_argument("--data", default="simpler:train", help="calibration data, as source:split")
    parser.add_argument("--noise-seeds", type=int, default=4, help="streams of diffusion noise per initial state")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/simpler-drive"), help="folder for what a rerun continues"
    )
    add_results_argument(parser)
    parser.add_argument("--note", default="", help="sentence for the page, for example about policy and assets")
    options = parser.parse_args(arguments)
    policy = daptq.load_policy(options.policy)
    folders: dict[str, Path] = {}
    for name, recipe in {
        "round-to-nearest": daptq.recipes.round_to_nearest(),
        "da-ptq": daptq.recipes.da_ptq(),
    }.items():
        folders[LABELS[name]] = options.work / name
        with reported_progress() as progress:
            daptq.quantize(policy, recipe, data=options.data, output=folders[LABELS[name]], progress=progress)
    del policy
    results = {}
    for name, task in TASKS.items():
        with reported_progress() as progress:
            request = Evaluation(
                candidates=folders,
                against=options.policy,
                environment="simpler",
                tasks=[name],  # one at a time, since the tasks differ in their number of initial states
                episodes=task.initial_states * options.noise_seeds,
                drift_states=DRIFT_STATES,
                workers=options.workers,
                journal=options.work / f"{name}.jsonl",
            )
            results[name] = run_evaluation(request, progress).to_json()
    labels = [options.policy, *folders]
    groups = {**{name: [result] for name, result in results.items()}, "all": list(results.values())}
    described = provenance(seed=0)
    result = {
        "schema_version": 1,
        "noise_seeds": options.noise_seeds,
        "summary": {
            group: {rule: {label: pooled(members, label, rule) for label in labels} for rule in RULES}
            for group, members in groups.items()
        },
        "evaluations": results,
        "stages_sha256": stage_hashes(),
        "note": options.note,
        "provenance": described,
    }
    stem = f"{described['time'][:10]}-simpler"
    write_table(options.results, stem, result, page(result, stem))


if __name__ == "__main__":
    run_benchmark(main)
