"""The stage that finds the layers that stay bfloat16 because that is faster on this machine."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from daptq.allocation.plan import BFLOAT16
from daptq.artifacts import Artifact
from daptq.quantization.allocation import candidate_bits
from daptq.quantization.layer_times import faster_in_float, layer_times
from daptq.quantization.stage import Inputs, Stage, StageContent

__all__ = ["FasterLayersStage"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FasterLayersStage(Stage[dict[str, str]]):
    """Layers that are faster in bfloat16, with that as the reason.

    The times are saved, so that a resumed run makes the same choice even if the machine is busier.

    Attributes:
        inputs: Policy and recipe.
    """

    name = "times"
    kind = "layer-times"

    inputs: Inputs

    def compute(self) -> StageContent:
        """Measures; metadata ``milliseconds`` by layer and bits."""
        policy, recipe = self.inputs.policy, self.inputs.recipe
        options = {name: (*bits, BFLOAT16) for name, bits in candidate_bits(policy, recipe).items()}
        times = layer_times(policy, recipe, options)
        return {}, {"milliseconds": {name: {str(b): t for b, t in row.items()} for name, row in times.items()}}

    def read(self, artifact: Artifact) -> dict[str, str]:
        """The layers that lose by low bits."""
        times = artifact.metadata["milliseconds"]
        kept = faster_in_float({name: {int(b): t for b, t in row.items()} for name, row in times.items()})
        LOG.info("%d of %d layers stay bfloat16 because that is faster: %s", len(kept), len(times), ", ".join(kept))
        return kept
