"""The rules of the audit: what is a difference between the plan of a layer and what was seen of it.

Each rule looks at one thing and names one kind of difference. How the facts were gathered, the rules do not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from daptq.audit.layer_plan import LayerPlan
from daptq.audit.recorder import Calls
from daptq.audit.resident import Resident, resident
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.grid import BFLOAT16
from daptq.numerics.rotation import rotate
from daptq.policies.contract import Policy

__all__ = ["Difference", "Kind", "differences_of", "plan_differences"]

Kind = Literal["plan", "not called", "bypassed", "replaced", "arithmetic", "input", "result", "weight", "float copy"]

# Floating-point tensors that a quantized layer has in addition to its weight, and what they may be no larger than.
_SMALL = ("weight_scale", "bias", "activation_scale", "input_scale", "_hadamard")
# Relative distance below which a tensor is a copy of a weight; one that has nothing to do with it is at 1 or more.
_COPY = 0.5


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing that is not as planned.

    Attributes:
        layer: Module path.
        kind: What differs: ``plan`` (the checkpoint contradicts itself or the policy), ``not called``, ``bypassed``
            (its memory was read while it was not running), ``replaced`` (another module took its place during the
            step), ``arithmetic`` (the product), ``input`` (precision of the activations), ``result`` (not the
            reference's), ``weight`` (what is resident), ``float copy`` (of the weight).
        reason: A sentence.
    """

    layer: str
    kind: Kind
    reason: str


def plan_differences(
    plan: Mapping[str, LayerPlan], policy: Policy, modules: Mapping[str, nn.Module | None]
) -> list[Difference]:
    """Where the checkpoint contradicts itself or does not fit the policy."""
    roles = policy.linear_layers()
    found = []
    for name, layer in plan.items():
        if modules[name] is None:
            found.append(_differs(name, "plan", "must be a module of the policy, got none at this path"))
        elif name not in roles:
            found.append(_differs(name, "plan", "must be a linear layer of the policy, got a module that is none"))
        if layer.decided_bits not in (None, layer.num_bits):
            reason = f"must be stored as the bit plan says, {layer.decided_bits} bits, got {layer.num_bits}"
            found.append(_differs(name, "plan", reason))
    return found


def differences_of(
    plan: Mapping[str, LayerPlan],
    policy: Policy,
    modules: Mapping[str, nn.Module],
    held: Mapping[str, Resident],
    seen: Mapping[str, Calls],
    results: Mapping[str, Counter[str]],
) -> list[Difference]:
    """What differs between the plan of the layers and what they did and hold.

    Args:
        plan: The plan by module path.
        policy: The policy after the step.
        modules: The modules that were watched.
        held: What each of them leads to after the step.
        seen: What was seen of each.
        results: How many calls had the result ``equal`` to the reference's, an ``other`` one, or another ``shape``.
    """
    found: list[Difference] = []
    for name, module in modules.items():
        layer, calls = plan[name], seen[name]
        found += _calling(policy, module, name, calls)
        if calls.calls:
            found += _products(layer, calls)
            found += _result(layer, results[name])
        found += _weight(layer, module)
        found += _copies(layer, held[name])
    return found + _copies_elsewhere(plan, policy, held)


def _calling(policy: Policy, module: nn.Module, name: str, calls: Calls) -> Iterator[Difference]:
    try:
        present = policy.get_submodule(name) is module
    except AttributeError:
        present = False
    if not present:
        yield _differs(name, "replaced", "must be the module that was watched, got another one after the step")
    if calls.elsewhere:
        listed = ", ".join(sorted(calls.elsewhere))
        yield _differs(name, "bypassed", f"must read its weight in its own calls, got it read elsewhere by {listed}")
    if not calls.calls:
        yield _differs(name, "not called", "must be called in a control step, got no call")


def _products(layer: LayerPlan, calls: Calls) -> Iterator[Difference]:
    count = sum(calls.products.values())
    if count < calls.calls:
        reason = f"must execute a product in each of {calls.calls} calls, got {count} that torch dispatched"
        yield _differs(layer.name, "arithmetic", reason)
    if layer.activation_bits is None or not layer.integer_activations:
        yield from _float_products(layer, calls)
        return
    for product in calls.products:
        if not product.integer_weight:
            reason = (
                f"must multiply integers of {layer.num_bits} bits, got {product.operation} on floating-point weights"
            )
            yield _differs(layer.name, "arithmetic", reason)
        if product.activation_bits is None or product.activation_bits > layer.activation_bits:
            reason = f"must be activations of {layer.activation_bits} bits, got {product.precision}"
            yield _differs(layer.name, "input", f"{reason} in {product.operation}")


def _float_products(layer: LayerPlan, calls: Calls) -> Iterator[Difference]:
    """Products of a layer whose activations are planned in floating point.

    An input may happen to be integers, as the embedding of timestep 0 is: only a layer that sees nothing else differs.
    Whether a low-bit weight is multiplied as it is or as a copy in floating point is the kernel's choice.
    """
    kept = layer.activation_bits is None
    integers = all(product.activation_bits is not None for product in calls.products)
    for product in calls.products:
        if integers or (kept and product.integer_weight):
            reason = f"must be a floating-point product, got {product.operation} on {product.precision}"
            yield _differs(layer.name, "arithmetic" if kept else "input", reason)


def _result(layer: LayerPlan, results: Counter[str]) -> Iterator[Difference]:
    wrong = results["other"] + results["shape"]
    if wrong:
        within = "that of the checkpoint's weight within rounding"
        exact = "the reference's bit for bit" if layer.integer_activations else within
        yield _differs(layer.name, "result", f"must be {exact}, got another one in {wrong} of {results.total()} calls")


def _weight(layer: LayerPlan, module: nn.Module) -> Iterator[Difference]:
    """Whether the weight in memory is the checkpoint's."""
    if layer.num_bits == BFLOAT16:
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        if isinstance(module, QuantizedLinear) or not isinstance(weight, Tensor):
            yield _differs(layer.name, "weight", f"must be a bfloat16 weight, got {type(module).__name__}")
        elif weight.dtype != torch.bfloat16:
            yield _differs(layer.name, "weight", f"must be resident in bfloat16, got {_name(weight.dtype)}")
        elif not torch.equal(weight, layer.tensors["weight"]):
            yield _differs(layer.name, "weight", "must have the checkpoint's values, got others")
        return
    if not isinstance(module, QuantizedLinear):
        weight = getattr(module, "weight", None)
        got = f"{type(module).__name__} with {_name(weight.dtype)}" if isinstance(weight, Tensor) else "no weight"
        yield _differs(layer.name, "weight", f"must be resident as packed integers of {layer.num_bits} bits, got {got}")
        return
    packed = module.packed_weight()
    if packed.num_bits != layer.num_bits:
        reason = f"must be resident in {layer.num_bits} bits, got {packed.num_bits}"
        yield _differs(layer.name, "weight", reason)
    elif not torch.equal(packed.packed, layer.tensors["weight_packed"]):
        yield _differs(layer.name, "weight", "must hold the checkpoint's integers, got others")
    for key in ("weight_scale", "weight_zero_point", "bias", "activation_scale", "input_scale"):
        expected, present = layer.tensors.get(key), getattr(module, key)
        same = (
            torch.equal(expected, present)
            if isinstance(expected, Tensor) and present is not None
            else (expected is present)
        )
        if not same:
            yield _differs(layer.name, "weight", f"must have the checkpoint's {key}, got another one")


def _copies(layer: LayerPlan, held: Resident) -> Iterator[Difference]:
    """Floating-point tensors of the weight's size that the layer itself leads to."""
    size = layer.shape[0] * layer.shape[1]
    for path, tensor in held.tensors.values():
        own = path == "weight" if layer.num_bits == BFLOAT16 else path in _SMALL
        if tensor.is_floating_point() and tensor.numel() >= size and not own:
            reason = f"must keep no floating-point copy of its weight, got {_name(tensor.dtype)} at {path!r}"
            yield _differs(layer.name, "float copy", reason)


def _copies_elsewhere(plan: Mapping[str, LayerPlan], policy: Policy, held: Mapping[str, Resident]) -> list[Difference]:
    """Floating-point tensors with the values of a layer's weight that the policy holds outside of its layers."""
    owned = {address for layer in held.values() for address in layer.tensors}
    others: dict[int, list[tuple[str, Tensor]]] = {}
    for address, (path, tensor) in resident(policy).tensors.items():
        if address not in owned and tensor.is_floating_point():
            others.setdefault(tensor.numel(), []).append((path, tensor))
    found = []
    for name, layer in plan.items():
        rows, columns = layer.shape
        for path, tensor in others.get(rows * columns, []):
            values = tensor.detach().to(torch.float32)
            views = [values.reshape(rows, columns), values.reshape(columns, rows).t()]
            weight = _values(layer)
            if min(float((view - weight).norm()) for view in views) < _COPY * float(weight.norm()):
                reason = f"must have no floating-point copy of its weight, got {_name(tensor.dtype)} at {path!r}"
                found.append(_differs(name, "float copy", reason))
    return found


def _values(layer: LayerPlan) -> Tensor:
    """The weight that a layer of the checkpoint stands for, float32 (out, in)."""
    if layer.num_bits == BFLOAT16:
        return layer.tensors["weight"].to(torch.float32)
    weight = layer.weight().to(torch.float32)
    if layer.rotation_block:
        weight = rotate(weight, layer.rotation_block)
    scale = layer.tensors.get("input_scale")
    return weight if scale is None else weight * scale


def _differs(layer: str, kind: Kind, reason: str) -> Difference:
    return Difference(layer=layer, kind=kind, reason=reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
