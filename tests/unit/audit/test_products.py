"""What counts as a product of integers, of which precision, and which memory belongs to a module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.audit.products import Product, product, storage_of
from daptq.audit.resident import resident
from daptq.layers.quantized_linear import QuantizedLinear

ACTIVATIONS = torch.tensor([[127.0, -3.0, 0.0], [1.0, 2.0, -127.0]])
WEIGHT = torch.tensor([[7.0, -8.0, 1.0], [0.0, 3.0, 2.0]])


class Spy(TorchDispatchMode):
    """Keeps the products that are dispatched."""

    def __init__(self, transforms: tuple[int, ...] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.products: list[Product] = []
        self.transforms = transforms

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = product(func, args, kwargs or {}, self.transforms)
        self.products += [] if found is None else [found]
        return func(*args, **(kwargs or {}))


def products_of(call: Callable[[], object], *transforms: Tensor) -> list[Product]:
    """The products of a call."""
    spy = Spy(tuple(map(storage_of, transforms)))
    with torch.inference_mode(), spy:
        call()
    return spy.products


@pytest.mark.parametrize(
    ("x", "weight", "precision", "integer_weight"),
    [
        (ACTIVATIONS, WEIGHT, "int8", True),
        (ACTIVATIONS.clamp(-7, 7), WEIGHT, "int4", True),
        (ACTIVATIONS.to(torch.int32), WEIGHT.to(torch.int32), "int8", True),
        (ACTIVATIONS * 2, WEIGHT, "float32", True),
        (ACTIVATIONS + 0.5, WEIGHT, "float32", True),
        (ACTIVATIONS, WEIGHT * 0.1, "int8", False),
        (ACTIVATIONS * torch.nan, WEIGHT, "float32", True),
        (ACTIVATIONS, WEIGHT * 100, "int8", False),
        (ACTIVATIONS.double() / 3, WEIGHT.double() / 3, "float64", False),
    ],
)
def test_a_product_counts_by_its_operands(x: Tensor, weight: Tensor, precision: str, integer_weight: bool) -> None:
    calls: list[Callable[[], object]] = [lambda: x @ weight.t(), lambda: torch.mm(x, weight.t())]
    if x.is_floating_point():
        # The bias is added, not multiplied, whatever its values are.
        bias = torch.full((2,), 0.3, dtype=x.dtype)
        calls += [lambda: nn.functional.linear(x, weight, bias), lambda: torch.addmm(bias, x, weight.t())]
    for call in calls:
        (found,) = products_of(call)
        assert (found.precision, found.integer_weight) == (precision, integer_weight)
        assert found.operands == {storage_of(weight): weight.untyped_storage().nbytes()}


def test_what_is_no_product_of_the_layer_is_not_counted() -> None:
    assert products_of(lambda: (ACTIVATIONS * 0.1).round().clamp(-7, 7).abs().amax(dim=1)) == []
    rotation = torch.eye(3)
    assert products_of(lambda: ACTIVATIONS @ rotation, rotation) == []
    assert len(products_of(lambda: ACTIVATIONS @ rotation)) == 1


@pytest.mark.parametrize("activation_bits", [4, 8])
def test_a_kernel_is_known_by_the_integers_that_it_gets(activation_bits: int) -> None:
    integers = WEIGHT.to(torch.int8)
    scale = torch.ones(2, 1)
    for backend in ("reference", "float32-carried"):
        layer = QuantizedLinear.from_integers(integers, scale, activation_bits=activation_bits, backend=backend)
        (found,) = products_of(partial(layer, ACTIVATIONS / 3))
        assert (found.precision, found.integer_weight) == (f"int{activation_bits}", True)


class Holder:
    """Holds a tensor and answers with it."""

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def answer(self) -> Tensor:
        return self.held


def closing_over(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor


def with_default(tensor: Tensor) -> Callable[[], Tensor]:
    def answer(held: Tensor = tensor) -> Tensor:
        return held

    return answer


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "containers": lambda tensor: [{"deep": ({1: tensor},)}],
    "closure": closing_over,
    "default": with_default,
    "partial": lambda tensor: partial(torch.add, 1, other=tensor),
    "object": Holder,
    "method": lambda tensor: Holder(tensor).answer,
    "builtin method": lambda tensor: tensor.add,
}


@pytest.mark.parametrize("holder", list(HOLDERS))
def test_everything_that_a_module_leads_to_is_found(holder: str) -> None:
    tensor = torch.ones(4)
    module = nn.Sequential(nn.Linear(3, 5))
    module.register_buffer("hidden", torch.zeros(7), persistent=False)
    assert resident(module).bytes == 4 * (15 + 5 + 7)
    object.__setattr__(module, "kept", HOLDERS[holder](tensor))
    found = resident(module)
    assert found.tensors[storage_of(tensor)][1] is tensor
    assert found.bytes == 4 * (15 + 5 + 7 + 4)
    assert {path for path, _ in found.tensors.values()} > {"0.weight", "0.bias", "hidden"}
    assert found.opaque == ()


def test_modules_that_are_no_children_are_not_entered() -> None:
    module, other = nn.Linear(2, 2), nn.Linear(3, 3)
    object.__setattr__(module, "other", [other])
    assert resident(module).bytes == 4 * (4 + 2)


def test_a_view_counts_as_the_memory_that_it_keeps() -> None:
    module = nn.Module()
    large = torch.zeros(1000)
    module.register_buffer("view", large[:10])
    module.register_buffer("again", large[5:])
    assert resident(module).bytes == 4000
