"""The contract of a compensation: maps that make a quantized policy's representation like the full-precision one.

A method is one file beside this one, which names its configuration ``COMPENSATION``. It sees what passes one interface
in full precision and after quantization, and offers maps of a class that folds exactly; which of them is applied, if
any, is not its business.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError, RecipeError, require_one_of
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.map_class import MapClass
from daptq.methods import Method, Needs
from daptq.numerics.moments import Moments

__all__ = ["CompensationMethod", "InterfaceSample", "require_same_states"]

Selection = Literal["held-out", "always"]


@dataclass(frozen=True, kw_only=True, eq=False)
class InterfaceSample:
    """What passed one interface of one policy in the states that maps are fitted to.

    Attributes:
        rows: Float (n, d) vectors, in the order of the states; those of two policies on the same data belong together.
        moments: Mean and covariance of the same vectors.
    """

    rows: Float[Tensor, "n d"]
    moments: Moments


@dataclass(frozen=True, kw_only=True)
class CompensationMethod(Method):
    """Settings of one compensation.

    Attributes:
        max_condition: Largest condition number of a map; a worse one cannot be inverted for the interface's constants.
        selection: ``"held-out"`` applies whichever of no map and the offered maps has the least error on held-out
            states and says so in log and plan; ``"always"`` applies the last one offered.
    """

    max_condition: float = 1e3
    selection: Selection = "held-out"

    def __post_init__(self) -> None:
        if not self.max_condition >= 1:
            raise RecipeError(
                f"max_condition of a compensation must be at least 1, got {self.max_condition}. Choose for example 1e3."
            )
        require_one_of("selection of a compensation", self.selection, get_args(Selection), RecipeError)

    @property
    def needs(self) -> Needs:
        """Calibration data; a method that weighs by drift needs the sensitivities of the interfaces as well."""
        return Needs(data=True)

    @abstractmethod
    def solve(
        self,
        full: InterfaceSample,
        quantized: InterfaceSample,
        sensitivity: Float[Tensor, "d d"] | None,
        map_class: MapClass,
        heads: int,
    ) -> dict[str, AffineMap]:
        """The maps for one interface, to choose from.

        Args:
            full: Its representation in full precision.
            quantized: Its representation after quantization, of the same states with the same noise.
            sensitivity: H, float64 (d, d), symmetric positive semi-definite, in mm^2 per squared unit: what an error of
                the representation does to the robot; None unless the method needs the sensitivities of the interfaces.
            map_class: The class that every map must be of.
            heads: Number of heads that share the channels, where the class has heads.

        Returns:
            Maps by name, none of them ``"none"``, from the simplest to the most complete; at least one.

        Raises:
            InvalidInputError: The samples do not belong together, or what the method needs is missing.
        """


def require_same_states(full: InterfaceSample, quantized: InterfaceSample) -> None:
    """Refuses samples that cannot be of one interface in the same states.

    Raises:
        InvalidInputError: Their representations do not have the same number of rows and channels.
    """
    if full.rows.shape != quantized.rows.shape or full.moments.size != quantized.moments.size:
        raise InvalidInputError(
            "representations in full precision and after quantization must have the same rows and channels, got "
            f"{tuple(full.rows.shape)} and {tuple(quantized.rows.shape)}. Pass samples of the same states."
        )
