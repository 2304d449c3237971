"""Command-line options that are made of the fields of a request: name, help, type and default of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import click

from daptq.docstrings import attribute_texts

__all__ = ["request_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def request_options(request: Any, metavars: Mapping[str, str]) -> Callable[[Command], Command]:
    """A decorator that gives a command one option per field.

    The help is what the docstring says of the field, a field that holds several values is an option that may be
    repeated, named in the singular.

    Args:
        request: Dataclass whose fields the options are made of.
        metavars: What stands for the value in the help, by field; only these fields become options, in this order.
    """
    found = {field.name: field for field in fields(request)}
    texts = attribute_texts(request)

    def decorate(command: Command) -> Command:
        for name, metavar in reversed(list(metavars.items())):
            field = found[name]
            repeated = "Sequence" in str(field.type)
            command = click.option(
                f"--{(name.removesuffix('s') if repeated else name).replace('_', '-')}",
                name,
                metavar=metavar,
                multiple=repeated,
                type=int if isinstance(field.default, int) else str,
                default=None if repeated else field.default,
                help=texts[name] + (" May be repeated." if repeated else ""),
            )(command)
        return command

    return decorate
