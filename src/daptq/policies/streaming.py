"""Policies larger than memory: large layers whose weights stay in files and are read at each use.

A streamed policy computes exactly what the policy in memory computes. Its streamed weights are parameters on the meta
device: they have shape and type, so everything that asks for sizes works, and no values. Whatever takes gradients stays
in memory: the action head, and everything that is neither a linear layer nor an embedding. This module knows nothing of
quantization.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from daptq.policies.contract import Policy
from daptq.policies.stored_weights import StoredWeights

__all__ = ["StreamedEmbedding", "StreamedLinear", "stream", "streamed_modules"]


class StreamedLinear(nn.Linear):
    """A linear layer that reads its weight at each call; its bias is in memory."""

    def __init__(self, linear: nn.Linear, weights: StoredWeights, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._weights, self._name = weights, name

    def forward(self, input: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:  # noqa: A002  (torch's name)
        """Multiplies with the weight in the files."""
        return nn.functional.linear(input, self._weights.tensor(self._name).to(input.dtype), self.bias)


class StreamedEmbedding(nn.Embedding):
    """An embedding that reads the rows that it is asked for."""

    def __init__(self, embedding: nn.Embedding, weights: StoredWeights, name: str) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx, self.max_norm, self.norm_type = embedding.padding_idx, None, embedding.norm_type
        self.scale_grad_by_freq, self.sparse = False, False
        self.weight = embedding.weight
        self._weights, self._name = weights, name

    def forward(self, input: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch width"]:  # noqa: A002
        """The rows of the table in the files."""
        distinct, positions = torch.unique(input, return_inverse=True)
        return self._weights.rows(self._name, distinct)[positions]


def streamed_modules(policy: Policy) -> dict[str, nn.Linear | nn.Embedding]:
    """The linear layers and embeddings outside the action head, whose weights a streamed policy leaves in files."""
    heads = tuple(block.name for block in policy.blocks() if block.role == "action_head")
    inside = tuple(f"{name}." for name in heads)
    return {
        path: module
        for path, module in policy.named_modules()
        # The owner of a subclass may read it as a plain parameter; it stays what it is.
        if type(module) in (nn.Linear, nn.Embedding, StreamedLinear, StreamedEmbedding)
        and isinstance(module, nn.Linear | nn.Embedding)
        and path not in heads
        and not path.startswith(inside)
    }


def stream(policy: Policy, weights: StoredWeights) -> None:
    """Lets every streamed module of a policy read its weight, which must be on the meta device, from files.

    Args:
        policy: Changed in place; every other tensor of it must be in memory.
        weights: Holds ``<path>.weight`` of each of `streamed_modules`.
    """
    policy.weights = weights
    for path, module in streamed_modules(policy).items():
        parent, _, leaf = path.rpartition(".")
        kind = StreamedLinear if isinstance(module, nn.Linear) else StreamedEmbedding
        setattr(policy.get_submodule(parent), leaf, kind(module, weights, f"{path}.weight"))  # type: ignore[arg-type]
