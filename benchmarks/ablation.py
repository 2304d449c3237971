"""What every choice of the method does to the drift, at four settings of bits: quantizes all arms and compares them.

    python benchmarks/ablation.py [--settings W4A8 ...] [--arms plus ...] [--states 200] [--episodes 0] [--workers 2]

Every arm continues from the same states, saved along full-precision episodes, with the same diffusion noise; with
``--episodes N`` every arm also drives N whole paired episodes. Writes results/<date>-ablation-<setting>.json and .md
beside this file. Quantized policies and finished episodes are kept under runs/ablation, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
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
from ablation_arms import MATCHED, SETTINGS, arms, choices, match
from scipy.stats import wilcoxon

import daptq
from daptq.artifacts import hash_tensors, read_artifact, write_json
from daptq.calibration.contract import open_named_source
from daptq.cli.console import reported_progress
from daptq.evaluation.comparison import Comparison
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.run import run_evaluation
from daptq.json_model import read_json
from daptq.packing.description import PolicyDescription
from daptq.policies.contract import Policy
from daptq.recipes import Recipe

NEAREST, PAPER, PLUS = "nearest, whole", "DA-PTQ", "plus"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Drift of every arm of the ablation.")
    add_policy_arguments(parser)
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--choices", action="store_true", help="the arms are what the paper leaves open, one by one")
    parser.add_argument("--arms", nargs="+", help="names of the arms; all by default")
    parser.add_argument("--calibration-states", type=int, default=512)
    parser.add_argument("--states", type=int, default=200, help="states that every arm continues from")
    parser.add_argument("--episodes", type=int, default=0, help="paired episodes that every arm drives")
    add_worker_arguments(parser)
    parser.add_argument(
        "--extend", type=Path, help="earlier table (JSON) of the setting: its other arms stay in the new one"
    )
    add_work_argument(parser, "ablation")
    add_results_argument(parser)
    options = parser.parse_args(arguments)
    if options.extend and len(options.settings) != 1:
        parser.error("--extend continues one table: name one setting")
    policy = daptq.load_policy(options.policy)
    for setting in options.settings:
        earlier = read_json(options.extend) if options.extend else {"arms": []}
        folders = quantized(policy, setting, options)
        measured = {row["arm"]: options.work / setting / folder_name(row["arm"]) for row in earlier["arms"]}
        known = {name: folder for name, folder in measured.items() if name not in folders and folder.exists()}
        twins = same_weights({**known, **folders})
        labels = {f"{setting}: {name}": folders[name] for name in folders if twins[name] == name}
        with reported_progress() as progress:
            request = Evaluation(
                candidates=labels,
                against=options.policy,
                episodes=options.episodes or options.states,
                drift_states=options.states,
                closed_loop=options.episodes > 0,
                workers=options.workers,
                batch=options.batch,
                journal=options.work / "episodes.jsonl",
            )
            result = run_evaluation(request, progress)
        summary = summarised(result, folders, twins, setting, earlier)
        stem = f"{result.provenance.time[:10]}-{'choices' if options.choices else 'ablation'}-{setting}"
        write_table(options.results, stem, summary, page(summary, stem))


def quantized(policy: Policy, setting: str, options: argparse.Namespace) -> dict[str, Path]:
    """Quantizes every arm of a setting; the folder of each by name."""
    recipes = (choices if options.choices else arms)(SETTINGS[setting])
    wanted = options.arms or [
        *recipes,
        *(MATCHED if PAPER in recipes and not options.choices else ()),
    ]
    folders: dict[str, Path] = {}

    def run(name: str, recipe: Recipe) -> Path:
        output: Path = options.work / setting / folder_name(name)
        if not output.exists():
            start = time.monotonic()
            limited = daptq.recipes.Recipe.from_json(
                {**recipe.to_json(), "calibration_states": options.calibration_states}
            )
            data = (
                open_named_source(options.data, limit=options.calibration_states, seed=0) if recipe.needs.data else None
            )
            with reported_progress() as progress:
                daptq.quantize(policy, limited, data=data, output=output, progress=progress)
            write_json(output.with_suffix(".time.json"), {"seconds": time.monotonic() - start})
        return output

    for name, recipe in recipes.items():
        if name in wanted:
            folders[name] = run(name, recipe)
    if any(name in wanted for name in MATCHED):
        layers = PolicyDescription.of(run(PAPER, recipes[PAPER])).layers
        scope = ("language", "action_head")
        mib = sum(layer.bytes for layer in layers if layer.role in scope) / 2**20
        for name, recipe in match(recipes[PAPER], recipes[PLUS], mib).items():
            if name in wanted:
                folders[name] = run(name, recipe)
    return folders


def folder_name(arm: str) -> str:
    """Name of the folder that holds an arm's checkpoint."""
    return arm.replace(" ", "-").replace(",", "").replace("'", "")


def same_weights(folders: Mapping[str, Path]) -> dict[str, str]:
    """For each arm the first one with the same integers, scales and kept weights: it drives in the same way."""
    first: dict[str, str] = {}
    hashes = {
        name: hash_tensors(dict(read_artifact(folder, kind="quantized-policy").tensors()))
        for name, folder in folders.items()
    }
    return {name: first.setdefault(digest, name) for name, digest in hashes.items()}


def summarised(
    result: EvaluationResult,
    folders: Mapping[str, Path],
    twins: Mapping[str, str],
    setting: str,
    earlier: Mapping[str, Any],
) -> dict[str, Any]:
    """Success, drift, bytes and time of every arm, with paired tests against the two references of the setting.

    Arms of an earlier table continued from the same states with the same noise, so they pair with the new ones.
    """
    compared = {c.policy.removeprefix(f"{setting}: "): c for c in result.comparisons}
    before = {"measured": earlier.get("provenance", {}).get("time", "")[:10], "batch": 1}
    rows = {row["arm"]: {**before, **row} for row in earlier["arms"] if row["arm"] not in folders}
    for name, folder in folders.items():
        twin = twins[name]
        row = measured_row(compared[twin], result) if twin in compared else rows[twin]
        described = PolicyDescription.of(folder)
        rows[name] = {
            **row,
            "arm": name,
            "same_weights_as": None if twin == name else twin,
            "mean_bits": described.mean_bits,
            "layer_bytes": sum(layer.bytes for layer in described.layers),
            "weight_bytes": described.weight_bytes,
            "seconds": read_json(folder.with_suffix(".time.json"))["seconds"],
        }
    for name, row in rows.items():
        row["paired_tests"] = {
            other: p_value(row["per_state_mm"], rows[other]["per_state_mm"])
            for other in (NEAREST, PAPER)
            if other in rows and other != name
        }
    states = next(iter(compared.values())).drift.identical_states
    same = ("schema_version", "environment", "tasks", "episodes", "seed", "provenance")
    written = result.to_json()
    policies = [{k: p[k] for k in p if k not in ("layers", "weights")} for p in written["policies"]]
    named = {one["name"] for one in policies}
    policies += [one for one in earlier.get("policies", ()) if one["name"] not in named]
    return {
        **{key: written[key] for key in same},
        "states": states.n,
        "state_episodes": states.episodes,
        "setting": setting,
        "policies": policies,
        "arms": list(rows.values()),
    }


def measured_row(comparison: Comparison, result: EvaluationResult) -> dict[str, Any]:
    """What one arm did."""
    branches, whole = comparison.drift.identical_states, comparison.drift.whole_episode
    assert branches.headline is not None  # states are always asked for
    return {
        "measured": result.provenance.time[:10],
        "batch": result.batch,
        "drift": [entry.model_dump(mode="json", exclude={"per_state_mm"}) for entry in branches.after_steps],
        "per_state_mm": list(branches.headline.per_state_mm),
        "paired": None if comparison.paired is None else comparison.paired.to_json(),
        "whole_episode": None if whole is None else whole.model_dump(mode="json", exclude={"per_episode"}),
    }


def p_value(values: Sequence[float], others: Sequence[float]) -> float:
    """Of the paired signed-rank test that the drifts of two arms differ; 1 when they are the same in every state."""
    return 1.0 if list(values) == list(others) else float(wilcoxon(values, others).pvalue)


def page(summary: Mapping[str, Any], stem: str) -> str:
    """The Markdown page."""
    provenance = summary["provenance"]
    lines = []
    for row in summary["arms"]:
        after = {entry["steps"]: entry["position_mm"]["median"] for entry in row["drift"]}
        cells = [f"{after[k]['value']:.2f} [{after[k]['low']:.2f}, {after[k]['high']:.2f}]" for k in (1, 4, 16)]
        tests = [row["paired_tests"].get(other) for other in (NEAREST, PAPER)]
        pair = row["paired"]
        mcnemar = "-" if pair is None else f"{pair['mcnemar_p']:.1g}"
        whole = row["whole_episode"]
        over_episode = "-" if whole is None else f"{whole['position_mm']['rms']['value']:.1f}"
        twin = f" (the weights of {row['same_weights_as']})" if row.get("same_weights_as") else ""
        success = "-" if pair is None else f"{pair['difference']:+.1f} [{pair['low']:+.1f}, {pair['high']:+.1f}]"
        lines.append(
            f"| {row['arm']}{twin} | {row['mean_bits']:.2f} | {row['layer_bytes'] / 2**20:.2f} | "
            + " | ".join(cells)
            + " | "
            + " | ".join("-" if p is None else f"{p:.1g}" for p in tests)
            + f" | {success} | {mcnemar} | {over_episode} | {row['seconds']:.0f} |"
        )
    table = "\n".join(lines)
    columns = ["arm", "mean bits", "linear layers [MiB]", "drift after 1 step [mm]", "after 4", "after 16"]
    columns += [f"p to {NEAREST}", f"p to {PAPER}", "success difference [points]", "McNemar p"]
    columns += ["RMS over the episode [mm]", "quantized in [s]"]
    header = f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}"
    ran = sorted({(row["measured"], row["batch"]) for row in summary["arms"]})
    when = "; ".join(f"{day}, {batch} at a time" for day, batch in ran)
    return f"""# Ablation, {summary["setting"]}

{summary["states"]} states of {summary["state_episodes"]} full-precision episodes on `{summary["environment"]}`,
{provenance["time"][:10]}, {provenance["cpu"]} ({provenance["cpu_count"]} CPUs). Written by `benchmarks/ablation.py`;
all numbers with intervals, and the drift from every state, are in [{stem}.json]({stem}.json).

{header}
{table}

Drift: median deviation of the end-effector from the full-precision policy that continues from the same state with
the same noise, 95 % bootstrap interval. p: two-sided Wilcoxon signed-rank test on the drift after 16 steps, paired by
state. Arms with the same weights were run once. Episodes ran side by side: {when}. Mean bits include scales. *Whole*
arms and those of *plus* quantize every linear layer; the others leave vision and connector in bfloat16.
"""


if __name__ == "__main__":
    run_benchmark(main)
