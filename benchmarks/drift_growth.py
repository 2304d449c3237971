"""Draws how the drift grows over the steps after a common state, from the journal of an ablation.

    python benchmarks/drift_growth.py [--journal runs/ablation/episodes.jsonl] [--setting W4A8] [--arms plus ...]

Writes docs/images/drift-growth.svg, and the numbers as results/<date>-drift-growth.json beside this file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _page import run_benchmark
from matplotlib.figure import Figure

import daptq
from daptq.artifacts import write_bytes, write_json
from daptq.closed_loop.rollout import BranchRecord
from daptq.errors import InvalidInputError
from daptq.metrics.drift import branch_drift

ROOT = Path(__file__).resolve().parents[1]
BASELINE = "reference"
STYLES = (("#0072b2", "o", "-"), ("#d55e00", "s", "--"), ("#009e73", "^", ":"), ("#cc79a7", "D", "-."))
NEUTRAL = "#808080"  # legible on a white page and on a dark one


def main(arguments: list[str] | None = None) -> None:
    """Runs the script.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Growth of the drift after a common state.")
    parser.add_argument("--journal", type=Path, default=Path("runs/ablation/episodes.jsonl"))
    parser.add_argument("--setting", default="W4A8", help="setting of the ablation")
    parser.add_argument("--arms", nargs="+", default=["nearest, whole", "DA-PTQ", "plus"], help="at most four")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/images/drift-growth.svg")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results")
    options = parser.parse_args(arguments)
    if len(options.arms) > len(STYLES):
        raise InvalidInputError(f"arms must be at most {len(STYLES)}, got {len(options.arms)}. Choose fewer.")
    curves = growth(options.journal, [f"{options.setting}: {arm}" for arm in options.arms])
    now = datetime.now(timezone.utc)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        options.results / f"{now:%Y-%m-%d}-drift-growth.json",
        {"schema_version": 1, "time": now.isoformat(timespec="seconds"), "daptq": daptq.__version__, "curves": curves},
    )
    write_bytes(options.figure, figure(curves))
    print(options.figure)


def growth(journal: Path, labels: Sequence[str]) -> dict[str, Any]:
    """Median drift of the end-effector after every step, by label.

    Args:
        journal: Journal of an evaluation that has branches.
        labels: Labels of policies in it.

    Returns:
        Per label `n`, `steps` and, in mm with 95 % bootstrap intervals, `median`, `low` and `high` per step.

    Raises:
        InvalidInputError: A policy has no branch from a state that the full-precision policy continued from, too.
    """
    records: dict[str, dict[tuple[int, int], BranchRecord]] = {}
    with journal.open() as lines:
        for line in lines:
            value = json.loads(line)
            if "branch" in value:
                record = BranchRecord.from_json(value["branch"])
                records.setdefault(record.policy, {})[record.index, record.step] = record
    baseline = records.get(BASELINE, {})
    curves: dict[str, Any] = {}
    for label in labels:
        keys = sorted(baseline.keys() & records.get(label, {}).keys())
        if not keys:
            raise InvalidInputError(
                f"{journal} must hold branches of {label!r} and {BASELINE!r} from the same states, got none. "
                "Run the ablation first."
            )
        steps = list(range(1, len(baseline[keys[0]].motion.positions) + 1))
        drift = branch_drift(
            [baseline[key] for key in keys], [records[label][key] for key in keys], horizons=steps, seed=0
        )
        medians = [entry.position_mm.median for entry in drift.after_steps]
        curves[label] = {"n": drift.n, "steps": steps} | {
            name: [getattr(median, key) for median in medians]
            for name, key in (("median", "value"), ("low", "low"), ("high", "high"))
        }
    return curves


def figure(curves: Mapping[str, Any]) -> bytes:
    """The curves as an SVG image; mark, dashes and the name at the right end tell them apart, not colour alone."""
    drawing = Figure(figsize=(7.2, 4.2))
    axes = drawing.subplots()
    for (label, curve), (colour, mark, dashes) in zip(curves.items(), STYLES, strict=False):
        axes.plot(curve["steps"], curve["median"], color=colour, marker=mark, linestyle=dashes)
        axes.fill_between(curve["steps"], curve["low"], curve["high"], color=colour, alpha=0.25, linewidth=0)
        axes.annotate(
            label.split(": ")[-1],
            (curve["steps"][-1], curve["median"][-1]),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=colour,
        )
    axes.set_yscale("log")
    axes.set_xlabel("control steps after the common state", color=NEUTRAL)
    axes.set_ylabel("median drift of the end-effector [mm]", color=NEUTRAL)
    axes.tick_params(colors=NEUTRAL, which="both")
    axes.grid(visible=True, color=NEUTRAL, alpha=0.3)
    for side, spine in axes.spines.items():
        spine.set_color(NEUTRAL)
        spine.set_visible(side in {"left", "bottom"})
    drawing.tight_layout()
    buffer = BytesIO()
    # Fixed ids and no date: the same numbers give the same bytes.
    with mpl.rc_context({"svg.hashsalt": "daptq"}):
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    run_benchmark(main)
