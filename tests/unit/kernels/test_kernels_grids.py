"""Groups, zero points and activations that are not quantized: registration, and which backend takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import daptq.kernels.linear.backends.float32_carried as carried
import daptq.kernels.linear.backends.reference  # noqa: F401  (registers the operations)
from daptq.catalog import KERNELS
from daptq.errors import BackendUnavailableError, InvalidInputError
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers import choices, picker
from daptq.layers.quantized_linear import QuantizedLinear


def make_layer(in_features: int = 24, out_features: int = 10) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    integers = torch.randint(-7, 8, (out_features, in_features), generator=generator, dtype=torch.int8)
    return QuantizedLinear.from_integers(integers, 0.1 + torch.rand(out_features, 1, generator=generator))


@pytest.fixture(autouse=True)
def nothing_chosen_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts like the first process on a machine."""
    monkeypatch.setattr(picker, "_choices", {})
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path / "choices")


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("zero", [True, False])
def test_operations_with_groups_pass_opcheck(num_bits: int, zero: bool) -> None:
    zero_point = torch.ones(10, 2, dtype=torch.int8) if zero else None
    integers = torch.ones(10, 40, dtype=torch.int8)
    weight = PackedWeight.from_integers(integers, num_bits, group_size=32, zero_point=zero_point)
    scale, bias = torch.rand(10, 2), torch.randn(10)
    given = (weight.packed, scale, bias, 40, num_bits)
    torch.library.opcheck(
        torch.ops.daptq.linear_w4a8.default, (torch.randn(3, 40), *given, 8, torch.tensor(0.1), 32, weight.zero_point)
    )
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 40, dtype=dtype)
        torch.library.opcheck(torch.ops.daptq.linear_w4a16.default, (x, *given, 32, weight.zero_point))


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [0, 64])
def test_the_avx2_kernel_passes_opcheck_and_counts_its_padding(num_bits: int, group_size: int) -> None:
    module = KERNELS.load("avx2-w4a16")
    if (reason := module.unavailable()) is not None:
        assert "AVX2" in reason or "g++" in reason
        return
    high, groups = 2 ** (num_bits - 1), 2 if group_size else 1
    integers = torch.randint(-high, high, (10, 100), dtype=torch.int8)
    zero_point = torch.randint(-high, high, (10, groups), dtype=torch.int8)
    weight = PackedWeight.from_integers(integers, num_bits, group_size=group_size, zero_point=zero_point)
    prepared = module.prepare(weight)
    padded = 128  # 100 inputs fill four units of 32, or two groups of 64.
    assert prepared.resident_bytes() == 10 * padded * (8 if num_bits == 8 else 4) // 8 + 10 * groups
    stored_bits = 8 if num_bits == 8 else 4
    torch.library.opcheck(
        torch.ops.daptq.linear_w4a16_avx2.default,
        (torch.randn(3, 100), prepared._stored, torch.rand(10, groups), zero_point, None, stored_bits, group_size),
    )
    with pytest.raises(RuntimeError, match="stored must be contiguous bytes"):
        prepared.run(torch.randn(3, 200), torch.rand(10, groups), None)


@pytest.mark.parametrize("backend", ["avx2-w4a16", "triton-w4a16"])
def test_a_kernel_for_float_activations_says_that_it_takes_no_others(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KERNELS.load(backend), "unavailable", lambda: None)
    layer = make_layer()
    with pytest.raises(BackendUnavailableError, match="it multiplies floating-point activations only"):
        QuantizedLinear(layer.packed_weight(), layer.weight_scale, backend=backend)


@pytest.mark.parametrize("backend", ["avx2", "fbgemm", "triton-w4a8"])
def test_a_kernel_for_integer_activations_says_that_it_takes_no_others(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KERNELS.load(backend), "unavailable", lambda: None)
    layer = make_layer()
    with pytest.raises(BackendUnavailableError, match="it multiplies quantized activations only"):
        QuantizedLinear(layer.packed_weight(), layer.weight_scale, activation_bits=16, backend=backend)


def test_triton_says_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("triton-w4a8", "triton-w4a16"):
        module = KERNELS.load(name)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert "there is no CUDA device" in str(module.unavailable())
        weight = make_layer().packed_weight()
        assert "not on cpu" in str(module.unsupported(weight, 16 if name == "triton-w4a16" else 8))
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        assert module.unavailable() == "Triton is not installed"
        monkeypatch.undo()


def test_static_scales_of_activations_that_are_not_quantized_are_refused() -> None:
    layer = make_layer()
    with pytest.raises(InvalidInputError, match="activation_scale must be None for activations that are not quantized"):
        QuantizedLinear(
            layer.packed_weight(), layer.weight_scale, activation_bits=16, activation_scale=torch.tensor([0.1])
        )


def test_a_backend_that_rounds_activations_is_not_taken_where_they_are_floats(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make_layer(in_features=512, out_features=64)
    floats = QuantizedLinear(layer.packed_weight(), layer.weight_scale, activation_bits=16)
    honest = carried.Float32CarriedLinear.run

    def rounded(self: Any, x: Tensor, scale: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        return honest(self, x, scale, bias, 8)

    monkeypatch.setattr(carried.Float32CarriedLinear, "run", rounded)
    floats(torch.randn(3, 512))
    assert "kernel float32-carried differs from the reference" in caplog.text
    assert floats.backend != "float32-carried"
