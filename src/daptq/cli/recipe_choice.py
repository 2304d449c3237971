"""Makes the recipe that the options of `daptq quantize` ask for.

A recipe's function is called with its keywords; then methods that were chosen by name take the place of the recipe's
own, and settings that were given by stage are put in. What would change nothing is refused, never ignored.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, Union, get_args, get_origin

from daptq.cli.recipe_options import choices_of, flag, method_options, recipe_function
from daptq.errors import RecipeError, UnknownNameError
from daptq.methods import Method
from daptq.quantization.recipe import METHOD_STAGES, OPTIONAL_STAGES, PLAIN_STAGES, Recipe, build, method_named

__all__ = ["chosen_recipe"]

NONE = "none"


def chosen_recipe(method: str, settings: Mapping[str, Any], assignments: Sequence[str] = ()) -> Recipe:
    """The recipe of a method with the settings that were given.

    Args:
        method: Name of the recipe.
        settings: Values by the names of keywords, of the recipe's function or of the options that choose a method.
        assignments: Settings of single stages, as ``"stage.setting=value"``.

    Raises:
        UnknownNameError: No recipe, method, stage or setting has the name that is given.
        RecipeError: The recipe has no such keyword, refuses a value, or a value that was given would have no effect.
    """
    function = recipe_function(method)
    known = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    stages = {option.replace("-", "_"): stage for option, stage in method_options().items()}
    keywords: dict[str, Any] = {}
    methods: dict[str, str] = {}
    for name, value in settings.items():
        choices = choices_of(hints.get(name))
        if name in known and (name not in stages or not choices or value in choices):
            keywords[name] = value
        elif name in stages:
            methods[stages[name]] = value
        else:
            raise _unknown(method, known, name)
    given = _by_stage(assignments)
    recipe = _with_methods(function(**keywords), methods, given)
    _require_effect(method, known, recipe, methods)
    for name in keywords if methods else ():
        others = {key: value for key, value in keywords.items() if key != name}
        matters = function(**others) != function(**keywords)
        if matters and _with_methods(function(**others), methods, given) == recipe:
            raise RecipeError(
                f"{flag(name)} must be left out where another method takes the place of the recipe's, got it with "
                f"{', '.join(f'{stage} {chosen}' for stage, chosen in methods.items())}. Set it with --set."
            )
    return recipe


def _unknown(method: str, known: Mapping[str, Any], name: str) -> RecipeError:
    listed = ", ".join(flag(setting) for setting in known)
    return RecipeError(f"settings of {method} must be among {listed}, got {flag(name)}. Leave it out.")


def _require_effect(method: str, known: Mapping[str, Any], recipe: Recipe, methods: Mapping[str, str]) -> None:
    """Refuses a method that the recipe does not ask."""
    needs = recipe.needs
    for stage, asked in (("sensitivity", needs.scores), ("drift", needs.data)):
        if stage in methods and not asked:
            raise _unknown(method, known, METHOD_STAGES[stage][0].kind.replace(" ", "_"))


def _with_methods(recipe: Recipe, methods: Mapping[str, str], given: Mapping[str, Mapping[str, str]]) -> Recipe:
    """The recipe with other methods, and with single settings of its stages."""
    changes: dict[str, Any] = {}
    for stage in (*METHOD_STAGES, *PLAIN_STAGES):
        before, texts = getattr(recipe, stage), given.get(stage, {})
        if methods.get(stage) == NONE and stage in OPTIONAL_STAGES and not texts:
            changes[stage] = None
        elif stage in methods:
            kind: type[Any] = method_named(METHOD_STAGES[stage][0], methods[stage])
            changes[stage] = _changed(kind, _shared(before, kind), texts, stage)
        elif texts and before is None and stage in METHOD_STAGES:
            option = METHOD_STAGES[stage][0].kind.replace(" ", "-")
            raise RecipeError(
                f"--set {option}.{next(iter(texts))} must be the setting of a method, got a recipe without {stage}. "
                f"Choose one with --{option}."
            )
        elif texts:
            kind = PLAIN_STAGES[stage] if before is None else type(before)
            values = {} if before is None else {field.name: getattr(before, field.name) for field in fields(kind)}
            changes[stage] = _changed(kind, values, texts, stage)
    return replace(recipe, **changes)


def _shared(before: Method | None, kind: type[Any]) -> dict[str, Any]:
    """Settings of the former method that the new one has, too, as far as the recipe changed them."""
    if before is None or type(before) is kind:
        return {} if before is None else {field.name: getattr(before, field.name) for field in fields(kind)}
    names = {field.name for field in fields(kind)}
    own: Any = fields(typing.cast("Any", before))
    return {
        field.name: getattr(before, field.name)
        for field in own
        if field.name in names and getattr(before, field.name) != field.default and field.default is not MISSING
    }


def _changed(kind: type[Any], values: Mapping[str, Any], texts: Mapping[str, str], stage: str) -> Any:
    """A stage's settings, some of them as text."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    label = stage.replace("_", " ")
    parsed: dict[str, Any] = {}
    for name, text in texts.items():
        if name not in names:
            raise UnknownNameError(f"setting of the {label}", name, names)
        parsed[name] = _parsed(text, hints[name], f"{name} of the {label}")
    return build(kind, {**values, **parsed}, label)


def _by_stage(assignments: Sequence[str]) -> dict[str, dict[str, str]]:
    """Texts of settings by stage and name."""
    stages = {**method_options(), **{stage.replace("_", "-"): stage for stage in PLAIN_STAGES}}
    found: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        option, dot, name = path.strip().partition(".")
        if not (equals and dot and name):
            raise RecipeError(f"--set must be given as stage.setting=value, got {assignment!r}. Write it so.")
        option = option.replace("_", "-")
        if option not in stages:
            raise UnknownNameError("stage of --set", option, stages)
        found.setdefault(stages[option], {})[name.strip().replace("-", "_")] = text.strip()
    return found


def _parsed(text: str, hint: Any, label: str) -> Any:
    """The value that a text stands for.

    Raises:
        RecipeError: It stands for no value of this type.
    """
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [one for one in get_args(hint) if one is not type(None)]
        if len(kinds) < len(get_args(hint)) and text.lower() == NONE:
            return None
        return _parsed(text, kinds[0], label) if len(kinds) == 1 else text
    if get_origin(hint) is Literal:
        return next((value for value in get_args(hint) if str(value) == text), text)
    if get_origin(hint) is tuple:
        return tuple(_parsed(part.strip(), get_args(hint)[0], label) for part in text.strip("[]()").split(","))
    try:
        return _PARSERS[hint](text) if hint in _PARSERS else text
    except (ValueError, KeyError) as error:
        expected = {bool: "true or false", int: "a whole number", float: "a number"}[hint]
        raise RecipeError(f"{label} must be {expected}, got {text!r}. Correct the value.") from error


_PARSERS: Mapping[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: float,
}
