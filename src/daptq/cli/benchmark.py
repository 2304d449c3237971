"""`daptq benchmark`: latency and memory of policies against the best way to run one of them in floating point."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daptq.cli.console import reported_progress

if TYPE_CHECKING:
    from rich.table import Table


@click.command()
@click.option("--policy", "policies", metavar="POLICY", multiple=True, required=True, help="May be repeated.")
@click.option("--against", metavar="POLICY", required=True, help="Float policy that the float path is built from.")
@click.option(
    "--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="What everything runs on."
)
@click.option("--repeats", metavar="N", type=int, default=30, help="Measured repetitions, each runs everything once.")
@click.option("--threads", metavar="N", type=int, help="Threads of every runtime.  [default: torch's]")
@click.option("--float-path", "paths", metavar="NAME", multiple=True, help="May be repeated.  [default: all]")
@click.option("--seed", metavar="S", type=int, default=0, help="Seed of the observation, the noise and the order.")
@click.option(
    "--json",
    "--output",
    "json_path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the result to this file as JSON.",
)
def benchmark(
    policies: tuple[str, ...],
    against: str,
    device: str,
    repeats: int,
    threads: int | None,
    paths: tuple[str, ...],
    seed: int,
    json_path: Path | None,
) -> None:
    """Times one control step of each POLICY and of floating-point runtimes, taking turns, and measures memory.

    Runtimes that are not installed are left out with a reason; pip install "daptq[benchmark]" installs them.
    """
    from rich.console import Console

    from daptq.artifacts import write_json
    from daptq.benchmarking.benchmark import benchmark as run

    with reported_progress() as progress:
        result = run(
            policies,
            against=against,
            device=device,
            repeats=repeats,
            threads=threads,
            paths=paths or None,
            seed=seed,
            progress=progress,
        )
    console = Console()
    console.print(_policies(result))
    console.print(_paths(result))
    for skipped in result["skipped"]:
        click.echo(f"{skipped['name']}: left out: {skipped['reason']}")
    if json_path is not None:
        write_json(json_path, result)


def _policies(result: Mapping[str, Any]) -> Table:
    """Policies as columns: a terminal is narrow."""
    from rich.table import Table
    from rich.text import Text

    listed = result["policies"]
    repeats = listed[0]["control_step_ms"]["n"]
    origin = result["provenance"]
    table = Table(
        title=f"one control step, n = {repeats}, {origin['threads']} threads, {result['device_name']}",
        caption=f"ratios of times within a repetition, bootstrap 95 %; float path: {result['float_path']['name']}",
    )
    table.add_column("")
    for policy in listed:
        table.add_column(Text(policy["name"]), justify="right")
    for key in ("p50", "p95", "p99"):
        table.add_row(f"{key} ms", *(f"{policy['control_step_ms'][key]:.2f}" for policy in listed))
    for stage in listed[0]["stages_ms"]:
        table.add_row(f"{stage} ms", *(f"{policy['stages_ms'][stage]:.2f}" for policy in listed))
    for key, title in (("weight_bytes", "weights MiB"), ("peak_bytes", "peak MiB")):
        table.add_row(title, *(f"{policy[key] / 2**20:.2f}" for policy in listed))
    for key, title in (("ratio_to_float_path", "/ float path"), ("ratio_to_eager", "/ eager")):
        table.add_row(title, *(Text(_interval(result[key][policy["name"]])) for policy in listed))
    return table


def _paths(result: Mapping[str, Any]) -> Table:
    """Candidates as rows."""
    from rich.table import Table

    table = Table("candidate", "kind", "p50 ms", "p95 ms", "max |difference|", title="floating point and 4-bit rivals")
    for path in result["float_paths"]:
        times = path["control_step_ms"]
        numbers = (f"{times['p50']:.2f}", f"{times['p95']:.2f}", f"{path['max_abs_difference']:.1e}")
        table.add_row(path["name"], path["kind"], *numbers)
    return table


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
