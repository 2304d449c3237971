"""Gain and shift at an interface, refreshed from a stream of the running policy, put into the consumer and taken out.

The correction is the paper's per-channel one (arXiv 2604.11572, eq. 4-5), with the reference of a monitor in the place
of full precision and the stream in the place of the quantized policy. It folds exactly into a consumer in floating
point; before a quantized one, whose integers stay, it is applied to the input, at the cost of a small product.
Constants that the consumer reads in place of the representation are moved, so that it answers them as before.

Matching means and spreads undoes what a change of the scene adds to every state alike. It cannot undo what the change
does to single states, and it makes a changed task mix look like the old one if the streams hold other tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.closed_loop.interface_stream import EpisodeStream
from daptq.compensation.affine import AffineMap
from daptq.compensation.csrc import gain_and_shift
from daptq.compensation.folding import fold_constant, fold_into_consumer
from daptq.errors import InvalidInputError
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.numerics.moments import Moments
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Interface, Policy

__all__ = ["RefreshConfig", "Refreshed", "refreshed_map"]


@dataclass(frozen=True, kw_only=True)
class RefreshConfig:
    """Limits of the correction.

    Attributes:
        gain_min, gain_max: Limits of the per-channel gain; both 1 for a shift alone.
        epsilon: Added to the stream's standard deviation, in units of the mean one of the reference.
        significance: A channel is corrected where its mean over the streams differs from the reference's by more than
            this many standard errors over episodes; what may be chance is left alone. 0 corrects every channel.
    """

    gain_min: float = 0.5
    gain_max: float = 2.0
    epsilon: float = 1e-6
    significance: float = 3.0

    def __post_init__(self) -> None:
        if not 0.0 < self.gain_min <= 1.0 <= self.gain_max < float("inf") or self.epsilon < 0.0:
            raise InvalidInputError(
                f"a refresh must have 0 < gain_min <= 1 <= gain_max and epsilon >= 0, got {self.gain_min}, "
                f"{self.gain_max} and {self.epsilon}. Allow at least the gain 1."
            )
        if not self.significance >= 0.0:
            raise InvalidInputError(
                f"significance of a refresh must be at least 0, got {self.significance}. 3 standard errors are usual."
            )


def refreshed_map(
    reference: InterfaceReference, streams: Sequence[EpisodeStream], config: RefreshConfig | None = None
) -> AffineMap:
    """The diagonal map that gives the streams the mean and spread of the reference in the same mix of instructions.

    Only channels that moved beyond chance are corrected, see `RefreshConfig.significance`.

    Args:
        reference: What is normal.
        streams: Recent episodes, all under the changed conditions.
        config: Limits.

    Raises:
        InvalidInputError: There is no stream, or one has an instruction that the reference does not know.
    """
    limits = config or RefreshConfig()
    if not streams:
        raise InvalidInputError("a refresh must have at least one episode, got none. Drive first.")
    counts: dict[str, int] = {}
    total = Moments(streams[0].moments.size)
    for stream in streams:
        counts[stream.instruction] = counts.get(stream.instruction, 0) + stream.moments.count
        total.merge(stream.moments)
    target = reference.mixed(counts)
    mean, std = target.mean, target.std()
    epsilon = limits.epsilon * float(std.mean())
    gain, shift = gain_and_shift(mean, std, total.mean, total.std(), limits.gain_min, limits.gain_max, epsilon)
    error = reference.spread * (1.0 / len(streams) + 1.0 / reference.episodes) ** 0.5
    moved = (total.mean - mean).abs() > limits.significance * error
    gain, shift = torch.where(moved, gain, torch.ones_like(gain)), torch.where(moved, shift, torch.zeros_like(shift))
    return AffineMap(matrix=torch.diag(gain), shift=shift)


class Refreshed:
    """A policy whose consumer has absorbed a map, until `undo`.

    Args:
        policy: The policy; its consumer and constants are replaced.
        interface: Where the map belongs.
        affine: The map, invertible.

    Attributes:
        affine: The map.
        exact: Whether it was folded into weights; otherwise it is applied to the consumer's input.
    """

    def __init__(self, policy: Policy, interface: Interface, affine: AffineMap) -> None:
        self.affine = affine
        self._policy = policy
        self._consumer = interface.consumer
        self._before = policy.get_submodule(interface.consumer)
        self._constants = {path: policy.get_parameter(path) for path in interface.constants}
        self.exact = isinstance(self._before, nn.Linear | BFloat16Linear)
        replace_module(policy, interface.consumer, _folded(self._before, affine))
        for path, constant in self._constants.items():
            moved = fold_constant(constant.cpu(), affine).to(constant)
            self._set(path, nn.Parameter(moved, requires_grad=False))

    def undo(self) -> None:
        """Puts the consumer and the constants back as they were, bit for bit."""
        replace_module(self._policy, self._consumer, self._before)
        for path, constant in self._constants.items():
            self._set(path, constant)

    def _set(self, path: str, value: nn.Parameter) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(self._policy.get_submodule(parent), leaf, value)


def _folded(consumer: nn.Module, affine: AffineMap) -> nn.Module:
    """The consumer with the map inside."""
    if not isinstance(consumer, nn.Linear | BFloat16Linear):
        return _MappedInput(consumer, affine)
    bias = None if consumer.bias is None else consumer.bias.detach().cpu()
    weight, new_bias = fold_into_consumer(consumer.weight.detach().cpu(), bias, affine)
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight = nn.Parameter(weight.to(consumer.weight.device), requires_grad=False)
    layer.bias = nn.Parameter(new_bias.to(consumer.weight.device), requires_grad=False)
    return layer


class _MappedInput(nn.Module):
    """A quantized linear layer that reads M x + d; M is diagonal or not."""

    matrix: Tensor
    shift: Tensor

    def __init__(self, layer: nn.Module, affine: AffineMap) -> None:
        super().__init__()
        self.layer = layer
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("matrix", affine.matrix.float(), persistent=False)
        self.register_buffer("shift", affine.shift.float(), persistent=False)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        mapped: Tensor = self.layer(x @ self.matrix.mT.to(x) + self.shift.to(x))
        return mapped
