"""`daptq inspect`: what is in a policy folder."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from daptq.cli.console import json_option

if TYPE_CHECKING:
    from daptq.packing.description import PolicyDescription


@click.command()
@click.argument("directory", metavar="DIR")
@json_option
def inspect(directory: str, json_path: Path | None) -> None:
    """Prints layers, bit-widths, sizes, folds and provenance of DIR, after verifying every byte of it."""
    from daptq.artifacts import write_json
    from daptq.packing.description import PolicyDescription

    described = PolicyDescription.of(directory)
    _print(described)
    if json_path is not None:
        write_json(json_path, described.to_json())


def _print(described: PolicyDescription) -> None:
    """Prints a description for people, one layer per line."""
    click.echo(
        f"{described.kind} {described.name!r} of family {described.family!r}: "
        f"{described.weight_bytes / 2**20:.2f} MiB in shards, every checksum correct"
    )
    layers = described.layers
    if layers:
        counts = sorted(Counter(layer.num_bits for layer in layers).items())
        listed = ", ".join(f"{count} of {bits} bits" for bits, count in counts)
        click.echo(f"linear layers: {listed}; {described.mean_bits:.2f} bits per weight, scales included")
        width = max(len(layer.name) for layer in layers)
        why = max(len(layer.reason or "-") for layer in layers)
        titles = f"{'role':11}  {'bits':>4}  {'weights':>10}  {'KiB':>9}  {'score':>9}  {'reason':{why}}  folding"
        click.echo(f"\n{'layer':{width}}  {titles}")
        for layer in layers:
            numbers = f"{layer.num_bits:4}  {layer.parameters:10}  {layer.bytes / 1024:9.1f}"
            score = "-" if layer.score is None else f"{layer.score:.3g}"
            decision = f"{score:>9}  {layer.reason or '-':{why}}  {layer.folding or '-'}"
            click.echo(f"{layer.name:{width}}  {layer.role:11}  {numbers}  {decision}")
    for key in ("folding", "recipe", "provenance"):
        if (written := getattr(described, key)) is not None:
            click.echo(f"\n{key}: {json.dumps(written, indent=2, ensure_ascii=False)}")
