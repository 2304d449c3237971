"""The public conformance suite of a fold: its contract, checked in a network that its author brings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.errors import CheckFailedError, InvalidInputError, require_check
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Treatment
from daptq.interfaces.map_class import MapClass, block_diagonal, rotary_matrix

__all__ = ["Answer", "Change", "check_fold", "example_map", "with_folded"]

Network = TypeVar("Network", bound=nn.Module)
Change = Callable[[Float[Tensor, "... channels"]], Float[Tensor, "... channels"]]
Answer = Callable[[Network, Change], Tensor]

# Relative to the root mean square of the answer: rounding of float64, and what a map has to move to be noticed.
EXACT, MOVED = 1e-10, 1e-3


def check_fold(fold: Fold, network: Network, answer: Answer[Network], *, channels: int) -> None:
    """Checks that a fold keeps the contract of `Fold`: the folded network answers as if the map were in between.

    Args:
        fold: The fold.
        network: A float64 network with the modules that the fold names; it is left as it is.
        answer: Runs such a network on inputs of its own, the same ones at every call, with the representation z
            replaced by ``change(z)``, and returns what comes out.
        channels: Channels of the representation.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    before = {path: value.detach().clone() for path, value in network.named_parameters()}
    require_check(all(value.dtype == torch.float64 for value in before.values()), "the network must be float64")
    affine = example_map(fold.map_class, channels, fold.map_heads)
    with torch.no_grad():
        plain, expected = answer(network, _as_it_is), answer(network, affine)
        moved = _error(plain, expected)
        require_check(moved > MOVED, f"the map must move the answer by more than {MOVED}, moved by {moved:.3g}")
        off = _error(answer(with_folded(network, fold, affine), _as_it_is), expected)
        require_check(off <= EXACT, f"the folded network must answer as with the explicit map, differs by {off:.3g}")
        identity = with_folded(network, fold, AffineMap.identity(channels))
        off = _error(answer(identity, _as_it_is), plain)
        require_check(off <= EXACT, f"the identity must change nothing, moved the answer by {off:.3g}")
    unchanged = all(torch.equal(value, before[path]) for path, value in network.named_parameters())
    require_check(unchanged, "the weights that a fold is given must stay as they are")
    _check_words(fold, network, channels)
    _check_refusals(fold, before, channels)


def example_map(map_class: MapClass, channels: int, heads: int = 1, *, seed: int = 0) -> AffineMap:
    """A random map of a class that is far from the identity and from every narrower class, and well conditioned.

    Args:
        map_class: The class.
        channels: Channels of the representation.
        heads: Number of heads that share the channels; counts for ``"affine-per-head"`` and ``"rotary"``.
        seed: Another seed gives another map.

    Raises:
        InvalidInputError: The channels cannot be shared by so many heads.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    shift = normal(channels) if map_class in ("affine", "affine-per-head", "diagonal") else torch.zeros(channels)
    if map_class == "rotary":
        angle, length = normal(heads, channels // heads // 2), torch.exp(0.3 * normal(heads, channels // heads // 2))
        matrix = rotary_matrix(length * angle.cos(), length * angle.sin())
    elif map_class in ("diagonal", "gain"):
        matrix = torch.diag(torch.exp(0.5 * normal(channels)))
    else:
        count = heads if map_class == "affine-per-head" else 1
        size = channels // count
        # Orthogonal times a symmetric factor: the condition number is at most that of the factor.
        factors = [
            torch.linalg.qr(normal(size, size)).Q @ torch.diag(torch.exp(0.3 * normal(size))) for _ in range(count)
        ]
        matrix = block_diagonal(torch.stack(factors))
    return AffineMap(matrix=matrix, shift=shift.to(torch.float64))


def with_folded(network: Network, fold: Fold, affine: AffineMap) -> Network:
    """A copy of a network whose weights have taken in a map, in the dtype that they had.

    Args:
        network: A network with the modules that the fold names; it is left as it is.
        fold: The fold.
        affine: The map, of the fold's class.

    Raises:
        CheckFailedError: The fold changes others than it names, or what it says of a changed layer does not hold.
        InvalidInputError: The map does not fit the weights.
    """
    folded = fold.folded(affine, dict(network.named_parameters(remove_duplicate=False)))
    for what, given, named in (
        ("layers", folded.layers, fold.layers),
        ("parameters", folded.parameters, fold.parameters),
    ):
        require_check(
            tuple(given) == named, f"a fold must change the {what} {list(named)} that it names, got {list(given)}"
        )
    changed = copy.deepcopy(network)
    for path, layer in folded.layers.items():
        linear = changed.get_submodule(path)
        assert isinstance(linear, nn.Linear), "a fold names linear layers"
        weight = linear.weight.detach()
        restored = _error(layer.restore(layer.weight), weight)
        require_check(
            restored <= EXACT, f"the folded weight of {path} must be restored to the old one, off by {restored:.3g}"
        )
        if layer.gain is not None:
            require_check(bool((layer.gain > 0).all()), f"the gain of {path} must be positive")
            off = _error(layer.gain[:, None] * weight, layer.weight)
            require_check(off <= EXACT, f"the gain of {path} must give its folded weight, off by {off:.3g}")
        linear.weight = nn.Parameter(layer.weight.to(weight.dtype))
        linear.register_parameter("bias", None if layer.bias is None else nn.Parameter(layer.bias.to(weight.dtype)))
    for path, value in folded.parameters.items():
        parent, _, leaf = path.rpartition(".")
        setattr(changed.get_submodule(parent), leaf, nn.Parameter(value.to(network.get_parameter(path).dtype)))
    return changed


def _check_words(fold: Fold, network: nn.Module, channels: int) -> None:
    require_check(set(fold.readers) | set(fold.recorded_inputs) <= set(fold.layers), "readers must be among the layers")
    for layer in fold.layers:
        linear = network.get_submodule(layer)
        assert isinstance(linear, nn.Linear)
        width = linear.in_features if layer in fold.recorded_inputs else channels
        read = fold.read_by(layer, torch.ones(3, width, dtype=torch.float64))
        fits = read is None or tuple(read.shape) == (3, linear.in_features)
        require_check(fits, f"what {layer} reads must have its {linear.in_features} inputs")
    for treatment in get_args(Treatment):
        name = fold.kind(frozenset([treatment]))
        require_check(bool(name.strip()), f"the kind of a fold whose layers are {treatment} must say something")


def _check_refusals(fold: Fold, tensors: Mapping[str, Tensor], channels: int) -> None:
    heads = fold.map_heads
    wrong = {"a map of other channels": example_map(fold.map_class, 2 * channels, heads)}
    if fold.map_class != "affine":
        wrong["a map beyond the class"] = example_map("affine", channels)
    for what, affine in wrong.items():
        try:
            fold.folded(affine, tensors)
        except InvalidInputError:
            continue
        raise CheckFailedError(f"{what} must be refused with an InvalidInputError.")


def _as_it_is(z: Float[Tensor, "... channels"]) -> Float[Tensor, "... channels"]:
    return z


def _error(given: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the root mean square."""
    return float((given - expected).abs().max() / expected.square().mean().sqrt())
