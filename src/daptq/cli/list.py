"""`daptq list`: which names exist, and what can be set of what they name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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

Described = Mapping[str, list[dict[str, Any]]]


@click.command("list")
@click.argument("kind", type=click.Choice(["policies", "parts", *CATALOGS]))
@click.option("--settings", is_flag=True, help="Say what can be set of each, for methods of every kind and for parts.")
@json_option
def list_names(kind: str, settings: bool, json_path: Path | None) -> None:
    """Lists the names of one KIND of thing, one per line.

    Policies are those that ship with the package, methods are whole recipes, parts are what a recipe is made of, and
    families are kinds of policies. With --settings it says how each setting is written on the command line of
    `daptq quantize`, what it is otherwise, and what it means.
    """
    described = _described(kind) if settings else None
    names = _names(kind) if described is None else tuple(described)
    if described is None:
        for name in names:
            click.echo(name)
    else:
        _print(described)
    if json_path is not None:
        from daptq.artifacts import write_json

        content = {"schema_version": 1, "kind": kind, "names": list(names)}
        write_json(json_path, content if described is None else {**content, "settings": described})


def _names(kind: str) -> tuple[str, ...]:
    """Every name of a kind."""
    if kind == "policies":
        from daptq.packing.source import packaged_policies

        return tuple(packaged_policies())
    if kind == "parts":
        from daptq.cli.settings import parts

        return tuple(sorted(parts()))
    return CATALOGS[kind].names()


def _described(kind: str) -> Described:
    """The settings of everything of a kind that can be loaded, by name.

    Raises:
        UsageError: Nothing of this kind has settings.
    """
    from daptq.cli.settings import described, method_settings, recipe_options
    from daptq.quantization.recipe import METHOD_PARTS, method_named

    if kind == "parts":
        return {name: _of_part(name) for name in _names(kind)}
    shelf = CATALOGS.get(kind)
    if shelf is catalog.METHODS:
        found = shelf.usable(lambda _, function: list(described(recipe_options(function), part=None)))
        return dict(sorted(found.items()))
    kinds = {_kind_of(methods): part.replace("_", "-") for part, (methods, _) in METHOD_PARTS.items()}
    if shelf is None or kind not in kinds:
        listed = ", ".join(["methods", "parts", *kinds])
        raise click.UsageError(f"--settings must come with one of {listed}, got {kind}.")

    def settings(name: str, _: Any) -> list[dict[str, Any]]:
        return list(described(method_settings(method_named(shelf, name)), part=kinds[kind]))

    return dict(sorted(shelf.usable(settings).items()))


def _kind_of(shelf: catalog.Catalog) -> str:
    """The kind that a catalog lists, in the plural."""
    return next(kind for kind, one in CATALOGS.items() if one is shelf)


def _of_part(name: str) -> list[dict[str, Any]]:
    """The settings of one part of a recipe, and how the method of a part is chosen."""
    from daptq.cli.settings import RECIPE, described, method_settings, parts, recipe_settings
    from daptq.quantization.recipe import METHOD_PARTS, PLAIN_PARTS

    part = parts()[name]
    if part == RECIPE:
        return list(described(recipe_settings(), part=name))
    if part in PLAIN_PARTS:
        return list(described(method_settings(PLAIN_PARTS[part]), part=name))
    methods = METHOD_PARTS[part][0]
    meaning = f"Method of the part; for its settings see `daptq list {_kind_of(methods)} --settings`."
    return [{"written": f"--{name}", "default": None, "choices": list(methods.names()), "meaning": meaning}]


def _print(described: Described) -> None:
    """Prints settings by name, as the help of a command shows options."""
    formatter = click.HelpFormatter()
    for name, settings in described.items():
        with formatter.section(name):
            rows = [(_written(one), _meaning(one)) for one in settings]
            formatter.write_dl(rows or [("", "Nothing can be set.")])
    click.echo(formatter.getvalue().strip())


def _written(one: Mapping[str, Any]) -> str:
    """A setting with its default; a switch stands for itself."""
    default = "..." if one["default"] is None else one["default"]
    if one["written"].startswith("--set "):
        return f"{one['written']}={default}"
    return one["written"] if default in ("true", "false") else f"{one['written']} {default}"


def _meaning(one: Mapping[str, Any]) -> str:
    """What a setting means, and its choices."""
    choices = f" One of {', '.join(one['choices'])}." if one["choices"] else ""
    return f"{one['meaning']}{choices}"
