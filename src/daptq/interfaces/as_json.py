"""Interfaces as JSON objects and back; folds are found by the catalog, those of other distributions included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from daptq.catalog import FOLDS
from daptq.errors import InvalidInputError
from daptq.interfaces.contract import Fold, Interface, Tap

__all__ = ["interface_from_json", "interface_to_json"]

KEYS = ("name", "tap", "folds")


def interface_to_json(interface: Interface) -> dict[str, Any]:
    """A JSON object that `interface_from_json` turns into the same interface."""
    folds = [{"method": fold.method, **asdict(fold)} for fold in interface.folds]  # type: ignore[call-overload]
    return {"name": interface.name, "tap": asdict(interface.tap), "folds": folds}


def interface_from_json(obj: Mapping[str, Any]) -> Interface:
    """The interface that `interface_to_json` wrote.

    Raises:
        InvalidInputError: A key is unknown or missing, or a value is outside its range.
        UnknownNameError: There is no fold of a name; the message suggests near names.
    """
    if set(obj) != set(KEYS):
        raise InvalidInputError(
            f"an interface must have the keys {', '.join(KEYS)}, got {', '.join(sorted(obj))}. See "
            "daptq.interfaces.contract.Interface."
        )
    try:
        return Interface(
            name=obj["name"], tap=Tap(**obj["tap"]), folds=tuple(_fold_from_json(entry) for entry in obj["folds"])
        )
    except TypeError as error:
        raise InvalidInputError(
            f"interface {obj['name']!r} must be complete and of the right types: {error}. Correct the setting."
        ) from error


def _fold_from_json(obj: Mapping[str, Any]) -> Fold:
    """One fold; JSON has lists for tuples."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in obj.items() if key != "method"}
    return FOLDS.provided(str(obj.get("method")))(**values)
