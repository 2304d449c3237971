"""Every refusal of the numeric functions, and that the valid neighbour of each bad input passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.numerics.grid import largest_integer
from daptq.numerics.moments import Moments
from daptq.numerics.pack import pack, unpack
from daptq.numerics.quantized_matrix import QuantizedMatrix, quantize_matrix
from daptq.numerics.scales import absmax_scale, searched_scale


@pytest.mark.parametrize("num_bits", [1, 9, 4.0, 5.5, "4"])
def test_bits_outside_two_to_eight_are_refused(num_bits: int) -> None:
    with pytest.raises(InvalidInputError, match="num_bits must be an integer between 2 and 8"):
        largest_integer(num_bits)


def test_largest_integers() -> None:
    assert [largest_integer(num_bits) for num_bits in range(2, 9)] == [1, 3, 7, 15, 31, 63, 127]


@pytest.mark.parametrize("shape", [(1, 1), (4,), (4, 2), (1, 4)])
def test_a_scale_that_only_broadcasts_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"scale must have shape \(4, 1\)"):
        quantize_matrix(torch.ones(4, 3), torch.ones(shape), None, 4)
    with pytest.raises(InvalidInputError, match=r"scale must have shape \(4, 1\)"):
        QuantizedMatrix(integers=torch.ones(4, 3, dtype=torch.int8), scale=torch.ones(shape), num_bits=4)
    assert quantize_matrix(torch.ones(4, 3), torch.ones(4, 1), None, 4).integers.sum() == 12


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_scales_must_be_positive_and_finite(bad: float) -> None:
    with pytest.raises(InvalidInputError, match="scale must be positive and finite"):
        quantize_matrix(torch.ones(2, 3), torch.tensor([[1.0], [bad]]), None, 4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_must_be_finite(bad: float) -> None:
    weight = torch.tensor([[1.0, bad]])
    with pytest.raises(InvalidInputError, match="must be a finite matrix"):
        quantize_matrix(weight, torch.ones(1, 1), None, 4)
    for find in (absmax_scale, searched_scale):
        with pytest.raises(InvalidInputError, match="weight must be a finite, non-empty matrix"):
            find(weight, 4)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 0), torch.ones(1, 2, 3)])
def test_scales_are_found_for_matrices_only(weight: Tensor) -> None:
    for find in (absmax_scale, searched_scale):
        with pytest.raises(InvalidInputError, match="non-empty matrix"):
            find(weight, 4)


def test_a_row_of_zeros_gets_the_scale_one() -> None:
    weight = torch.tensor([[0.0, 0.0], [1e-46, 0.0], [7.0, 1.0]])
    for find in (absmax_scale, searched_scale):
        assert find(weight, 4)[:, 0].tolist() == [1.0, 1.0, 1.0]


def test_packing_refuses_integers_that_do_not_fit() -> None:
    assert unpack(pack(torch.tensor([-8, 7], dtype=torch.int8), 4), 4, 2).tolist() == [-8, 7]
    for bad in (-9, 8):
        with pytest.raises(InvalidInputError, match=r"integers of 4 bits must lie in \[-8, 7\]"):
            pack(torch.tensor([bad], dtype=torch.int8), 4)
    with pytest.raises(InvalidInputError, match="must be int8"):
        pack(torch.tensor([1, 2]), 4)
    with pytest.raises(InvalidInputError, match="must be int8"):
        pack(torch.tensor(1, dtype=torch.int8), 4)


def test_unpacking_refuses_other_lengths() -> None:
    packed = pack(torch.arange(5, dtype=torch.int8), 4)
    for length in (4, 7):
        with pytest.raises(InvalidInputError, match=f"with {(length + 1) // 2} bytes in each row"):
            unpack(packed, 4, length)
    with pytest.raises(InvalidInputError, match="must be uint8"):
        unpack(packed.view(torch.int8), 4, 5)


def test_moments_refuse_bad_samples_and_keep_what_they_had() -> None:
    moments = Moments(2)
    with pytest.raises(InvalidInputError, match="at least one sample"):
        moments.covariance()
    moments.update(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    with pytest.raises(InvalidInputError, match=r"samples must have shape \(n, 2\)"):
        moments.update(torch.ones(4, 3))
    with pytest.raises(InvalidInputError, match="samples must be finite"):
        moments.update(torch.tensor([[1.0, math.nan]]))
    with pytest.raises(InvalidInputError, match="must have 2 channels, got 3"):
        moments.merge(Moments(3))
    with pytest.raises(InvalidInputError, match="size of moments must be at least 1"):
        Moments(0)
    moments.update(torch.ones(0, 2))
    moments.merge(Moments(2))
    assert moments.count == 2
    assert moments.mean.tolist() == [2.0, 4.0]
    assert moments.covariance().tolist() == [[1.0, 2.0], [2.0, 4.0]]


def test_stored_moments_are_independent_of_the_stream() -> None:
    moments = Moments(1)
    moments.update(torch.tensor([[1.0], [3.0]]))
    stored = moments.tensors()
    restored = Moments.from_tensors(stored)
    moments.update(torch.tensor([[100.0]]))
    assert stored["mean"].tolist() == [2.0]
    assert restored.covariance().tolist() == [[1.0]]
