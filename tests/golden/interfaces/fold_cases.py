"""Toy networks around an interface, written out, and what tests of every fold ask of them."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Fold
from daptq.interfaces.map_class import rotary_matrix

EXACT = {torch.float32: 3e-6, torch.float64: 1e-12}
MOVED = 0.3


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def affine_map(size: int, *, seed: int = 1) -> AffineMap:
    """A random map of size 0.3."""
    noise = normal(size, size, seed=seed)
    return AffineMap(matrix=torch.eye(size).double() + 0.3 * noise, shift=0.3 * normal(size, seed=seed + 100))


def map_per_head(heads: int, size: int) -> AffineMap:
    """An affine map of every head."""
    maps = [affine_map(size, seed=head + 1) for head in range(heads)]
    matrix = torch.block_diag(*(one.matrix for one in maps))
    return AffineMap(matrix=matrix, shift=torch.cat([one.shift for one in maps]))


def diagonal_map(size: int, *, shifted: bool = True) -> AffineMap:
    gain = torch.exp(0.5 * normal(size, seed=3))
    return AffineMap(matrix=torch.diag(gain), shift=0.5 * normal(size, seed=4) * shifted)


def rotary_map(heads: int, size: int) -> AffineMap:
    """A scaled rotation of every pair of channels."""
    a, b = (1 + 0.3 * normal(heads, size // 2, seed=5)), 0.5 * normal(heads, size // 2, seed=6)
    return AffineMap(matrix=rotary_matrix(a, b), shift=torch.zeros(heads * size).double())


def with_folded(network: nn.Module, fold: Fold, affine: AffineMap) -> nn.Module:
    """A copy of the network whose weights have taken in the map."""
    folded = fold.folded(affine, dict(network.named_parameters()))
    changed = copy.deepcopy(network)
    assert tuple(folded.layers) == fold.layers
    assert tuple(folded.parameters) == fold.parameters
    for path, layer in folded.layers.items():
        linear = changed.get_submodule(path)
        assert isinstance(linear, nn.Linear)
        before = linear.weight.detach()
        linear.weight = nn.Parameter(layer.weight.to(before))
        linear.register_parameter("bias", None if layer.bias is None else nn.Parameter(layer.bias.to(before)))
        torch.testing.assert_close(layer.restore(layer.weight), before.double(), rtol=0, atol=1e-11)
    for path, value in folded.parameters.items():
        changed.get_parameter(path).data = value.to(changed.get_parameter(path))
    return changed


def error(answer: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the root mean square."""
    return float(((answer - expected).abs().max() / expected.square().mean().sqrt()).detach())


class Attention(nn.Module):
    """Rows of its own attend to themselves and to a prefix whose keys and values are given, with grouped queries.

    Args:
        heads: Query heads.
        kv_heads: Heads of keys and values.
        size: Channels of a head.
        bias: Whether queries, keys, values and output have biases.
    """

    def __init__(self, heads: int, kv_heads: int, size: int, *, bias: bool) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        self.q = nn.Linear(10, heads * size, bias=bias)
        self.k = nn.Linear(10, kv_heads * size, bias=bias)
        self.v = nn.Linear(10, kv_heads * size, bias=bias)
        self.o = nn.Linear(heads * size, 10, bias=bias)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Answers of the own rows x (b, s, 10), given keys and values (b, p, kv_heads * size) of the prefix, unrotated.

        Every query head is computed by itself, every score by a double loop over positions.
        """
        prefix = keys.shape[1]
        all_keys, all_values = torch.cat([keys, self.k(x)], dim=1), torch.cat([values, self.v(x)], dim=1)
        queries = self.q(x)
        outputs = []
        for head in range(self.heads):
            own = slice(head * self.size, (head + 1) * self.size)
            kv = head // (self.heads // self.kv_heads)
            read = slice(kv * self.size, (kv + 1) * self.size)
            rotated_queries = rotated(queries[..., own], first=prefix)
            rotated_keys = rotated(all_keys[..., read], first=0)
            scores = torch.einsum("bsc,bpc->bsp", rotated_queries, rotated_keys) / math.sqrt(self.size)
            outputs.append(scores.softmax(dim=-1) @ all_values[..., read])
        return self.o(torch.cat(outputs, dim=-1))


def rotated(x: Tensor, *, first: int) -> Tensor:
    """Rotary embedding: channels i and i + D/2 are a complex number, turned by position times a frequency."""
    half = x.shape[-1] // 2
    frequencies = 100.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = (first + torch.arange(x.shape[1], dtype=torch.float64))[:, None] * frequencies
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    real, imaginary = x[..., :half], x[..., half:]
    return torch.cat([real * cos - imaginary * sin, imaginary * cos + real * sin], dim=-1)


def attention(dtype: torch.dtype, *, heads: int = 4, kv_heads: int = 2, bias: bool = False) -> Attention:
    torch.manual_seed(0)
    return Attention(heads, kv_heads, 6, bias=bias).to(dtype)


def attention_inputs(dtype: torch.dtype, *, kv_heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Own rows, and keys and values of a prefix."""
    keys, values = (normal(3, 7, 6 * kv_heads, seed=seed, dtype=dtype) for seed in (8, 9))
    return normal(3, 5, 10, seed=7, dtype=dtype), keys, values
