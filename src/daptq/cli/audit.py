"""`daptq audit`: which operation and which precision each layer of a quantized policy really executed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from daptq.cli.console import json_option
from daptq.errors import CheckFailedError

if TYPE_CHECKING:
    from daptq.audit.audit import AuditReport


@click.command()
@click.argument("directory", metavar="DIR")
@click.option("--seed", metavar="S", type=int, default=0, help="Seed of the observation and of the diffusion noise.")
@json_option
def audit(directory: str, seed: int, json_path: Path | None) -> None:
    """Runs one control step of the quantized policy in DIR and compares what every linear layer did with its plan.

    Exits with 1 when anything differs.
    """
    from daptq.artifacts import provenance, write_json
    from daptq.audit.audit import audit_checkpoint

    report = audit_checkpoint(directory, seed=seed)
    _print(report)
    if json_path is not None:
        write_json(json_path, {**report.to_json(), "provenance": provenance(seed=seed)})
    if report.differences:
        layers = len({difference.layer for difference in report.differences})
        raise CheckFailedError(
            f"every layer must execute as planned, got {len(report.differences)} differences in {layers} of "
            f"{len(report.layers)} layers. See the list above."
        )


def _print(report: AuditReport) -> None:
    """Prints a report for people, one layer per line, and the differences below."""
    width = max((len(layer.name) for layer in report.layers), default=0)
    precise = max((len(_precision(layer.input_precision)) for layer in report.layers), default=0)
    titles = f"{'role':11}  {'plan':6}  {'input':{precise}}  {'calls':>5}  {'KiB read':>9}  {'KiB held':>9}  executed"
    click.echo(f"{'layer':{width}}  {titles}")
    for layer in report.layers:
        bits = "" if layer.planned_activation_bits is None else f"A{layer.planned_activation_bits}"
        plan = f"W{layer.planned_bits}{bits}"
        sizes = f"{layer.bytes_read_per_call / 1024:9.1f}  {layer.resident_bytes / 1024:9.1f}"
        done = f"{plan:6}  {_precision(layer.input_precision):{precise}}  {layer.calls:5}  {sizes}"
        click.echo(f"{layer.name:{width}}  {layer.role:11}  {done}  {', '.join(layer.operations) or '-'}")
    resident = sum(layer.resident_bytes for layer in report.layers) / 2**20
    click.echo(f"\n{len(report.layers)} layers, {resident:.2f} MiB resident, observation: {report.observation}")
    for name, ratio in report.slower_than_bfloat16.items():
        click.echo(f"{name}: takes {ratio:.2f} times as long as in bfloat16 on this machine")
    if not report.slower_than_bfloat16:
        click.echo("no layer was measured slower than in bfloat16 on this machine")
    for difference in report.differences:
        click.echo(f"{difference.layer}: {difference.kind}: {difference.reason}")
    if not report.differences:
        click.echo("every layer executed as planned")


def _precision(inputs: tuple[str, ...]) -> str:
    return ", ".join(inputs) or "-"
