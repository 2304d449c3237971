"""A stage of a quantization run: what it is called, how it is computed, and how what it wrote is read.

The stages themselves lie in the modules beside this one, each with its inputs as attributes; `pipeline` puts them in
order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from daptq.artifacts import Artifact
from daptq.policies.contract import Policy
from daptq.progress import Progress
from daptq.quantization.profiling import Calibration
from daptq.quantization.recipe import Recipe

__all__ = ["Inputs", "Stage", "StageContent"]

T_co = TypeVar("T_co", covariant=True)

StageContent = tuple[Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the user gave for a run, checked.

    Attributes:
        policy: Full-precision policy.
        recipe: What to do.
        calibration: Calibration data; None when the recipe needs none.
        progress: Called as progress(done, total, stage) after every step of a stage.
    """

    policy: Policy
    recipe: Recipe
    calibration: Calibration | None
    progress: Progress

    @property
    def data(self) -> Calibration:
        """The calibration data of a recipe that needs some."""
        assert self.calibration is not None, "the recipe says that it needs data"
        return self.calibration


class Stage(ABC, Generic[T_co]):
    """One stage, with its inputs as attributes; `Workspace.run` computes it once and reads what was written.

    Attributes:
        name: Folder of the stage within the working folder.
        kind: Kind of the artifact that it writes.
    """

    name: str
    kind: ClassVar[str]

    @abstractmethod
    def compute(self) -> StageContent:
        """The tensors and the metadata of the artifact; tensors may be computed while they are written."""

    @abstractmethod
    def read(self, artifact: Artifact) -> T_co:
        """What the artifact says."""
