"""What the matrix product of a linear layer multiplied, derived from the operation and the values of its operands.

An operation counts by what it was given, not by the name of the layer that called it: floating-point numbers that are
all integers of 8 bits are integers, carried in floating point, and a product of anything else is a floating-point
product. What an operation of a kernel does inside cannot be seen here; that its result is right is checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Product", "product", "storage_of", "tensors_in"]

_MATRIX_PRODUCTS = frozenset(
    {
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "mv",
        "addmv",
        "linear",
        "matmul",
        "einsum",
        "inner",
        "_int_mm",
        "_addmm_activation",
    }
)
_ADDENDS = {"addmm": 0, "baddbmm": 0, "addmv": 0, "_addmm_activation": 0, "linear": 2}
_ACTIVATIONS = {4: 7, 8: 127}


@dataclass(frozen=True, kw_only=True)
class Product:
    """One matrix product.

    Attributes:
        operation: Name of the operation, for example ``daptq.linear_w4a8.default``.
        integer_weight: Whether the weight was integers.
        activation_bits: Bits of the activations that were multiplied, None for floating point.
        dtype: dtype of the activations as they were handed to the operation, for example ``float32``.
        operands: Storages of the operands other than the activations, with their bytes.
        opaque: Whether the weight was an object that is no tensor.
    """

    operation: str
    integer_weight: bool
    activation_bits: int | None
    dtype: str
    operands: Mapping[int, int] = field(compare=False)
    opaque: bool

    @property
    def precision(self) -> str:
        """``int8``, or the dtype of floating-point activations."""
        return self.dtype if self.activation_bits is None else f"int{self.activation_bits}"


def product(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], transforms: Collection[int]) -> Product | None:
    """The product that a dispatched operation is, or None if it is none.

    Args:
        func: The operation.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        transforms: Storages of matrices that transform activations (rotations); a product with one is not the layer's.
    """
    # The dispatcher leaves out arguments that have their default value.
    given = {argument.name: argument.default_value for argument in func._schema.arguments}
    given |= {**dict(zip(given, args, strict=False)), **kwargs}
    if func.namespace == "aten":
        return _matrix_product(func, list(given.values()), transforms)
    tensors = [value for value in given.values() if isinstance(value, Tensor)]
    opaque = any(isinstance(value, torch.ScriptObject) for value in given.values())
    packed = [tensor for tensor in tensors if not tensor.is_floating_point() and tensor.dim() > 1]
    if not tensors or not (packed or opaque or len([tensor for tensor in tensors if tensor.dim() > 1]) > 1):
        return None
    activations, *others = tensors
    bits = given["activation_bits"] if "activation_bits" in given else _integer_bits(activations)
    return Product(
        operation=str(func),
        integer_weight=bool(packed) or opaque,
        activation_bits=bits,
        dtype=_dtype(activations),
        operands=_storages(others),
        opaque=opaque,
    )


def storage_of(tensor: Tensor) -> int:
    """Address of the memory that a tensor views; 0 if it has none of its own."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided and not tensor.is_meta
    return tensor.untyped_storage().data_ptr() if plain else 0


def tensors_in(values: Any) -> Iterator[Tensor]:
    """The tensors among arguments, lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _matrix_product(func: Any, values: list[Any], transforms: Collection[int]) -> Product | None:
    """A product of torch's own."""
    name = func._schema.name.partition("::")[2]
    if name not in _MATRIX_PRODUCTS:
        return None
    addend = _ADDENDS.get(name)
    operands = list(tensors_in(value for index, value in enumerate(values) if index != addend))
    if len(operands) < 2 or any(storage_of(operand) in transforms for operand in operands):
        return None
    activations, *others = operands
    integer_weight = all(_is_integer(other) for other in others)
    return Product(
        operation=str(func),
        integer_weight=integer_weight,
        activation_bits=_integer_bits(activations),
        dtype=_dtype(activations),
        operands=_storages(others),
        opaque=False,
    )


def _is_integer(tensor: Tensor) -> bool:
    """Whether all values are integers of 8 bits, a zero point of as many subtracted or not, whatever carries them."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor == tensor.round()).all()) and bool((tensor.abs() <= 255).all())


def _integer_bits(tensor: Tensor) -> int | None:
    """The fewest bits of activations that hold all values; None if they are no integers, or larger."""
    if tensor.is_floating_point() and not bool((tensor == tensor.round()).all()):
        return None
    largest = int(tensor.abs().max()) if tensor.numel() else 0
    return next((bits for bits, limit in _ACTIVATIONS.items() if largest <= limit), None)


def _storages(tensors: Sequence[Tensor]) -> dict[int, int]:
    return {address: tensor.untyped_storage().nbytes() for tensor in tensors if (address := storage_of(tensor))}


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
