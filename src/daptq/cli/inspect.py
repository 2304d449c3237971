"""`daptq inspect`: what is in a policy folder."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click

from daptq.cli._console import json_option

_MEBIBYTE = 2**20


@click.command()
@click.argument("directory", metavar="DIR")
@json_option
def inspect(directory: str, json_path: Path | None) -> None:
    """Prints layers, bit-widths, sizes, folding plan and provenance of DIR, after verifying every byte of it."""
    from daptq.artifacts import write_json
    from daptq.cli._policy_folder import describe

    described = describe(directory)
    _print(described)
    if json_path is not None:
        write_json(json_path, described)


def _print(described: dict[str, Any]) -> None:
    """Prints a description for people."""
    from rich.console import Console
    from rich.pretty import Pretty
    from rich.table import Table

    console = Console()
    console.print(
        f"{described['kind']} {described['name']!r} of family {described['family']!r}: "
        f"{described['weight_bytes'] / _MEBIBYTE:.2f} MiB in shards, every checksum correct",
        highlight=False,
    )
    if described["layers"]:
        counts = sorted(Counter(layer["num_bits"] for layer in described["layers"]).items())
        listed = ", ".join(f"{count} of {bits} bits" for bits, count in counts)
        console.print(f"linear layers: {listed}; {described['mean_bits']:.2f} bits per weight, scales included")
        table = Table("layer", "role")
        for column in ("bits", "weights", "KiB"):
            table.add_column(column, justify="right")
        for layer in described["layers"]:
            size = f"{layer['bytes'] / 1024:.1f}"
            table.add_row(layer["name"], layer["role"], str(layer["num_bits"]), str(layer["parameters"]), size)
        console.print(table)
    for key in ("folding", "recipe", "provenance"):
        if described[key] is not None:
            console.print(f"{key}:", Pretty(described[key], expand_all=True))
