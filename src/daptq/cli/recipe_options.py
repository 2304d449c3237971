"""The options of `daptq quantize` that make up its recipe, generated from the recipes and methods that are installed.

Every keyword of a recipe's function is an option, with its type and what its docstring says; a part of a recipe that is
done by a method has an option that names it. Keywords of several recipes with one name are what the recipe that is
chosen says. Nothing is imported before the command is parsed or explains itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click

from daptq.cli.settings import Setting, choices_of, flag, plain_type, recipe_options
from daptq.errors import InvalidInputError

__all__ = ["RecipeCommand", "recipe_function"]

METHOD = "method"


class RecipeCommand(click.Command):
    """A command with the options of a recipe behind its own, one of which is ``--method``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Finds the recipe that is asked for, on which options depend, then parses."""
        ctx.meta[METHOD] = self._asked(args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The declared parameters, and the generated ones before ``--help``."""
        declared = super().get_params(ctx)
        count = len(self.params)
        return [*declared[:count], *_generated(declared, ctx.meta.get(METHOD) or self._asked([])), *declared[count:]]

    def _asked(self, args: list[str]) -> str:
        """The recipe that arguments name, every other one of them aside."""
        (option,) = (parameter for parameter in self.params if parameter.name == METHOD)
        lenient = {"ignore_unknown_options": True, "allow_extra_args": True}
        command = click.Command(METHOD, params=[option], add_help_option=False, context_settings=lenient)
        found = command.make_context(METHOD, [*args], resilient_parsing=True).params.get(METHOD)
        return str(found or option.default)


def recipe_function(method: str) -> Callable[..., Any]:
    """The function of a recipe.

    Raises:
        UnknownNameError: No recipe has this name.
        InvalidInputError: Another distribution provides it and it cannot be imported.
    """
    from daptq.catalog import METHODS

    return METHODS.provided(method)


@dataclass(kw_only=True)
class _Keyword:
    """A keyword of one or several recipes that say the same of its type."""

    setting: Setting
    recipes: tuple[str, ...]


def _keywords(recipes: Mapping[str, tuple[Setting, ...]], asked: str) -> dict[str, _Keyword]:
    """Every keyword of every recipe that an option can carry, those of the recipe that is asked for first."""
    found: dict[str, _Keyword] = {}
    for recipe in sorted(recipes, key=lambda name: name != asked):
        for setting in recipes[recipe]:
            keyword = found.setdefault(setting.name, _Keyword(setting=setting, recipes=()))
            if plain_type(setting.hint) == plain_type(keyword.setting.hint):
                keyword.recipes = (*keyword.recipes, recipe)
    return found


def _generated(declared: list[click.Parameter], asked: str) -> list[click.Parameter]:
    """The options of all recipes and methods.

    Raises:
        InvalidInputError: The recipe that is asked for cannot be used; another one is left out with a warning.
    """
    from daptq.catalog import METHODS
    from daptq.quantization.recipe import METHOD_PARTS

    assignment = click.Option(
        ["--set", "assignments"],
        metavar="PART.SETTING=VALUE",
        multiple=True,
        help="A setting of a part of the recipe, for example rounding.damping=0.05; `daptq list parts --settings` "
        "names them all. May be repeated.",
    )
    taken = {name for parameter in (*declared, assignment) for name in (parameter.name, *parameter.opts)}

    def read(_: str, function: Callable[..., Any]) -> tuple[Setting, ...]:
        settings = recipe_options(function)
        if clash := sorted(one.name for one in settings if {one.name, *_option_names(one)} & taken):
            raise InvalidInputError(
                f"keywords of a recipe must not be options of every recipe, got {clash} of {function.__name__}. "
                "Rename the keyword, or uninstall the distribution that provides the recipe."
            )
        return settings

    recipes = METHODS.usable(read, asked=asked)
    keywords = _keywords(recipes, asked)
    options = {name: _keyword_option(keyword, count=len(recipes)) for name, keyword in keywords.items()}
    options |= {part: _method_option(part, keywords.get(part), count=len(recipes)) for part in METHOD_PARTS}
    return [*options.values(), assignment]


def _option_names(setting: Setting) -> tuple[str, ...]:
    """The names of the option of a keyword; one that is on by default can be switched off."""
    off = plain_type(setting.hint) is bool and setting.default is True
    return (flag(setting.name), flag(f"no_{setting.name}")) if off else (flag(setting.name),)


def _keyword_option(keyword: _Keyword, *, count: int) -> click.Option:
    """The option of a keyword; None unless it is given."""
    setting, kind = keyword.setting, plain_type(keyword.setting.hint)
    help_text = setting.text + _recipes_of(keyword, count)
    if kind is bool:
        names = "/".join(_option_names(setting))
        return click.Option([names, setting.name], is_flag=True, default=None, help=help_text)
    choices = choices_of(setting.hint)
    return click.Option(
        [flag(setting.name), setting.name],
        type=click.Choice(choices) if choices else kind,
        default=None,
        help=help_text,
    )


def _method_option(part: str, keyword: _Keyword | None, *, count: int) -> click.Option:
    """The option that chooses the method of a part; a keyword of a recipe with this name stays what it is there."""
    from daptq.quantization.recipe import METHOD_PARTS, OPTIONAL_PARTS

    catalog, _ = METHOD_PARTS[part]
    names = [*catalog.names(), *(["none"] if part in OPTIONAL_PARTS else [])]
    text = f"Method of the {catalog.kind}: {', '.join(names)}."
    if keyword is not None and choices_of(keyword.setting.hint):
        also = keyword.setting.text
        text = f"{text} Also {also[0].lower()}{also[1:]}{_recipes_of(keyword, count)}"
    return click.Option([flag(part), part], metavar="NAME", default=None, help=text)


def _recipes_of(keyword: _Keyword, count: int) -> str:
    """The recipes that have a keyword, where not all do."""
    return f"  [{', '.join(sorted(keyword.recipes))}]" if len(keyword.recipes) < count else ""
