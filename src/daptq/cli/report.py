"""`daptq report`: turns the JSON of an evaluation into one self-contained page."""

from __future__ import annotations

from pathlib import Path

import click

from daptq.cli._console import json_option


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--output", required=True, metavar="PAGE", type=click.Path(path_type=Path), help="HTML page to write.")
@json_option
def report(file: Path, output: Path, json_path: Path | None) -> None:
    """Writes the evaluation in FILE, as `daptq evaluate --json FILE` made it, as an HTML page with its figures."""
    from daptq.artifacts import read_json, write_json
    from daptq.evaluation.report import write_report

    written = write_report(read_json(file), output)
    click.echo(written)
    if json_path is not None:
        write_json(json_path, {"schema_version": 1, "report": str(written), "bytes": written.stat().st_size})
