"""`daptq benchmark`: latency and memory of policies against the best way to run one of them in floating point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from daptq.cli.console import reported_progress

if TYPE_CHECKING:
    from rich.table import Table

    from daptq.benchmarking.result import BenchmarkResult
    from daptq.statistics.estimate import Estimate


@click.command()
@click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
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
    for skipped in result.skipped:
        click.echo(f"{skipped.name}: left out: {skipped.reason}")
    if json_path is not None:
        write_json(json_path, result.to_json())


def _policies(result: BenchmarkResult) -> Table:
    """Policies as columns: a terminal is narrow."""
    from rich.table import Table
    from rich.text import Text

    listed, origin = result.policies, result.provenance
    repeats = listed[0].control_step_ms.n
    table = Table(
        title=f"one control step, n = {repeats}, {origin.threads} threads, {result.device_name}",
        caption=f"ratios of times within a repetition, bootstrap 95 %; float path: {result.float_path.name}",
    )
    table.add_column("")
    for policy in listed:
        table.add_column(Text(policy.name), justify="right")
    for key in ("p50", "p95", "p99"):
        table.add_row(f"{key} ms", *(f"{getattr(policy.control_step_ms, key):.2f}" for policy in listed))
    for part in listed[0].stages_ms:
        table.add_row(f"{part} ms", *(f"{policy.stages_ms[part]:.2f}" for policy in listed))
    for key, title in (("weight_bytes", "weights MiB"), ("peak_bytes", "peak MiB")):
        table.add_row(title, *(f"{getattr(policy, key) / 2**20:.2f}" for policy in listed))
    for ratios, title in ((result.ratio_to_float_path, "/ float path"), (result.ratio_to_eager, "/ eager")):
        table.add_row(title, *(Text(_interval(ratios[policy.name])) for policy in listed))
    return table


def _paths(result: BenchmarkResult) -> Table:
    """Candidates as rows."""
    from rich.table import Table

    table = Table("candidate", "kind", "p50 ms", "p95 ms", "max |difference|", title="floating point and 4-bit rivals")
    for path in result.float_paths:
        times = path.control_step_ms
        table.add_row(path.name, path.kind, f"{times.p50:.2f}", f"{times.p95:.2f}", f"{path.max_abs_difference:.1e}")
    return table


def _interval(ratio: Estimate) -> str:
    return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
