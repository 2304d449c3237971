"""Into the weights around the values of an attention that reads the representation and rows of its own.

The values v of the prefix are the representation; the suffix adds its own v' = W_v x + b_v (the counterpart). Attention
weights sum to 1, so for every kv head h an affine map of the prefix's values alone equals

    sum_p a_p (M_h v_p + d_h) + sum_s a_s v'_s = M_h (sum_p a_p v_p + sum_s a_s M_h^-1 (v'_s - d_h)) + d_h

M_h and d_h go into the output layer, for every query head of the group that reads kv head h; the counterpart takes
M_h^-1 and -M_h^-1 d_h.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer, Side, bias_of, require_channels, weight_of
from daptq.interfaces.grouped_heads import check_heads, check_query_heads, for_query_heads
from daptq.interfaces.map_class import MapClass, block_diagonal, blocks_of, require_class

__all__ = ["FOLD", "IntoAttentionValues"]


@dataclass(frozen=True)
class IntoAttentionValues(Fold):
    """Output layer and counterpart take in an affine map of every kv head.

    Attributes:
        output: Module path of the linear layer after the attention; it reads the query heads side by side.
        counterpart: Module path of the linear layer that writes the suffix's own values, kv heads side by side.
        heads: Number of query heads.
        kv_heads: Number of kv heads; each serves heads / kv_heads query heads in turn.
    """

    method: ClassVar[str] = "into-attention-values"
    label: ClassVar[str] = "attention-values"
    side: ClassVar[Side] = "consumer"

    output: str
    counterpart: str
    heads: int
    kv_heads: int

    def __post_init__(self) -> None:
        check_heads(self.heads, self.kv_heads)

    @property
    def map_class(self) -> MapClass:
        """An affine map of every kv head."""
        return "affine-per-head"

    @property
    def map_heads(self) -> int:
        """The kv heads."""
        return self.kv_heads

    @property
    def layers(self) -> tuple[str, ...]:
        """Output layer and counterpart."""
        return (self.output, self.counterpart)

    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """See `Fold.folded`."""
        own_weight, own_bias = weight_of(tensors, self.counterpart), bias_of(tensors, self.counterpart)
        require_channels(affine, len(own_weight), self.counterpart)
        require_class(affine, self.map_class, self.kv_heads)
        matrix, shift = affine.matrix, affine.shift
        weight, bias = weight_of(tensors, self.output), bias_of(tensors, self.output)
        check_query_heads(weight.shape[1], self.output, len(matrix), self.heads, self.kv_heads)
        group = self.heads // self.kv_heads
        inside = block_diagonal(blocks_of(matrix, self.kv_heads).repeat_interleave(group, dim=0))
        offset = weight @ for_query_heads(shift, self.heads, self.kv_heads)
        output = FoldedLayer(
            weight=weight @ inside,
            bias=offset if bias is None else bias + offset,
            restore=lambda folded: torch.linalg.solve(inside, folded, left=False),
        )
        counterpart = FoldedLayer(
            weight=torch.linalg.solve(matrix, own_weight),
            bias=torch.linalg.solve(matrix, -shift if own_bias is None else own_bias - shift),
            restore=lambda folded: matrix @ folded,
        )
        return Folded(layers={self.output: output, self.counterpart: counterpart})

    def read_by(self, layer: str, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n in"] | None:
        """The output layer reads one row's values at every query head; the counterpart does not read them."""
        return for_query_heads(rows, self.heads, self.kv_heads) if layer == self.output else None


FOLD = IntoAttentionValues
