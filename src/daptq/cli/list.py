"""`daptq list`: which names exist."""

from __future__ import annotations

from pathlib import Path

import click

from daptq import catalog
from daptq.cli._console import json_option

KINDS = {
    "policies": catalog.POLICIES,
    "environments": catalog.ENVIRONMENTS,
    "methods": catalog.METHODS,
    "kernels": catalog.KERNELS,
    "sources": catalog.SOURCES,
}


@click.command("list")
@click.argument("kind", type=click.Choice(list(KINDS)))
@json_option
def list_names(kind: str, json_path: Path | None) -> None:
    """Lists the names of one KIND of thing, one per line."""
    names = KINDS[kind].names()
    for name in names:
        click.echo(name)
    if json_path is not None:
        from daptq.artifacts import write_json

        write_json(json_path, {"schema_version": 1, "kind": kind, "names": list(names)})
