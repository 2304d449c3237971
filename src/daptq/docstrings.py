"""What docstrings say of attributes and arguments: the descriptions in JSON Schemas and the help of options."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

__all__ = ["argument_texts", "attribute_texts"]


def attribute_texts(documented: type) -> dict[str, str]:
    """What the `Attributes` section of a class's docstring, and of the classes it derives from, says of each one."""
    found: dict[str, str] = {}
    for one in reversed(documented.__mro__):
        found |= _section(one.__doc__, "Attributes")
    return found


def argument_texts(documented: Callable[..., Any]) -> dict[str, str]:
    """What the `Args` section of a function's docstring says of each argument."""
    return _section(documented.__doc__, "Args")


def _section(docstring: str | None, title: str) -> dict[str, str]:
    """The entries of one section by name, each in one line; an entry may be of several names."""
    _, _, section = inspect.cleandoc(docstring or "").partition(f"\n{title}:\n")
    found: dict[str, str] = {}
    section = re.split(r"\n(?=\S)", section)[0]
    for entry in re.split(r"\n(?=    \S)", "\n" + section)[1:]:
        names, _, text = entry.strip().partition(":")
        found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found
