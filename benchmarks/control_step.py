"""Times one control step of the packaged policy, quantized by each method, against every way to run it in float.

    python benchmarks/control_step.py --threads 2 --output benchmarks/results/<date>-control-step.json

The JSON is that of ``daptq benchmark``; a page beside it is written from it. Quantized policies are kept in ``--work``.
``--also`` adds DA-PTQ with fewer layers of the action head kept in bfloat16 than by its defaults, by name or ``all``.
``--device cuda`` measures on a GPU; policies are quantized on the CPU. Measure on a machine that does nothing else.
``make .venv/benchmark`` installs the float runtimes and the rivals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

import daptq
from daptq.artifacts import write_json
from daptq.benchmarking.benchmark import benchmark
from daptq.benchmarking.device import find_device
from daptq.cli.console import reported_progress

METHODS: Mapping[str, Callable[[], daptq.recipes.Recipe]] = {
    "round-to-nearest": daptq.recipes.round_to_nearest,
    "da-ptq": daptq.recipes.da_ptq,
    "da-ptq-plus": daptq.recipes.da_ptq_plus,
}
FEWER_KEPT: Mapping[str, Callable[[], daptq.recipes.Recipe]] = {
    "da-ptq-last-1": partial(daptq.recipes.da_ptq, keep_last_blocks=1),
    "da-ptq-fraction-0.1-last-1": partial(daptq.recipes.da_ptq, keep_fraction=0.1, keep_last_blocks=1),
    "da-ptq-fraction-0.1-last-0": partial(daptq.recipes.da_ptq, keep_fraction=0.1, keep_last_blocks=0),
}
EVERY = "all"


def page(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    origin = result["provenance"]
    baseline = result["policies"][-1]
    parts = list(baseline["stages_ms"])
    columns = ["policy", "p50 [ms]", "p95", "p99", *(f"{part.replace('_', ' ')} [ms]" for part in parts)]
    columns += ["weights [MiB]", "saved", "peak [MiB]", "/ float path", "/ eager"]
    measured = (
        f"`reference` by each method at its defaults, {origin['threads']} threads, n = {origin['repeats']} interleaved "
        f"repetitions, {result['device_name']}, {origin['time'][:10]}. `fraction-F-last-N` stands for DA-PTQ with F of "
        "the action head's layers, and its N last blocks, kept in bfloat16. Written by `benchmarks/control_step.py`."
    )
    lines = [
        "# One control step",
        "",
        measured,
        "",
        f"| {' | '.join(columns)} |",
        f"| --- |{' ---: |' * (len(columns) - 1)}",
    ]
    for policy in result["policies"]:
        times = policy["control_step_ms"]
        cells = [Path(policy["name"]).name, *(f"{times[key]:.1f}" for key in ("p50", "p95", "p99"))]
        cells += [f"{policy['stages_ms'][part]:.1f}" for part in parts]
        saved = 100 * (1 - policy["weight_bytes"] / baseline["weight_bytes"])
        cells += [f"{policy['weight_bytes'] / 2**20:.2f}", f"{saved:.0f} %", f"{policy['peak_bytes'] / 2**20:.2f}"]
        cells += [_interval(result[key][policy["name"]]) for key in ("ratio_to_float_path", "ratio_to_eager")]
        lines.append(f"| {' | '.join(cells)} |")
    ratios = (
        "Ratios are times divided within a repetition, median and 95 % interval; the float path is "
        f"`{result['float_path']['name']}`, the fastest of:"
    )
    lines += [
        "",
        ratios,
        "",
        "| candidate | p50 [ms] | p95 [ms] |",
        "| --- | ---: | ---: |",
    ]
    for path in result["float_paths"]:
        times = path["control_step_ms"]
        lines.append(f"| `{path['name']}` | {times['p50']:.1f} | {times['p95']:.1f} |")
    lines += ["", *(f"`{one['name']}` was left out: {one['reason']}" for one in result["skipped"])]
    return "\n".join(lines).rstrip() + "\n"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file; the page gets its name.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/control-step"), show_default=True)
@click.option("--also", multiple=True, type=click.Choice([*FEWER_KEPT, EVERY]), help="May be repeated.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--repeats", default=30, show_default=True, help="Measured repetitions, each runs everything once.")
@click.option("--threads", default=2, show_default=True, help="Threads of every runtime.")
@click.option("--seed", default=0, show_default=True, help="Seed of the observation, the order and the bootstrap.")
def main(output: Path, work: Path, also: tuple[str, ...], device: str, repeats: int, threads: int, seed: int) -> None:
    """Measures and writes the result."""
    find_device(device)  # Quantizing takes minutes: a device that is missing is said before.
    policy = daptq.load_policy("reference")
    asked = {name: recipe for name, recipe in FEWER_KEPT.items() if name in also or EVERY in also}
    recipes = {**METHODS, **asked}
    with reported_progress() as progress:
        for name, recipe in recipes.items():
            if not (work / name).exists():
                daptq.quantize(policy, recipe(), data="tabletop:train", output=work / name, progress=progress)
        folders = [str(work / name) for name in recipes]
        result = benchmark(
            folders,
            against="reference",
            device=device,
            repeats=repeats,
            threads=threads,
            seed=seed,
            progress=progress,
        )
    written = result.to_json()
    write_json(output, written)
    output.with_suffix(".md").write_text(page(written), encoding="utf-8")
    click.echo(page(written))


if __name__ == "__main__":
    main()
