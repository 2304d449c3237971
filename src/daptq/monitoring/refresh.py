"""Gain and shift at the interfaces, refreshed from a stream of the running policy, put into its weights and taken out.

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
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.closed_loop.interface_stream import EpisodeStream
from daptq.compensation.csrc import gain_and_shift
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold
from daptq.interfaces.map_class import MapClass, rotary_matrix
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.numerics.moments import Moments
from daptq.packing.checkpoint import replace_module
from daptq.policies.contract import Policy

__all__ = ["RefreshConfig", "Refreshed", "folds_for_refresh", "refreshed_maps"]


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


def refreshed_maps(
    reference: InterfaceReference,
    streams: Sequence[EpisodeStream],
    config: RefreshConfig | None = None,
    *,
    folds: Mapping[str, Fold] = MappingProxyType({}),
) -> dict[str, AffineMap]:
    """The maps, by interface, that give the streams the spread and mean of the reference, for the same instructions.

    Only channels that moved beyond chance are corrected, see `RefreshConfig.significance`.

    Args:
        reference: What is normal.
        streams: Recent episodes, all under the changed conditions.
        config: Limits.
        folds: Where maps will go: each is of the fold's class, a gain alone where that has no shift. By default a gain
            and a shift per channel.

    Raises:
        InvalidInputError: There is no stream, or one has an instruction that the reference does not know.
    """
    limits = config or RefreshConfig()
    if not streams:
        raise InvalidInputError("a refresh must have at least one episode, got none. Drive first.")
    for stream in streams:
        reference.require(stream.instruction)
    return {name: _refreshed(reference, name, streams, limits, folds.get(name)) for name in reference.interfaces}


def _refreshed(
    reference: InterfaceReference,
    name: str,
    streams: Sequence[EpisodeStream],
    limits: RefreshConfig,
    fold: Fold | None,
) -> AffineMap:
    """The map of one interface."""
    normal = reference.interfaces[name]
    counts: dict[str, int] = {}
    total = Moments(streams[0].moments[name].size)
    for stream in streams:
        counts[stream.instruction] = counts.get(stream.instruction, 0) + stream.moments[name].count
        total.merge(stream.moments[name])
    target = normal.mixed(counts)
    error = normal.spread * (1.0 / len(streams) + 1.0 / reference.episodes) ** 0.5
    moved = (total.mean - target.mean).abs() > limits.significance * error
    map_class: MapClass = "diagonal" if fold is None else fold.map_class
    if fold is not None and map_class == "rotary":
        return _of_pairs(target.std(), total.std(), moved, limits, fold.map_heads)
    mean, std = target.mean, target.std()
    epsilon = limits.epsilon * float(std.mean())
    gain, shift = gain_and_shift(mean, std, total.mean, total.std(), limits.gain_min, limits.gain_max, epsilon)
    gain, shift = torch.where(moved, gain, torch.ones_like(gain)), torch.where(moved, shift, torch.zeros_like(shift))
    return AffineMap(matrix=torch.diag(gain), shift=torch.zeros_like(shift) if map_class == "gain" else shift)


def _of_pairs(
    target: Float[Tensor, " d"], found: Float[Tensor, " d"], moved: Tensor, limits: RefreshConfig, heads: int
) -> AffineMap:
    """A gain for every pair of channels (i, i + D/2) of each head, where one of the two has moved."""
    target, found = (std.square().view(heads, 2, -1).sum(dim=1).sqrt() for std in (target, found))
    zero, epsilon = torch.zeros_like(target), limits.epsilon * float(target.mean())
    gain, _ = gain_and_shift(zero, target, zero, found, limits.gain_min, limits.gain_max, epsilon)
    gain = torch.where(moved.view(heads, 2, -1).any(dim=1), gain, torch.ones_like(gain))
    return AffineMap(matrix=rotary_matrix(gain, zero), shift=torch.zeros(2 * zero.numel(), dtype=torch.float64))


class Refreshed:
    """A policy that has absorbed a map at each of its interfaces, until `undo`.

    A map goes into the first fold that can take it with all its layers in floating point. Without such a fold it is
    applied to the input of the layers that read the representation.

    Args:
        policy: The policy; layers and constants of it are replaced.
        maps: The maps by interface, invertible, each of the class of its fold (`folds_for_refresh`).

    Attributes:
        maps: The maps.
        exact: Whether all of them were folded into weights; otherwise some are applied to inputs.

    Raises:
        InvalidInputError: An interface can take no such map.
    """

    def __init__(self, policy: Policy, maps: Mapping[str, AffineMap]) -> None:
        self.maps = dict(maps)
        self.exact = True
        self._policy = policy
        self._layers: list[tuple[str, nn.Module]] = []
        self._parameters: list[tuple[str, nn.Parameter]] = []
        for name, fold in folds_for_refresh(policy).items():
            self._apply(fold, maps[name])

    def undo(self) -> None:
        """Puts the layers and the constants back as they were, bit for bit."""
        for path, layer in reversed(self._layers):
            replace_module(self._policy, path, layer)
        for path, parameter in reversed(self._parameters):
            self._set(path, parameter)

    def _apply(self, fold: Fold, affine: AffineMap) -> None:
        layers = {layer: self._policy.get_submodule(layer) for layer in fold.layers}
        parameters = {path: self._policy.get_parameter(path) for path in fold.parameters}
        folded = fold.folded(affine, _tensors(layers, parameters))
        for path, layer in layers.items():
            if isinstance(layer, nn.Linear | BFloat16Linear):
                replace_module(self._policy, path, folded.layers[path].linear(layer.weight.device))
            else:
                self.exact = False
                replace_module(self._policy, path, _MappedInput(layer, affine))
        for path, before in parameters.items():
            self._set(path, nn.Parameter(folded.parameters[path].float().to(before), requires_grad=False))
        self._layers += layers.items()
        self._parameters += parameters.items()

    def _set(self, path: str, value: nn.Parameter) -> None:
        parent, _, leaf = path.rpartition(".")
        setattr(self._policy.get_submodule(parent), leaf, value)


def folds_for_refresh(policy: Policy) -> dict[str, Fold]:
    """The fold of every interface that takes a map while the policy runs.

    Raises:
        InvalidInputError: An interface has none.
    """

    def exact(fold: Fold) -> bool:
        return all(isinstance(policy.get_submodule(layer), nn.Linear | BFloat16Linear) for layer in fold.layers)

    found: dict[str, Fold] = {}
    for interface in policy.interfaces():
        in_weights = (fold for fold in interface.folds if exact(fold))
        before_inputs = (fold for fold in interface.folds if set(fold.readers) == set(fold.layers))
        fold = next(chain(in_weights, before_inputs), None)
        if fold is None:
            raise InvalidInputError(
                f"interface {interface.name} must have a fold whose layers are in floating point or read the "
                "representation to be refreshed, got none. Monitor it without a refresh."
            )
        found[interface.name] = fold
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
        return self.layer(x @ self.matrix.mT.to(x) + self.shift.to(x))
