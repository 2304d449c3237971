"""`daptq report`: turns the JSON of an evaluation into one self-contained page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from daptq.cli.console import json_option, reported_progress

if TYPE_CHECKING:
    from daptq.evaluation.result import EvaluationResult
    from daptq.report.videos import Videos

ANIMATED = 4


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", required=True, metavar="PAGE", type=click.Path(path_type=Path), help="HTML page to write.")
@click.option(
    "--benchmark", "benchmark_path", metavar="FILE", type=click.Path(path_type=Path), help="JSON of `daptq benchmark`."
)
@click.option(
    "--animate",
    metavar="N",
    type=int,
    help=f"Discordant episodes to replay, per comparison.  [default: {ANIMATED} where the policies are at hand]",
)
@json_option
def report(file: Path, output: Path, benchmark_path: Path | None, animate: int | None, json_path: Path | None) -> None:
    """Writes the evaluation in FILE, as `daptq evaluate --json FILE` made it, as an HTML page with its figures."""
    from daptq.artifacts import write_json
    from daptq.benchmarking.result import BenchmarkResult
    from daptq.evaluation.result import EvaluationResult
    from daptq.report.page import write_report

    result = EvaluationResult.read(file)
    benchmark = None if benchmark_path is None else BenchmarkResult.read(benchmark_path)
    written = write_report(result, output, benchmark=benchmark, videos=_videos(result, animate))
    click.echo(written)
    if json_path is not None:
        write_json(json_path, {"schema_version": 1, "report": str(written), "bytes": written.stat().st_size})


def _videos(result: EvaluationResult, animate: int | None) -> Videos:
    """Videos; without a number that was asked for, the page says why there are none."""
    from daptq.errors import DaptqError
    from daptq.report.videos import Videos, record_discordant

    try:
        with reported_progress() as progress:
            return record_discordant(result, count=ANIMATED if animate is None else animate, progress=progress)
    except DaptqError as error:
        if animate is not None:
            raise
        click.echo(f"no animations: {error}", err=True)
        return Videos(note=f"No animations: {error}")
