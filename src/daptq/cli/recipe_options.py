"""The options of `daptq quantize` that make up its recipe, generated from the recipes and methods that are installed.

Every keyword of a recipe's function is an option, with its type and what its docstring says; a stage that is done by a
method has an option that names it. Nothing is imported before the command is parsed or explains itself.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import click

from daptq.errors import InvalidInputError

__all__ = ["RecipeCommand", "choices_of", "flag", "method_options", "plain_type", "recipe_function"]


class RecipeCommand(click.Command):
    """A command with the options of a recipe behind its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The declared parameters, and the generated ones before ``--help``."""
        declared = super().get_params(ctx)
        count = len(self.params)
        return [*declared[:count], *_generated(self.params), *declared[count:]]


def recipe_function(method: str) -> Callable[..., Any]:
    """The function of a recipe.

    Raises:
        UnknownNameError: No recipe has this name.
    """
    from daptq.catalog import METHODS

    return METHODS.provided(method)


def method_options() -> dict[str, str]:
    """Stage of a recipe by the name of the option, without dashes in front, that chooses its method."""
    from daptq.quantization.recipe import METHOD_STAGES

    return {catalog.kind.replace(" ", "-"): stage for stage, (catalog, _) in METHOD_STAGES.items()}


def flag(name: str) -> str:
    """The option of a setting."""
    return "--" + name.replace("_", "-")


def plain_type(hint: Any) -> Any:
    """What a hint allows beside None: ``bool``, ``int``, ``float``, ``str`` or a Literal; None for anything else."""
    if get_origin(hint) in (Union, types.UnionType):
        others = [one for one in get_args(hint) if one is not type(None)]
        return plain_type(others[0]) if len(others) == 1 else None
    return hint if hint in (bool, int, float, str) or get_origin(hint) is Literal else None


def choices_of(hint: Any) -> tuple[str, ...]:
    """The values of a Literal, none for any other hint."""
    plain = plain_type(hint)
    return get_args(plain) if get_origin(plain) is Literal else ()


@dataclass(kw_only=True)
class _Keyword:
    """A keyword of one or several recipes."""

    hint: Any
    default: Any
    text: str
    choices: tuple[str, ...]
    methods: tuple[str, ...]


def _keywords() -> dict[str, _Keyword]:
    """Every keyword of every recipe that an option can carry, those of the first recipe first."""
    from daptq.catalog import METHODS
    from daptq.docstrings import argument_texts

    found: dict[str, _Keyword] = {}
    for method in METHODS.names():
        function = recipe_function(method)
        texts, hints = argument_texts(function), typing.get_type_hints(function)
        for name, parameter in inspect.signature(function).parameters.items():
            hint = plain_type(hints.get(name, str))
            if hint is None:
                continue
            keyword = found.setdefault(
                name,
                _Keyword(
                    hint=hint,
                    default=parameter.default,
                    text=texts.get(name, "A setting of the recipe."),
                    choices=(),
                    methods=(),
                ),
            )
            keyword.choices = tuple(dict.fromkeys((*keyword.choices, *choices_of(hint))))
            keyword.methods = (*keyword.methods, method)
    return found


def _generated(own: list[click.Parameter]) -> list[click.Parameter]:
    """The options of all recipes and methods."""
    from daptq.catalog import METHODS

    keywords, methods = _keywords(), method_options()
    if taken := sorted({parameter.name for parameter in own if parameter.name} & keywords.keys()):
        raise InvalidInputError(
            f"keywords of a recipe must not be options of every recipe, got {taken} of "
            f"{', '.join(keywords[taken[0]].methods)}. Rename the keyword."
        )
    options = {
        name: _keyword_option(name, keyword, every=len(keyword.methods) == len(METHODS.names()))
        for name, keyword in keywords.items()
    }
    for option, stage in methods.items():
        name = option.replace("-", "_")
        options[name] = _method_option(option, stage, keywords.get(name))
    assignment = click.Option(
        ["--set", "assignments"],
        metavar="STAGE.SETTING=VALUE",
        multiple=True,
        help="A setting of a stage's method, for example rounding.damping=0.05; may be repeated.",
    )
    return [*options.values(), assignment]


def _keyword_option(name: str, keyword: _Keyword, *, every: bool) -> click.Option:
    """The option of a keyword; None unless it is given."""
    help_text = _help(keyword.text, () if every else keyword.methods)
    if keyword.hint is bool:
        names = f"{flag(name)}/{flag(f'no_{name}')}" if keyword.default is True else flag(name)
        return click.Option([names, name], is_flag=True, default=None, help=help_text)
    kind = click.Choice(keyword.choices) if keyword.choices else keyword.hint
    return click.Option([flag(name), name], type=kind, default=None, help=help_text)


def _method_option(option: str, stage: str, keyword: _Keyword | None) -> click.Option:
    """The option that chooses the method of a stage; a keyword of a recipe with this name stays what it is there."""
    from daptq.catalog import METHODS
    from daptq.quantization.recipe import METHOD_STAGES, OPTIONAL_STAGES

    catalog, _ = METHOD_STAGES[stage]
    names = [*catalog.names(), *(["none"] if stage in OPTIONAL_STAGES else [])]
    text = f"Method of the {catalog.kind}: {', '.join(names)}."
    if keyword is not None and keyword.choices:
        recipes = () if len(keyword.methods) == len(METHODS.names()) else keyword.methods
        text = f"{text} {_help(f'Also {keyword.text[0].lower()}{keyword.text[1:]}', recipes)}"
    return click.Option([f"--{option}", option.replace("-", "_")], metavar="NAME", default=None, help=text)


def _help(text: str, methods: tuple[str, ...]) -> str:
    """A docstring's entry without its marks, with the recipes that have the keyword where not all do."""
    plain = text.replace("``", "").replace("`", "")
    return f"{plain}  [{', '.join(methods)}]" if methods else plain
