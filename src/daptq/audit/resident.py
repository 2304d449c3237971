"""What a module keeps in memory: every tensor that its attributes, containers and closures lead to, registered or not.

A copy of a weight that is no parameter and no buffer is found as well. What only a module-level cache of Python or a
library outside of torch holds cannot be reached from the module, and is not seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import partial
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from daptq.audit.products import storage_of

__all__ = ["Resident", "resident"]

_LEAVES = (str, bytes, int, float, complex, type, ModuleType, torch.dtype, torch.device)


@dataclass(frozen=True, kw_only=True)
class Resident:
    """What was reached.

    Attributes:
        tensors: The tensors by storage, with the first path that led to each.
        opaque: Paths of objects of a library that keep memory that torch does not show.
    """

    tensors: Mapping[int, tuple[str, Tensor]]
    opaque: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all storages."""
        return sum(tensor.untyped_storage().nbytes() for _, tensor in self.tensors.values())


def resident(root: nn.Module) -> Resident:
    """Everything that a module leads to.

    Args:
        root: The module; modules that are not its children are not entered.
    """
    inside = {id(module) for module in root.modules()}
    tensors: dict[int, tuple[str, Tensor]] = {}
    opaque = []
    seen: set[int] = set()
    waiting: deque[tuple[str, Any]] = deque([("", root)])
    while waiting:
        path, value = waiting.popleft()
        if (
            id(value) in seen
            or isinstance(value, _LEAVES)
            or (isinstance(value, nn.Module) and id(value) not in inside)
        ):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if address := storage_of(value):
                tensors.setdefault(address, (path, value))
        elif isinstance(value, torch.ScriptObject):
            opaque.append(path)
        else:
            waiting.extend((f"{path}.{name}" if path else name, child) for name, child in _children(value))
    return Resident(tensors=tensors, opaque=tuple(opaque))


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """What a value holds, with the name under which it holds it."""
    if isinstance(value, nn.Module):
        # Parameters, buffers and children carry the names that the state dict gives them.
        for name, content in vars(value).items():
            if name in ("_parameters", "_buffers", "_modules"):
                yield from content.items()
            else:
                yield name, content
    elif isinstance(value, Mapping):
        yield from ((str(key), content) for key, content in value.items())
    elif isinstance(value, list | tuple | Set | deque):
        yield from ((str(index), content) for index, content in enumerate(value))
    elif isinstance(value, FunctionType):
        # A function may close over its own name, whose cell is empty until the function is bound.
        full = (cell for cell in value.__closure__ or () if cell != CellType())
        yield from ((value.__name__, cell.cell_contents) for cell in full)
        yield from (("default", default) for default in value.__defaults__ or ())
    elif isinstance(value, MethodType):
        yield from (("self", value.__self__), (value.__func__.__name__, value.__func__))
    elif isinstance(value, BuiltinMethodType):
        yield "self", value.__self__
    elif isinstance(value, partial):
        yield from (("function", value.func), ("arguments", value.args), ("keywords", value.keywords))
    else:
        yield from getattr(value, "__dict__", {}).items()
