"""Makes the recipe that the options of `daptq quantize` ask for.

A recipe's function is called with its keywords; then methods that were chosen by name take the place of the recipe's
own, and settings that were given by part are put in. What would change nothing is refused, never ignored.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any, Literal, Union, get_args, get_origin

from daptq.cli.recipe_options import recipe_function
from daptq.cli.settings import RECIPE, Setting, choices_of, flag, parts, recipe_keywords, recipe_settings
from daptq.errors import InvalidInputError, RecipeError, UnknownNameError, require_one_of
from daptq.methods import Method
from daptq.quantization.recipe import METHOD_PARTS, OPTIONAL_PARTS, PLAIN_PARTS, Recipe, build, method_named

__all__ = ["chosen_recipe"]

NONE = "none"


def chosen_recipe(method: str, settings: Mapping[str, Any], assignments: Sequence[str] = ()) -> Recipe:
    """The recipe of a method with the settings that were given.

    Args:
        method: Name of the recipe.
        settings: Values, or texts that stand for them, by the names of keywords of the recipe's function or of the
            parts whose method is chosen.
        assignments: Settings of single parts, as ``"part.setting=value"``.

    Raises:
        UnknownNameError: No recipe, method, part or setting has the name that is given.
        RecipeError: The recipe has no such keyword, refuses a value, or a value that was given would have no effect.
        InvalidInputError: Another distribution provides the recipe and it cannot be used.
    """
    function = recipe_function(method)
    known = {keyword.name: keyword for keyword in recipe_keywords(function)}
    given = _by_part(assignments)
    keywords: dict[str, Any] = {}
    methods: dict[str, str] = {}
    for name, value in settings.items():
        if name in known and not (name in METHOD_PARTS and _names_method(name, value, known[name], given)):
            keywords[name] = _keyword_value(known[name], value)
        elif name in METHOD_PARTS:
            methods[name] = value
        else:
            raise _unknown(method, known, name)
    recipe = _with_methods(_made(method, function, known, keywords), methods, given)
    _require_effect(method, known, recipe, methods, given)
    for name in keywords if methods or given else ():
        others = {key: value for key, value in keywords.items() if key != name}
        matters = known[name].default is not MISSING and function(**others) != function(**keywords)
        if matters and _with_methods(function(**others), methods, given) == recipe:
            chosen = [f"{flag(part)} {one}" for part, one in methods.items()]
            chosen += [f"--set {assignment}" for assignment in assignments]
            raise RecipeError(
                f"{flag(name)} must be left out where another option takes its place, got it with "
                f"{', '.join(chosen)}. Leave it out, or set what is meant with --set."
            )
    return recipe


def _names_method(part: str, value: Any, keyword: Setting, given: Mapping[str, Any]) -> bool:
    """Whether a value is a method that takes the place of the recipe's, although the recipe has such a keyword.

    It is where it is none of the keyword's values, and where the method is given settings, without which the recipe
    itself may be unable to make it.
    """
    if choices := choices_of(keyword.hint):
        return value not in choices
    return part in given and value in METHOD_PARTS[part][0].names()


def _keyword_value(keyword: Setting, value: Any) -> Any:
    """The value of a keyword, which may be given as text."""
    if not isinstance(value, str):
        return value
    parsed, choices = _parsed(value, keyword.hint, flag(keyword.name)), choices_of(keyword.hint)
    if choices and parsed is not None:
        require_one_of(flag(keyword.name), parsed, choices, RecipeError)
    return parsed


def _made(
    method: str, function: Callable[..., Any], known: Mapping[str, Setting], keywords: Mapping[str, Any]
) -> Recipe:
    """What the recipe's function returns."""
    if missing := [flag(name) for name, one in known.items() if one.default is MISSING and name not in keywords]:
        raise RecipeError(f"settings of {method} must include {', '.join(missing)}, got none. Give a value.")
    recipe = function(**keywords)
    if not isinstance(recipe, Recipe):
        raise InvalidInputError(
            f"method {method!r} must return a Recipe, got {type(recipe).__name__}. Correct the function "
            f"{function.__name__}."
        )
    return recipe


def _unknown(method: str, known: Mapping[str, Any], name: str) -> RecipeError:
    listed = ", ".join(flag(setting) for setting in known)
    return RecipeError(f"settings of {method} must be among {listed}, got {flag(name)}. Leave it out.")


def _require_effect(
    method: str,
    known: Mapping[str, Any],
    recipe: Recipe,
    methods: Mapping[str, str],
    given: Mapping[str, Mapping[str, str]],
) -> None:
    """Refuses a method that the recipe does not ask, and settings that it does not read."""
    needs, compensates = recipe.needs, recipe.compensation is not None
    unread = {
        "sensitivity": not needs.scores,
        "drift_model": not needs.data,
        "drift_horizon": not needs.metric,
        "calibration_states": not needs.data,
        "order": not compensates,
        "folding": not compensates,
    }
    for part in methods:
        if unread.get(part, False):
            raise _unknown(method, known, part)
    for part, texts in given.items():
        for name in texts:
            if unread.get(name if part == RECIPE else part, False):
                raise RecipeError(
                    f"--set {part.replace('_', '-')}.{name} must be what the recipe reads, got {method}, which as it "
                    "is set here does not. Leave it out."
                )


def _with_methods(recipe: Recipe, methods: Mapping[str, str], given: Mapping[str, Mapping[str, str]]) -> Recipe:
    """The recipe with other methods, and with single settings of its parts."""
    changes: dict[str, Any] = {}
    for part in (*METHOD_PARTS, *PLAIN_PARTS):
        before, texts = getattr(recipe, part), given.get(part, {})
        if methods.get(part) == NONE and part in OPTIONAL_PARTS and not texts:
            changes[part] = None
        elif part in methods:
            kind: type[Any] = method_named(METHOD_PARTS[part][0], methods[part])
            changes[part] = _changed(kind, _shared(before, kind), texts, part)
        elif texts and before is None and part in METHOD_PARTS:
            option = part.replace("_", "-")
            raise RecipeError(
                f"--set {option}.{next(iter(texts))} must be the setting of a method, got a recipe without {option}. "
                f"Choose one with --{option}."
            )
        elif texts:
            kind = PLAIN_PARTS[part] if before is None else type(before)
            values = {} if before is None else {field.name: getattr(before, field.name) for field in fields(kind)}
            changes[part] = _changed(kind, values, texts, part)
    others = {one.name: one.hint for one in recipe_settings()}
    return replace(recipe, **changes, **_values(given.get(RECIPE, {}), others, RECIPE))


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


def _changed(kind: type[Any], values: Mapping[str, Any], texts: Mapping[str, str], part: str) -> Any:
    """The settings of a part, some of them as text."""
    hints = typing.get_type_hints(kind)
    parsed = _values(texts, {field.name: hints[field.name] for field in fields(kind)}, part)
    return build(kind, {**values, **parsed}, part.replace("_", " "))


def _values(texts: Mapping[str, str], hints: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The values of settings by name."""
    label = part.replace("_", " ")
    for name in texts:
        if name not in hints:
            raise UnknownNameError(f"setting of the {label}", name, hints)
    return {name: _parsed(text, hints[name], f"{name} of the {label}") for name, text in texts.items()}


def _by_part(assignments: Sequence[str]) -> dict[str, dict[str, str]]:
    """Texts of settings by part and name."""
    known = parts()
    found: dict[str, dict[str, str]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        option, dot, name = path.strip().partition(".")
        if not (equals and dot and name):
            raise RecipeError(f"--set must be given as part.setting=value, got {assignment!r}. Write it so.")
        option = option.replace("_", "-")
        if option not in known:
            raise UnknownNameError("part of --set", option, known)
        found.setdefault(known[option], {})[name.strip().replace("-", "_")] = text.strip()
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
