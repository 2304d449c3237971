"""Maps of an attention's prefix against folded weights: values per head, keys per pair, grouped queries, rotary."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.interfaces.map_class import block_diagonal, blocks_of, rotary_pairs
from tests.golden.interfaces.fold_cases import (
    EXACT,
    MOVED,
    affine_map,
    attention,
    attention_inputs,
    error,
    map_per_head,
    normal,
    rotary_map,
    rotated,
    with_folded,
)

DTYPES = (torch.float32, torch.float64)
HEADS = ((4, 2), (4, 1), (3, 3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_values_equal_the_explicit_map(dtype: torch.dtype, bias: bool, heads: int, kv_heads: int) -> None:
    network = attention(dtype, heads=heads, kv_heads=kv_heads, bias=bias)
    x, keys, values = attention_inputs(dtype, kv_heads=kv_heads)
    affine = map_per_head(kv_heads, 6)
    expected = network(x, keys, affine(values).to(dtype))
    folded = with_folded(network, IntoAttentionValues("o", "v", heads, kv_heads), affine)
    assert error(network(x, keys, values), expected) > MOVED
    assert error(folded(x, keys, values), expected) < EXACT[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_keys_equal_the_explicit_map(dtype: torch.dtype, bias: bool, heads: int, kv_heads: int) -> None:
    network = attention(dtype, heads=heads, kv_heads=kv_heads, bias=bias)
    x, keys, values = attention_inputs(dtype, kv_heads=kv_heads)
    keys, affine = 3 * keys, rotary_map(kv_heads, 6)
    expected = network(x, affine(keys).to(dtype), values)
    folded = with_folded(network, IntoAttentionKeys("q", "k", heads, kv_heads), affine)
    assert error(network(x, keys, values), expected) > MOVED
    assert error(folded(x, keys, values), expected) < EXACT[dtype]


def test_a_rotary_map_is_the_same_before_and_after_the_embedding() -> None:
    affine, keys = rotary_map(1, 6), normal(2, 7, 6, seed=1)
    torch.testing.assert_close(rotated(affine(keys), first=3), affine(rotated(keys, first=3)), rtol=0, atol=1e-12)
    full = affine_map(6)
    linear = AffineMap(matrix=full.matrix, shift=torch.zeros(6).double())
    assert error(rotated(linear(keys), first=3), linear(rotated(keys, first=3))) > MOVED


def of_neighbours(affine: AffineMap) -> AffineMap:
    """The scaled rotations of channels 2 i and 2 i + 1 in place of i and i + D/2."""
    blocks = blocks_of(affine.matrix, 2)
    order = torch.arange(6).view(2, 3).mT.flatten()
    return AffineMap(matrix=block_diagonal(blocks[:, order][:, :, order]), shift=affine.shift)


def keys_folded_as_if_they_could(affine: AffineMap) -> tuple[Tensor, Tensor]:
    """Answers with C^T in the queries and C^-1 in the counterpart for any linear map C, and with the explicit map."""
    network = attention(torch.float64)
    x, keys, values = attention_inputs(torch.float64)
    expected = network(x, affine(keys), values)
    inside = block_diagonal(blocks_of(affine.matrix, 2).mT.repeat_interleave(2, dim=0))
    network.q.weight.data = inside @ network.q.weight
    network.k.weight.data = torch.linalg.solve(affine.matrix, network.k.weight)
    return network(x, keys, values), expected


def test_the_check_of_keys_can_fail() -> None:
    right = rotary_map(2, 6)
    dense = AffineMap(matrix=map_per_head(2, 6).matrix, shift=torch.zeros(12).double())
    assert error(*keys_folded_as_if_they_could(right)) < 1e-12
    for wrong in (of_neighbours(right), dense):
        assert error(*keys_folded_as_if_they_could(wrong)) > 1e-2


def test_keys_take_rotary_maps_alone() -> None:
    fold, network = IntoAttentionKeys("q", "k", 4, 2), attention(torch.float64)
    right = rotary_map(2, 6)
    shifted = AffineMap(matrix=right.matrix, shift=torch.ones(12).double())
    for wrong in (of_neighbours(right), map_per_head(2, 6), affine_map(12), shifted):
        with pytest.raises(InvalidInputError, match="map must be of the class 'rotary' for 2 heads"):
            fold.folded(wrong, dict(network.named_parameters()))


def test_values_take_maps_per_head_alone() -> None:
    fold, network = IntoAttentionValues("o", "v", 4, 2), attention(torch.float64)
    with pytest.raises(InvalidInputError, match="map must be of the class 'affine-per-head' for 2 heads"):
        fold.folded(affine_map(12), dict(network.named_parameters()))


def test_the_check_of_values_can_fail() -> None:
    """Without the counterpart, and with the blocks of the wrong kv heads, the folded network answers otherwise."""
    network, affine = attention(torch.float64), map_per_head(2, 6)
    x, keys, values = attention_inputs(torch.float64)
    expected = network(x, keys, affine(values))
    folded = with_folded(network, IntoAttentionValues("o", "v", 4, 2), affine)
    one_sided = with_folded(network, IntoAttentionValues("o", "v", 4, 2), affine)
    one_sided.v = network.v
    interleaved = with_folded(network, IntoAttentionValues("o", "v", 4, 2), affine)
    swapped = block_diagonal(blocks_of(affine.matrix, 2).repeat(2, 1, 1))
    interleaved.get_parameter("o.weight").data = network.o.weight @ swapped
    assert error(folded(x, keys, values), expected) < 1e-12
    for wrong in (one_sided, interleaved):
        assert error(wrong(x, keys, values), expected) > 1e-2


def test_the_output_reads_a_single_row_at_every_head() -> None:
    """What `read_by` gives is what the output layer reads where every weight of the attention is on one row."""
    fold = IntoAttentionValues("o", "v", 4, 2)
    row = normal(1, 12, seed=3)
    first, second = row[:, :6], row[:, 6:]
    read = fold.read_by("o", row)
    assert read is not None
    assert torch.equal(read, torch.cat([first, first, second, second], dim=1))
    assert fold.read_by("v", row) is None
    assert IntoAttentionKeys("q", "k", 4, 2).read_by("q", row) is None


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 3), (0, 1), (4, 0)])
def test_heads_must_go_together(heads: int, kv_heads: int) -> None:
    for fold in (IntoAttentionKeys, IntoAttentionValues):
        with pytest.raises(InvalidInputError, match="heads must be a multiple of kv_heads"):
            fold("a", "b", heads, kv_heads)


def test_other_pairings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="pairing must be 'half', got 'neighbours'"):
        IntoAttentionKeys("q", "k", 4, 2, "neighbours")  # type: ignore[arg-type]


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(InvalidInputError, match="heads must divide the channels"):
        blocks_of(torch.eye(7), 2)
    with pytest.raises(InvalidInputError, match="even number of channels"):
        rotary_pairs(torch.eye(6), 2)


@pytest.mark.parametrize(
    "fold", [IntoAttentionKeys("k", "k", 4, 2), IntoAttentionValues("v", "v", 4, 2)], ids=["keys", "values"]
)
def test_query_heads_must_have_the_size_of_the_kv_heads(fold: Any) -> None:
    tensors = {f"{layer}.weight": torch.eye(12, dtype=torch.float64) for layer in ("k", "v")}
    with pytest.raises(InvalidInputError, match=r"[kv] must have 4 heads of the size of .* 2, 12 channels .*, got 12"):
        fold.folded(AffineMap.identity(12), tensors)
