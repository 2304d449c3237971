"""Into the weights around the keys of an attention that reads the representation and rows of its own.

Rotary position embeddings multiply every pair of channels, read as a complex number, by exp(i theta) at each position.
What commutes with them is a scaled rotation of every pair, C. With keys k of the prefix as the representation, before
or after the embedding, and the suffix's own k' = W_k x (the counterpart),

    q^T R^T R' (C k) = (C^T q)^T R^T R' k,      q^T R^T R' k' = (C^T q)^T R^T R' (C^-1 k')

so the queries take in C^T, for every query head of the group that reads the kv head, and the counterpart takes C^-1. A
shift does not commute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold, Folded, FoldedLayer, Side, bias_of, require_channels, weight_of
from daptq.interfaces.grouped_heads import check_heads, check_query_heads
from daptq.interfaces.map_class import MapClass, block_diagonal, blocks_of, require_class

__all__ = ["FOLD", "IntoAttentionKeys"]


@dataclass(frozen=True)
class IntoAttentionKeys(Fold):
    """Queries and counterpart take in a scaled rotation of every pair of channels.

    Declare it only where nothing but the rotary embedding is between these layers and the scores (no norm of
    queries or keys).

    Attributes:
        query: Module path of the linear layer that writes the queries, query heads side by side.
        counterpart: Module path of the linear layer that writes the suffix's own keys, kv heads side by side.
        heads: Number of query heads.
        kv_heads: Number of kv heads; each serves heads / kv_heads query heads in turn.
        pairing: Which channels of a head make a pair: ``"half"``, i and i + D/2 of D channels.
    """

    method: ClassVar[str] = "into-attention-keys"
    label: ClassVar[str] = "attention-keys"
    side: ClassVar[Side] = "consumer"

    query: str
    counterpart: str
    heads: int
    kv_heads: int
    pairing: Literal["half"] = "half"

    def __post_init__(self) -> None:
        check_heads(self.heads, self.kv_heads)
        if self.pairing != "half":
            raise InvalidInputError(
                f"pairing must be 'half', got {self.pairing!r}. Maps for other pairings of a head's channels cannot be "
                "solved."
            )

    @property
    def map_class(self) -> MapClass:
        """Scaled rotations."""
        return "rotary"

    @property
    def map_heads(self) -> int:
        """The kv heads."""
        return self.kv_heads

    @property
    def layers(self) -> tuple[str, ...]:
        """Queries and counterpart."""
        return (self.query, self.counterpart)

    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        """See `Fold.folded`."""
        own_weight, own_bias = weight_of(tensors, self.counterpart), bias_of(tensors, self.counterpart)
        require_channels(affine, len(own_weight), self.counterpart)
        require_class(affine, self.map_class, self.kv_heads)
        matrix = affine.matrix
        weight, bias = weight_of(tensors, self.query), bias_of(tensors, self.query)
        check_query_heads(len(weight), self.query, len(matrix), self.heads, self.kv_heads)
        group = self.heads // self.kv_heads
        outside = block_diagonal(blocks_of(matrix, self.kv_heads).mT.repeat_interleave(group, dim=0))
        query = FoldedLayer(
            weight=outside @ weight,
            bias=None if bias is None else outside @ bias,
            restore=lambda folded: torch.linalg.solve(outside, folded),
        )
        counterpart = FoldedLayer(
            weight=torch.linalg.solve(matrix, own_weight),
            bias=None if own_bias is None else torch.linalg.solve(matrix, own_bias),
            restore=lambda folded: matrix @ folded,
        )
        return Folded(layers={self.query: query, self.counterpart: counterpart})


FOLD = IntoAttentionKeys
