"""What `make demo` runs: quantizes a policy in two ways, drives the simulated arm with each, and prints one table.

    python scripts/demo.py [--policy reference] [--episodes 40] [--workers 2] [--output runs/demo]

Writes quantized/ (DA-PTQ W4A8), round-to-nearest/, evaluation.json, benchmark.json and report.html. Everything is made
beside the output folder and takes its place at the end, so a run that fails or is killed leaves the previous one as it
was.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console

import daptq
from daptq.artifacts import write_json
from daptq.benchmarking.benchmark import benchmark
from daptq.cli.console import reported_progress
from daptq.evaluation.request import Evaluation
from daptq.evaluation.run import run_evaluation
from daptq.report.table import result_table
from daptq.report.videos import record_discordant

DA_PTQ = "DA-PTQ W4A8"
ROUND_TO_NEAREST = "round-to-nearest W4A8"
ANIMATED = 3


def main(arguments: list[str] | None = None) -> None:
    """Runs the demo.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Quantize a policy in two ways and drive the simulated arm with each.")
    parser.add_argument("--policy", default="reference", help="policy to quantize: name or folder")
    parser.add_argument("--data", default="tabletop:train", help="calibration data, as source:split")
    parser.add_argument("--episodes", type=int, default=40, help="paired episodes over all tasks")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write")
    options = parser.parse_args(arguments)
    output: Path = options.output.resolve()
    work = output.with_name(f".{output.name}.work")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        _run(options, work)
        _replace(output, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    Console().print(f"{output}: quantized/, evaluation.json, benchmark.json, report.html", soft_wrap=True)


def _run(options: argparse.Namespace, work: Path) -> None:
    policy = daptq.load_policy(options.policy)
    recipes = {
        DA_PTQ: (daptq.recipes.da_ptq(), work / "quantized"),
        ROUND_TO_NEAREST: (daptq.recipes.round_to_nearest(), work / "round-to-nearest"),
    }
    with reported_progress() as progress:
        for recipe, folder in recipes.values():
            daptq.quantize(policy, recipe, data=options.data, output=folder, progress=progress)
    folders = {label: folder for label, (_, folder) in recipes.items()}
    with reported_progress() as progress:
        request = Evaluation(
            candidates=folders, against=options.policy, episodes=options.episodes, workers=options.workers
        )
        result = run_evaluation(request, progress)
        times = benchmark(folders, against=options.policy, paths=(), progress=progress)
    loaded = {options.policy: policy, **{label: daptq.load_policy(folder) for label, folder in folders.items()}}
    write_json(work / "evaluation.json", result.to_json())
    write_json(work / "benchmark.json", times.to_json())
    videos = record_discordant(result, count=ANIMATED, sources=loaded)
    daptq.write_report(result, work / "report.html", benchmark=times, videos=videos)
    Console().print(result_table(result))


def _replace(output: Path, work: Path) -> None:
    """Puts the finished folder in the place of the previous one, which is removed once the new one stands there."""
    previous = output.with_name(f".{output.name}.previous")
    shutil.rmtree(previous, ignore_errors=True)
    if output.exists():
        output.rename(previous)
    work.rename(output)
    shutil.rmtree(previous, ignore_errors=True)


if __name__ == "__main__":
    try:
        main()
    except daptq.DaptqError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
