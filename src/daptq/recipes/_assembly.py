"""Builds the policy that a bit plan describes, sharing every unquantized tensor with the full-precision one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daptq.allocation._plan import BitPlan
from daptq.kernels.linear._bfloat16 import BFloat16Linear
from daptq.kernels.linear._layer import QuantizedLinear
from daptq.packing.checkpoint import replace_module
from daptq.policies._base import Policy
from daptq.recipes._allocation import float_linear

__all__ = ["assemble", "share_tensors"]


def share_tensors(policy: Policy) -> Policy:
    """A policy of the same structure on the same parameters and buffers, in which modules can be replaced."""
    copy = type(policy).from_config(policy.config(), policy.files(), empty=True)
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        _assign(copy, path, nn.Parameter(parameter.detach(), requires_grad=False))
    for path, buffer in policy.named_buffers(remove_duplicate=False):
        _assign(copy, path, buffer)
    return copy.eval()


def assemble(policy: Policy, plan: BitPlan, layers: dict[str, QuantizedLinear]) -> Policy:
    """The quantized policy as it runs: `layers` where the plan says so, every other linear layer in bfloat16."""
    copy = share_tensors(policy)
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        # A checkpoint holds these in bfloat16: what is measured is what will run.
        if path.rpartition(".")[0] not in plan:
            rounded = parameter.detach().to(torch.bfloat16).to(parameter.dtype)
            _assign(copy, path, nn.Parameter(rounded, requires_grad=False))
    for decision in plan.layers:
        if decision.kept:
            replace_module(copy, decision.name, BFloat16Linear.from_linear(float_linear(policy, decision.name)))
        else:
            layers[decision.name].follow(copy.denoising_step)
            replace_module(copy, decision.name, layers[decision.name])
    return copy


def _assign(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Puts a tensor where `path` says."""
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, tensor)
