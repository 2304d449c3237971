"""Gain and shift at an interface, refreshed from a stream of the running policy, put into its weights and taken out.

The correction is the paper's per-channel one (arXiv 2604.11572, eq. 4-5), with the reference of a monitor in the place
of full precision and the stream in the place of the quantized policy. Where a fold of the interface has all its layers
in floating point, it folds exactly; otherwise it is applied to the input of the layers that read the representation, at
the cost of a small product. Constants that these read in place of the representation are moved, so that they answer
them as before.

Matching means and spreads undoes what a change of the scene adds to every state alike. It cannot undo what the change
does to single states, and it makes a changed task mix look like the old one if the streams hold other tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.closed_loop.interface_stream import EpisodeStream
from daptq.compensation.csrc import gain_and_shift
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, FoldedLayer, Interface
from daptq.interfaces.map_class import belongs
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.numerics.moments import Moments
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Policy

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
    """A policy that has absorbed a map at one interface, until `undo`.

    The map goes into the first fold that can take it with all its layers in floating point. Without such a fold it is
    applied to the input of the layers that read the representation.

    Args:
        policy: The policy; layers and constants of it are replaced.
        interface: Where the map belongs.
        affine: The map, invertible.

    Attributes:
        affine: The map.
        exact: Whether it was folded into weights; otherwise it is applied to inputs.

    Raises:
        InvalidInputError: The interface can take no such map.
    """

    def __init__(self, policy: Policy, interface: Interface, affine: AffineMap) -> None:
        self.affine = affine
        self._policy = policy
        fold = _fold_for(policy, interface, affine)
        self._layers = {layer: policy.get_submodule(layer) for layer in fold.layers}
        self._parameters = {path: policy.get_parameter(path) for path in fold.parameters}
        self.exact = all(isinstance(layer, nn.Linear | BFloat16Linear) for layer in self._layers.values())
        folded = fold.folded(affine, _tensors(self._layers, self._parameters))
        for path, layer in self._layers.items():
            if isinstance(layer, nn.Linear | BFloat16Linear):
                replace_module(policy, path, _linear(folded.layers[path], layer))
            else:
                replace_module(policy, path, _MappedInput(layer, affine))
        for path, before in self._parameters.items():
            self._set(path, nn.Parameter(folded.parameters[path].float().to(before), requires_grad=False))

    def undo(self) -> None:
        """Puts the layers and the constants back as they were, bit for bit."""
        for path, layer in self._layers.items():
            replace_module(self._policy, path, layer)
        for path, parameter in self._parameters.items():
            self._set(path, parameter)

    def _set(self, path: str, value: nn.Parameter) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(self._policy.get_submodule(parent), leaf, value)


def _fold_for(policy: Policy, interface: Interface, affine: AffineMap) -> Fold:
    """The fold that takes a map of a running policy."""
    able = [fold for fold in interface.folds if belongs(affine, fold.map_class, fold.map_heads)]

    def exact(fold: Fold) -> bool:
        return all(isinstance(policy.get_submodule(layer), nn.Linear | BFloat16Linear) for layer in fold.layers)

    in_weights = (fold for fold in able if exact(fold))
    before_inputs = (fold for fold in able if set(fold.readers) == set(fold.layers))
    found = next(chain(in_weights, before_inputs), None)
    if found is None:
        raise InvalidInputError(
            f"interface {interface.name} must have a fold for this map whose layers are in floating point or read the "
            "representation, got none. Monitor it without a refresh."
        )
    return found


def _tensors(layers: Mapping[str, nn.Module], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Weights by name, on the CPU; of a layer that is not in floating point none of its rows."""
    tensors: dict[str, Tensor] = {path: parameter.detach().cpu() for path, parameter in parameters.items()}
    for path, layer in layers.items():
        if isinstance(layer, nn.Linear | BFloat16Linear):
            held = layer.resident_weight if isinstance(layer, BFloat16Linear) else layer.weight
            tensors[f"{path}.weight"] = held.detach().cpu()
            tensors |= {} if layer.bias is None else {f"{path}.bias": layer.bias.detach().cpu()}
        else:
            tensors[f"{path}.weight"] = torch.zeros(0, int(layer.in_features))  # type: ignore[arg-type]
    return tensors


def _linear(new: FoldedLayer, before: nn.Linear | BFloat16Linear) -> nn.Linear:
    """The layer with the map inside."""
    device = before.weight.device
    with torch.device("meta"):
        layer = nn.Linear(new.weight.shape[1], new.weight.shape[0], bias=new.bias is not None)
    layer.weight = nn.Parameter(new.weight.float().to(device), requires_grad=False)
    if new.bias is not None:
        layer.bias = nn.Parameter(new.bias.float().to(device), requires_grad=False)
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
