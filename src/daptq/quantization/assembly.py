"""Builds the policy that a bit plan describes, sharing every unquantized tensor with the full-precision one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.allocation.plan import BitPlan
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Policy
from daptq.policies.streaming import stream
from daptq.quantization.allocation import float_linear

__all__ = ["assemble", "share_tensors"]


def share_tensors(policy: Policy) -> Policy:
    """A policy of the same structure on the same parameters and buffers, in which modules can be replaced."""
    copy = type(policy).from_config(policy.config(), policy.files(), empty=True)
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        _assign(copy, path, nn.Parameter(parameter.detach(), requires_grad=False))
    for path, buffer in policy.named_buffers(remove_duplicate=False):
        _assign(copy, path, buffer)
    if policy.weights is not None:
        stream(copy, policy.weights)
    return copy.eval()


class BuiltLinear(nn.Module):
    """A linear layer that is built anew for each call, so that it needs memory only while it multiplies."""

    def __init__(self, size: nn.Linear, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.in_features, self.out_features = size.in_features, size.out_features
        self._build = build

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """What the built layer answers."""
        return self._build()(x)


def assemble(policy: Policy, plan: BitPlan, layers: Mapping[str, QuantizedLinear]) -> Policy:
    """The quantized policy as it runs: `layers` where the plan says so, every other linear layer in bfloat16.

    Where the policy is streamed, so are these: a layer is in memory only while it multiplies.
    """
    copy = share_tensors(policy)
    if policy.weights is not None:
        stream(copy, policy.weights.rounded())
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        # A checkpoint holds these in bfloat16: what is measured is what will run.
        if path.rpartition(".")[0] not in plan and not parameter.is_meta:
            rounded = parameter.detach().to(torch.bfloat16).to(parameter.dtype)
            _assign(copy, path, nn.Parameter(rounded, requires_grad=False))
    tensors = policy.tensors()

    def build(name: str) -> nn.Module:
        if plan[name].kept:
            weight, bias = tensors[f"{name}.weight"], tensors.get(f"{name}.bias")
            return BFloat16Linear(weight, bias, compute_dtype=policy.compute_dtype)
        layer = layers[name]
        layer.follow(copy.denoising_step)
        layer.compute_dtype = policy.compute_dtype
        return layer

    for name in (decision.name for decision in plan.layers):
        linear = float_linear(policy, name)
        streamed = linear.weight.is_meta
        replace_module(copy, name, BuiltLinear(linear, partial(build, name)) if streamed else build(name))
    return copy


def _assign(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Puts a tensor where `path` says."""
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, tensor)
