"""What every choice of the method does to the drift, at four settings of bits: quantizes all arms and compares them.

    python benchmarks/ablation.py [--settings W4A8 ...] [--arms plus ...] [--states 200] [--episodes 0] [--workers 2]

Every arm continues from the same states, saved along full-precision episodes, with the same diffusion noise; with
``--episodes N`` every arm also drives N whole paired episodes. Writes results/<date>-ablation-<setting>.json and .md
beside this file. Quantized policies and finished episodes are kept under runs/ablation, so that a killed run continues.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ablation_arms import SETTINGS, arms, choices, match
from scipy.stats import wilcoxon

import daptq
from daptq.artifacts import read_json, write_bytes, write_json
from daptq.calibration._base import open_named_source
from daptq.cli._console import reported_progress
from daptq.cli._policy_folder import describe
from daptq.evaluation.drift import headline_drift
from daptq.evaluation.paired import evaluate_many
from daptq.policies._base import Policy
from daptq.recipes import Recipe

RESULTS = Path(__file__).resolve().parent / "results"
NEAREST, PAPER, PLUS = "nearest, whole", "DA-PTQ", "plus"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Drift of every arm of the ablation.")
    parser.add_argument("--policy", default="reference", help="policy to quantize: name or folder")
    parser.add_argument("--data", default="tabletop:train", help="calibration data, as source:split")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--choices", action="store_true", help="the arms are what the paper leaves open, one by one")
    parser.add_argument("--arms", nargs="+", help="names of the arms; all by default")
    parser.add_argument("--calibration-states", type=int, default=512)
    parser.add_argument("--states", type=int, default=200, help="states that every arm continues from")
    parser.add_argument("--episodes", type=int, default=0, help="paired episodes that every arm drives")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="folder for what a rerun continues")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables")
    options = parser.parse_args(arguments)
    policy = daptq.load_policy(options.policy)
    for setting in options.settings:
        folders = quantized(policy, setting, options)
        labels = {f"{setting}: {name}": folder for name, folder in folders.items()}
        with reported_progress() as progress:
            result = evaluate_many(
                labels,
                against=options.policy,
                episodes=options.episodes or options.states,
                drift_states=options.states,
                closed_loop=options.episodes > 0,
                workers=options.workers,
                progress=progress,
                journal=options.work / "episodes.jsonl",
            )
        summary = summarised(result, folders, setting)
        stem = f"{result['provenance']['time'][:10]}-{'choices' if options.choices else 'ablation'}-{setting}"
        write_json(options.results / f"{stem}.json", summary)
        write_bytes(options.results / f"{stem}.md", page(summary, stem).encode())
        print(options.results / f"{stem}.md")


def quantized(policy: Policy, setting: str, options: argparse.Namespace) -> dict[str, Path]:
    """Quantizes every arm of a setting; the folder of each by name."""
    recipes = (choices if options.choices else arms)(SETTINGS[setting])
    wanted = options.arms or [
        *recipes,
        *(["knapsack at DA-PTQ's bytes", "plus at DA-PTQ's bytes"] if PAPER in recipes and not options.choices else []),
    ]
    folders: dict[str, Path] = {}

    def run(name: str, recipe: Recipe) -> None:
        output = options.work / setting / name.replace(" ", "-").replace(",", "").replace("'", "")
        if not output.exists():
            start = time.monotonic()
            limited = daptq.recipes.Recipe.from_json(
                {**recipe.to_json(), "calibration_states": options.calibration_states}
            )
            data = (
                open_named_source(options.data, limit=options.calibration_states, seed=0) if recipe.needs_data else None
            )
            with reported_progress() as progress:
                daptq.quantize(policy, limited, data=data, output=output, progress=progress)
            write_json(output.with_suffix(".time.json"), {"seconds": time.monotonic() - start})
        folders[name] = output

    for name, recipe in recipes.items():
        if name in wanted:
            run(name, recipe)
    if PAPER in folders and not options.choices:
        layers = describe(str(folders[PAPER]))["layers"]
        scope = ("language", "action_head")
        mib = sum(layer["bytes"] for layer in layers if layer["role"] in scope) / 2**20
        for name, recipe in match(recipes[PAPER], recipes[PLUS], mib).items():
            if name in wanted:
                run(name, recipe)
    return folders


def summarised(result: Mapping[str, Any], folders: Mapping[str, Path], setting: str) -> dict[str, Any]:
    """Success, drift, bytes and time of every arm, with paired tests against the two references of the setting."""
    compared = {c["policy"].removeprefix(f"{setting}: "): c for c in result["comparisons"]}
    drifts = {name: c["drift"]["identical_states"] for name, c in compared.items()}
    values = {name: (headline_drift(drift) or {})["per_state_mm"] for name, drift in drifts.items()}
    rows = []
    for name, comparison in compared.items():
        described = describe(str(folders[name]))
        whole = comparison["drift"]["whole_episode"]
        rows.append(
            {
                "arm": name,
                "mean_bits": described["mean_bits"],
                "layer_bytes": sum(layer["bytes"] for layer in described["layers"]),
                "weight_bytes": described["weight_bytes"],
                "seconds": read_json(folders[name].with_suffix(".time.json"))["seconds"],
                "drift": [
                    {k: v for k, v in entry.items() if k != "per_state_mm"} for entry in drifts[name]["after_steps"]
                ],
                "per_state_mm": values[name],
                "paired_tests": {
                    other: p_value(values[name], values[other])
                    for other in (NEAREST, PAPER)
                    if other in values and other != name
                },
                "paired": comparison["paired"],
                "whole_episode": None if whole is None else {k: v for k, v in whole.items() if k != "per_episode"},
            }
        )
    states = next(iter(drifts.values()))
    kept = {key: result[key] for key in ("schema_version", "environment", "tasks", "episodes", "seed", "provenance")}
    policies = [{k: p[k] for k in p if k not in ("layers", "weights")} for p in result["policies"]]
    counts = {"states": states["n"], "state_episodes": states["episodes"]}
    return {**kept, **counts, "setting": setting, "policies": policies, "arms": rows}


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
        success = "-" if pair is None else f"{pair['difference']:+.1f} [{pair['low']:+.1f}, {pair['high']:+.1f}]"
        lines.append(
            f"| {row['arm']} | {row['mean_bits']:.2f} | {row['layer_bytes'] / 2**20:.2f} | "
            + " | ".join(cells)
            + " | "
            + " | ".join("-" if p is None else f"{p:.1g}" for p in tests)
            + f" | {success} | {row['seconds']:.0f} |"
        )
    table = "\n".join(lines)
    columns = ["arm", "mean bits", "linear layers [MiB]", "drift after 1 step [mm]", "after 4", "after 16"]
    columns += [f"p to {NEAREST}", f"p to {PAPER}", "success difference [points]", "quantized in [s]"]
    header = f"| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}"
    return f"""# Ablation, {summary["setting"]}

{summary["states"]} states of {summary["state_episodes"]} full-precision episodes on `{summary["environment"]}`,
{provenance["time"][:10]}, {provenance["cpu"]} ({provenance["cpu_count"]} CPUs). Written by `benchmarks/ablation.py`;
all numbers with intervals, and the drift from every state, are in [{stem}.json]({stem}.json).

{header}
{table}

Drift: median deviation of the end-effector from the full-precision policy that continues from the same state with
the same noise, 95 % bootstrap interval. p: two-sided Wilcoxon signed-rank test on the drift after 16 steps, paired by
state. Mean bits include scales. *Whole* arms and those of *plus* quantize every linear layer; the others leave vision
and connector in bfloat16.
"""


if __name__ == "__main__":
    try:
        main()
    except daptq.DaptqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
