"""The contract of a perception-to-action interface: where its representation is read, and where a map of it can go.

A *fold* (one file beside this one, which names it ``FOLD``) puts a map z -> M z + d of the representation into weights,
so that nothing is added when the policy runs. It states the class of maps that it can take and does its own arithmetic
in float64: with the folded weights a policy answers the unmapped representation as it would answer the mapped one with
the old weights. The module knows neither policies nor how weights are rounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass

__all__ = [
    "Fold",
    "Folded",
    "FoldedLayer",
    "Interface",
    "Side",
    "Tap",
    "Treatment",
    "bias_of",
    "require_channels",
    "weight_of",
]

Side = Literal["consumer", "producer"]
Treatment = Literal["float", "rescaled", "rounded"]


@dataclass(frozen=True)
class Tap:
    """Where the representation is read while the policy runs.

    Attributes:
        module: Module path.
        side: Whether the module's first input or its output is the representation.
        heads: 0: the tensor is (batch, …, channels), and its last axis is one vector of the representation. Otherwise
            the tensor is (batch, heads, rows, channels), and a vector is what one row holds, the heads side by
            side.
    """

    module: str
    side: Literal["input", "output"] = "input"
    heads: int = 0

    def __post_init__(self) -> None:
        if self.side not in ("input", "output"):
            raise InvalidInputError(f"side of a tap must be 'input' or 'output', got {self.side!r}. Choose one.")
        if self.heads < 0:
            raise InvalidInputError(f"heads of a tap must be at least 0, got {self.heads}. 0 means no heads.")

    def rows(self, tensor: Float[Tensor, "batch ..."], states: int) -> Float[Tensor, "states rows d"] | None:
        """The representation of each state.

        Where the module reads constants as well (the unconditional vector of guidance), these follow the states along
        the first axis, or come in a call of their own with fewer entries.

        Args:
            tensor: What passes the tap in one call.
            states: Number of states in the batch.

        Returns:
            A view where possible; None for a call that reads constants alone.

        Raises:
            InvalidInputError: The tensor does not have the axis of the heads.
        """
        if len(tensor) < states:
            return None
        own = tensor[:states]
        if self.heads:
            if own.dim() != 4 or own.shape[1] != self.heads:
                raise InvalidInputError(
                    f"what passes {self.module} must have shape (batch, {self.heads}, rows, channels), got "
                    f"{tuple(tensor.shape)}. Correct the heads of the tap."
                )
            own = own.transpose(1, 2).flatten(2)
        return own.reshape(states, -1, own.shape[-1])

    def changed(
        self,
        tensor: Float[Tensor, "batch ..."],
        states: int,
        change: Callable[[Float[Tensor, "states rows d"]], Float[Tensor, "states rows d"]],
    ) -> Float[Tensor, "batch ..."]:
        """The tensor with another representation of each state in it; what belongs to no state stays.

        Args:
            tensor: What passes the tap in one call.
            states: Number of states in the batch.
            change: Gets `rows`, and answers others of their shape.

        Raises:
            InvalidInputError: The tensor does not have the axis of the heads.
        """
        rows = self.rows(tensor, states)
        if rows is None:
            return tensor
        own = change(rows).to(tensor)
        if self.heads:
            own = own.unflatten(2, (self.heads, -1)).transpose(1, 2)
        return torch.cat([own.reshape(tensor[:states].shape), tensor[states:]])


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedLayer:
    """A linear layer that has taken in a map; float64.

    Attributes:
        weight: (out, in) the new weight W'.
        bias: (out,) the new bias, None for none.
        gain: (out,) positive, where W' is diag(gain) W and nothing else changes but the bias: such a layer need not be
            rounded anew, since its integers stay and its scales take the gain. None otherwise.
        restore: Turns W', or a rounded W', back into a weight on the scale of W: what the policy is left with when
            every other layer has taken in the map exactly.
    """

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None
    gain: Float[Tensor, " out"] | None = None
    restore: Callable[[Float[Tensor, "out in"]], Float[Tensor, "out in"]]

    def linear(self, device: torch.device | str = "cpu") -> nn.Linear:
        """A float32 linear layer with the new weight and bias, without gradients."""
        with torch.device("meta"):
            layer = nn.Linear(self.weight.shape[1], self.weight.shape[0], bias=self.bias is not None)
        layer.weight = nn.Parameter(self.weight.float().to(device).contiguous(), requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias.float().to(device), requires_grad=False)
        return layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Folded:
    """What a fold changes.

    Attributes:
        layers: Linear layers by module path.
        parameters: Other parameters by path, float64.
    """

    layers: Mapping[str, FoldedLayer] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)


class Fold(ABC):
    """One way to put a map into weights; a frozen dataclass of module paths.

    Attributes:
        method: Name of the fold in the catalog.
        label: Name of the fold in a checkpoint's metadata.
        side: Whether the fold changes what reads the representation or what writes it.
    """

    method: ClassVar[str]
    label: ClassVar[str]
    side: ClassVar[Side]

    @property
    @abstractmethod
    def map_class(self) -> MapClass:
        """The maps that it can take."""

    @property
    def map_heads(self) -> int:
        """Number of heads that share the channels of the representation, where the class of maps has heads."""
        return 1

    @property
    @abstractmethod
    def layers(self) -> tuple[str, ...]:
        """Module paths of the linear layers whose weights it changes."""

    @property
    def parameters(self) -> tuple[str, ...]:
        """Paths of other parameters that it changes."""
        return ()

    @property
    def readers(self) -> tuple[str, ...]:
        """Those of `layers` whose input is the representation itself, or one of the constants."""
        return ()

    @property
    def recorded_inputs(self) -> tuple[str, ...]:
        """Those of `layers` of which `read_by` must be given the inputs themselves, not the representation."""
        return ()

    @abstractmethod
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """The weights with the map inside.

        Args:
            affine: The map, of this fold's class.
            tensors: The present weights: ``<layer>.weight``, where there is one ``<layer>.bias``, and parameters.

        Raises:
            InvalidInputError: The map is not of the class, or its size does not fit the weights.
        """

    def read_by(self, layer: str, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n in"] | None:
        """What one of `layers` reads where nothing but one vector of the representation is seen.

        Args:
            layer: The layer.
            rows: The representation; for a layer of `recorded_inputs` its inputs.

        Returns:
            The layer's input; None for a layer that does not read the representation.
        """
        return rows if layer in (*self.readers, *self.recorded_inputs) else None

    def kind(self, treatments: frozenset[Treatment]) -> str:
        """The fold's name in a checkpoint's metadata, given what was done with its layers."""
        return f"{self.label}-rounded" if "rounded" in treatments else self.label


@dataclass(frozen=True)
class Interface:
    """A perception-to-action interface.

    Attributes:
        name: Names the interface in every artifact.
        tap: Where its representation is read.
        folds: Where a map of the representation can go, exactly, in the order in which they are tried.
    """

    name: str
    tap: Tap
    folds: tuple[Fold, ...]

    def __post_init__(self) -> None:
        if not self.name or not self.folds:
            raise InvalidInputError(
                f"an interface must have a name and at least one fold, got {self.name!r} and {len(self.folds)} folds. "
                "Say where a map of its representation can go."
            )


def require_channels(affine: AffineMap, channels: int, place: str) -> None:
    """Refuses a map of another size than the representation at a layer, norm or constant.

    Raises:
        InvalidInputError: The map does not have these channels.
    """
    if len(affine.shift) != channels:
        raise InvalidInputError(
            f"map must have the {channels} channels of the representation at {place}, got {len(affine.shift)}. "
            "Correct the interface's tap, or the module paths of its fold."
        )


def weight_of(tensors: Mapping[str, Tensor], layer: str) -> Float[Tensor, "out in"]:
    """The weight of a layer in float64."""
    return tensors[f"{layer}.weight"].detach().to(torch.float64)


def bias_of(tensors: Mapping[str, Tensor], layer: str) -> Float[Tensor, " out"] | None:
    """The bias of a layer in float64, None where it has none."""
    bias = tensors.get(f"{layer}.bias")
    return None if bias is None else bias.detach().to(torch.float64)
