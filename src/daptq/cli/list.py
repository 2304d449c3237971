"""`daptq list`: which names exist."""

from __future__ import annotations

from pathlib import Path

import click

from daptq import catalog
from daptq.cli.console import json_option

CATALOGS = {
    "activation-scalings": catalog.ACTIVATION_SCALINGS,
    "allocations": catalog.ALLOCATIONS,
    "compensations": catalog.COMPENSATIONS,
    "drift-models": catalog.DRIFT_MODELS,
    "environments": catalog.ENVIRONMENTS,
    "families": catalog.POLICIES,
    "folds": catalog.FOLDS,
    "kernels": catalog.KERNELS,
    "methods": catalog.METHODS,
    "roundings": catalog.ROUNDINGS,
    "sensitivities": catalog.SENSITIVITIES,
    "sources": catalog.SOURCES,
}


@click.command("list")
@click.argument("kind", type=click.Choice(["policies", *CATALOGS]))
@json_option
def list_names(kind: str, json_path: Path | None) -> None:
    """Lists the names of one KIND of thing, one per line.

    Policies are those that ship with the package, methods are whole recipes, and families are kinds of policies.
    """
    names = CATALOGS[kind].names() if kind in CATALOGS else _packaged_policies()
    for name in names:
        click.echo(name)
    if json_path is not None:
        from daptq.artifacts import write_json

        write_json(json_path, {"schema_version": 1, "kind": kind, "names": list(names)})


def _packaged_policies() -> tuple[str, ...]:
    """Names that every command takes as POLICY without a folder."""
    from daptq.packing.source import packaged_policies

    return tuple(packaged_policies())
