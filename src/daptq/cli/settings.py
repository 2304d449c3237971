"""What can be set of a recipe and of its parts: names, defaults, choices and meanings, read from code and docstrings.

A part of a recipe is done by a method that is chosen by name, or in one way; what belongs to no part is a setting of
the part that is called `recipe`.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin

__all__ = [
    "RECIPE",
    "Setting",
    "as_text",
    "choices_of",
    "described",
    "flag",
    "method_settings",
    "parts",
    "plain_text",
    "plain_type",
    "recipe_keywords",
    "recipe_options",
    "recipe_settings",
]

RECIPE = "recipe"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One thing that can be set.

    Attributes:
        name: Name of the field or keyword.
        hint: Its type.
        default: Its value where it is not set; `dataclasses.MISSING` where it must be.
        text: What it means.
    """

    name: str
    hint: Any
    default: Any
    text: str


def parts() -> dict[str, str]:
    """Part of a recipe by its name on the command line; what belongs to no part comes last, as ``"recipe"``."""
    from daptq.quantization.recipe import METHOD_PARTS, PLAIN_PARTS

    return {part.replace("_", "-"): part for part in (*METHOD_PARTS, *PLAIN_PARTS, RECIPE)}


def method_settings(config: Any) -> tuple[Setting, ...]:
    """The settings of a method or of a part that is done in one way, the fields of its dataclass."""
    from daptq.docstrings import attribute_texts

    hints, texts = typing.get_type_hints(config), attribute_texts(config)
    return tuple(
        Setting(
            name=one.name,
            hint=hints[one.name],
            default=one.default_factory() if one.default_factory is not MISSING else one.default,
            text=plain_text(texts.get(one.name, "A setting.")),
        )
        for one in fields(config)
        if one.init
    )


def recipe_settings() -> tuple[Setting, ...]:
    """The settings of a recipe that belong to no part and that a text can stand for."""
    from daptq.quantization.recipe import Recipe

    named = set(parts().values())
    return tuple(
        one for one in method_settings(Recipe) if one.name not in {*named, "name"} and plain_type(one.hint) is not None
    )


def recipe_keywords(function: Callable[..., Any]) -> tuple[Setting, ...]:
    """The keywords of a recipe's function."""
    from daptq.docstrings import argument_texts

    hints, texts = typing.get_type_hints(function), argument_texts(function)
    return tuple(
        Setting(
            name=name,
            hint=hints.get(name, str),
            default=MISSING if parameter.default is parameter.empty else parameter.default,
            text=plain_text(texts.get(name, "A setting of the recipe.")),
        )
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    )


def recipe_options(function: Callable[..., Any]) -> tuple[Setting, ...]:
    """The keywords of a recipe's function that an option can carry."""
    return tuple(keyword for keyword in recipe_keywords(function) if plain_type(keyword.hint) is not None)


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


def as_text(value: Any) -> str:
    """How a value is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(as_text, value)) if isinstance(value, tuple) else str(value)


def plain_text(text: str) -> str:
    """A docstring's entry without its marks."""
    return text.replace("``", "").replace("`", "")


def described(settings: tuple[Setting, ...], *, part: str | None) -> Iterator[dict[str, Any]]:
    """What is told of settings.

    Args:
        settings: What can be set.
        part: Name of the part on the command line, whose settings are given by ``--set``; None for keywords of a
            recipe, which are options.

    Yields:
        A JSON object for each: how it is `written`, its `default` as text (None where it must be given), `choices` and
        `meaning`.
    """
    for one in settings:
        yield {
            "written": flag(one.name) if part is None else f"--set {part}.{one.name}",
            "default": None if one.default is MISSING else as_text(one.default),
            "choices": [str(choice) for choice in choices_of(one.hint)],
            "meaning": one.text,
        }
