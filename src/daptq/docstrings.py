"""What docstrings say of attributes: the descriptions in JSON Schemas and the help of command-line options."""

from __future__ import annotations

import inspect
import re

__all__ = ["attribute_texts"]


def attribute_texts(documented: type) -> dict[str, str]:
    """What the `Attributes` section of a class's docstring, and of the classes it derives from, says of each one."""
    found: dict[str, str] = {}
    for one in reversed(documented.__mro__):
        _, _, section = inspect.cleandoc(one.__doc__ or "").partition("\nAttributes:\n")
        section = re.split(r"\n(?=\S)", section)[0]
        for entry in re.split(r"\n(?=    \S)", "\n" + section)[1:]:
            name, _, text = entry.strip().partition(":")
            found[name] = " ".join(text.split())
    return found
