"""The operation's registration, the quantized layer as a module, and the choice of a backend."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import daptq.kernels.linear.backends.fbgemm as fbgemm
import daptq.kernels.linear.backends.reference  # noqa: F401  (registers the operation)
from daptq.catalog import KERNELS
from daptq.errors import BackendUnavailableError, InvalidInputError, UnknownNameError
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers import choices, picker
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from tests.integer_kernels import NAMES


def make_layer(
    num_bits: int = 4, in_features: int = 24, out_features: int = 10, *, bias: bool = True, backend: str = "auto"
) -> QuantizedLinear:
    generator = torch.Generator().manual_seed(1)
    limit = 2 ** (num_bits - 1) - 1
    integers = torch.randint(-limit, limit + 1, (out_features, in_features), generator=generator, dtype=torch.int8)
    scale = 0.1 + torch.rand(out_features, 1, generator=generator)
    offset = torch.randn(out_features, generator=generator) if bias else None
    return QuantizedLinear.from_integers(integers, scale, offset, num_bits=num_bits, backend=backend)


@pytest.fixture(autouse=True)
def nothing_chosen_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test starts like the first process on a machine."""
    monkeypatch.setattr(picker, "_choices", {})
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path / "choices")


# --- the operation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
def test_operation_passes_opcheck(num_bits: int, bias: bool) -> None:
    layer = make_layer(num_bits, bias=bias)
    arguments = (torch.randn(3, 24), layer.weight_packed, layer.weight_scale, layer.bias, 24, num_bits)
    torch.library.opcheck(torch.ops.daptq.linear_w4a8.default, arguments)


def test_opcheck_notices_a_wrong_shape_rule() -> None:
    name = "daptq::broken_for_the_test"
    torch.library.define(name, "(Tensor x) -> Tensor")
    torch.library.impl(name, "default")(lambda x: x.new_zeros(len(x), 2))
    torch.library.register_fake(name)(lambda x: x.new_empty(len(x), 3))
    with pytest.raises(Exception, match="test_faketensor"):
        torch.library.opcheck(torch.ops.daptq.broken_for_the_test.default, (torch.randn(4, 2),))


def test_operation_refuses_bytes_of_another_width() -> None:
    layer = make_layer(4)
    with pytest.raises(InvalidInputError, match="weight_packed must be uint8 of shape"):
        torch.ops.daptq.linear_w4a8(torch.randn(3, 24), layer.weight_packed, layer.weight_scale, None, 24, 3)


def test_reference_layer_runs_the_registered_operation() -> None:
    layer = make_layer(backend="reference")
    seen: list[str] = []

    class Recorder(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Recorder():  # type: ignore[no-untyped-call]
        layer(torch.randn(2, 24))
    assert "daptq.linear_w4a8.default" in seen
    assert "aten.mm.default" not in seen  # It happens inside the operation.


# --- the layer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [*NAMES, "auto"])
@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_round_trip(backend: str, bias: bool) -> None:
    layer, x = make_layer(bias=bias, backend=backend), torch.randn(5, 24)
    expected = layer(x)
    state = layer.state_dict()
    names = {"weight_packed", "weight_scale", "weight_shape"} | ({"bias"} if bias else set())
    assert set(state) == names
    assert state["weight_shape"].tolist() == [10, 24]
    other = QuantizedLinear.from_integers(
        torch.zeros(10, 24, dtype=torch.int8), torch.ones(10, 1), torch.zeros(10) if bias else None, backend=backend
    )
    assert not torch.equal(other(x), expected)
    nn.Sequential(other).load_state_dict(nn.Sequential(layer).state_dict())
    assert torch.equal(other(x), expected)
    # What was loaded is a copy.
    state["weight_packed"].zero_()
    assert torch.equal(other(x), expected)


def test_loading_names_what_is_missing_and_refuses_other_sizes() -> None:
    layer = make_layer()
    state = layer.state_dict()
    del state["weight_packed"]
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_packed"):
        layer.load_state_dict(state)
    for other in (make_layer(in_features=30), make_layer(out_features=11)):
        with pytest.raises((InvalidInputError, RuntimeError), match=r"weight_packed must|size mismatch"):
            layer.load_state_dict(other.state_dict())


@pytest.mark.parametrize("backend", [*NAMES, "auto"])
def test_copies_and_pickles_compute_the_same(backend: str) -> None:
    layer, x = make_layer(backend=backend), torch.randn(5, 24)
    expected = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x), expected)
        assert twin.backend == layer.backend
        twin.weight_scale.mul_(2)
        assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("backend", [*NAMES, "auto"])
def test_a_changed_scale_or_bias_counts_after_the_weight_was_prepared(backend: str) -> None:
    layer, x = make_layer(backend=backend), torch.randn(5, 24)
    before = layer(x)
    assert layer.bias is not None
    layer.weight_scale.mul_(2)
    layer.bias.mul_(2)
    assert torch.equal(layer(x), 2 * before)


def test_weight_tells_shape_dtype_and_device_and_holds_no_values() -> None:
    layer = make_layer()
    weight = layer.weight
    assert (weight.shape, weight.dtype, weight.device) == ((10, 24), torch.float32, torch.device("cpu"))
    assert weight.is_floating_point()
    for name in ("double", "sum", "clone", "exp"):
        with pytest.raises(InvalidInputError, match="must be read for its shape, dtype and device only"):
            getattr(weight, name)()
    with pytest.raises(InvalidInputError, match="must be read"):
        nn.functional.linear(torch.randn(2, 24), weight)
    assert repr(weight).startswith("<stands for a weight, shape (10, 24), dtype torch.float32")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_the_result_has_the_dtype_of_the_activations_and_scales_stay_float32(dtype: torch.dtype) -> None:
    layer = make_layer()
    scale = layer.weight_scale.clone()
    x = torch.randn(3, 24).to(dtype)
    expected = layer(x.float()).to(dtype)
    layer.to(dtype)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.weight.dtype == dtype
    assert torch.equal(layer(x), expected)
    assert layer(x).dtype == dtype


def test_batch_axes_are_kept() -> None:
    layer, x = make_layer(), torch.randn(2, 3, 4, 24)
    y = layer(x)
    assert y.shape == (2, 3, 4, 10)
    assert torch.equal(y[1, 2], layer(x[1, 2]))
    assert torch.equal(layer(x[0, 0, 0]), y[0, 0, 0])
    strided = x.transpose(0, 2)
    assert torch.equal(layer(strided), y.transpose(0, 2))


def test_wrong_width_is_refused_even_when_the_number_of_values_fits() -> None:
    with pytest.raises(InvalidInputError, match="input must have 24 features"):
        make_layer()(torch.randn(4, 12))


def test_a_gradient_is_refused_and_not_zero() -> None:
    layer, x = make_layer(), torch.randn(3, 24, requires_grad=True)
    y = layer(x)
    with torch.no_grad():
        assert torch.equal(y.detach(), layer(x))
    with pytest.raises(InvalidInputError, match="must not be differentiated"):
        y.sum().backward()


def test_integers_and_dequantize() -> None:
    layer = make_layer(3, backend="float32-carried")
    weight = layer.dequantize()
    assert torch.equal(weight, layer.integers() * layer.weight_scale)
    assert int(layer.integers().abs().max()) == 3


def test_resident_bytes_follow_the_form() -> None:
    layer = make_layer(in_features=192, out_features=64)
    constant = 4 * 64 + 4 * 64 + 16  # scale, bias, shape
    assert layer.resident_bytes() == 192 * 64 // 2 + constant
    layer.use_backend("reference")
    assert layer.resident_bytes() == 192 * 64 // 2 + constant
    layer.use_backend("float32-carried")
    assert layer.resident_bytes() == 192 * 64 + constant
    layer.use_backend("auto")
    assert layer.resident_bytes() == 192 * 64 // 2 + constant


def test_only_one_form_of_the_weight_is_kept() -> None:
    def packed_bytes() -> int:
        return sum(buffer.nbytes for name, buffer in layer.named_buffers() if name == "_packed")

    layer = make_layer(in_features=192, out_features=64, backend="float32-carried")
    assert packed_bytes() == 0
    layer.use_backend("auto")
    assert packed_bytes() == 192 * 64 // 2
    layer(torch.randn(2, 192))
    assert packed_bytes() == 0


@pytest.mark.skipif("fbgemm" not in NAMES, reason="this processor or torch has no FBGEMM")
def test_fbgemm_reports_its_padding() -> None:
    # 192 inputs fill one block of 512; 60 outputs fill eight blocks of 8; one 4-byte column sum for each output.
    layer = make_layer(in_features=192, out_features=60, backend="fbgemm")
    assert layer.resident_bytes() == 512 * 64 + 4 * 60 + (4 * 60 + 4 * 60 + 16)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    integers = torch.ones(4, 6, dtype=torch.int8)
    with pytest.raises(InvalidInputError, match=r"weight_scale must have shape \(4, 1\)"):
        QuantizedLinear.from_integers(integers, torch.ones(1, 1))
    with pytest.raises(InvalidInputError, match=r"bias must have shape \(4,\)"):
        QuantizedLinear.from_integers(integers, torch.ones(4, 1), torch.ones(1))
    with pytest.raises(InvalidInputError, match="integers must have shape"):
        QuantizedLinear.from_integers(integers[0], torch.ones(4, 1))
    with pytest.raises(InvalidInputError, match="num_bits of a quantized layer must be one of 2, 3, 4, 8, got 5"):
        QuantizedLinear.from_integers(integers, torch.ones(4, 1), num_bits=5)
    with pytest.raises(InvalidInputError, match=r"lie in \[-8, 7\]"):
        QuantizedLinear.from_integers(100 * integers, torch.ones(4, 1))


def test_bfloat16_layer_keeps_two_bytes_per_weight_and_has_no_gradient() -> None:
    linear = nn.Linear(8, 4, bias=False)
    layer = BFloat16Linear.from_linear(linear)
    assert layer.bias is None
    assert layer.resident_weight.dtype == torch.bfloat16
    assert sum(p.nbytes for p in layer.parameters()) == 2 * 8 * 4
    assert not layer.resident_weight.requires_grad
    before = layer.weight.clone()
    with torch.no_grad():
        linear.weight.zero_()
    assert torch.equal(layer.weight, before)


# --- the choice ------------------------------------------------------------------------------------------------------


def test_unknown_kernel_suggests_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'float32-carried'"):
        make_layer(backend="float32_carry")


def test_an_explicit_kernel_that_cannot_run_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbgemm, "unavailable", lambda: "this processor is made of wood")
    with pytest.raises(
        BackendUnavailableError, match="'fbgemm' must be able to run here, but this processor is made of"
    ):
        make_layer(backend="fbgemm")
    assert torch.isfinite(make_layer(backend="auto")(torch.randn(2, 24))).all()


def test_an_explicit_kernel_that_cannot_take_the_weight_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbgemm, "unavailable", lambda: None)
    with pytest.raises(BackendUnavailableError, match="16-bit sums overflow"):
        make_layer(8, backend="fbgemm")
    assert make_layer(8, backend="reference").backend == "reference"


def test_fbgemm_says_why_it_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fbgemm, "_OPERATIONS", ("linear_prepack", "no_such_operation"))
    monkeypatch.setattr(fbgemm, "_ENGINE", torch.backends.quantized.supported_engines[0])
    assert "no operation quantized::no_such_operation" in str(fbgemm.unavailable())
    monkeypatch.setattr(fbgemm, "_ENGINE", "no-such-engine")
    assert "no FBGEMM for this processor" in str(fbgemm.unavailable())


def test_the_engine_that_torch_is_set_to_survives() -> None:
    engine = torch.backends.quantized.engine
    for name in NAMES:
        make_layer(backend=name)
    assert torch.backends.quantized.engine == engine


def test_auto_chooses_once_for_each_shape_and_logs_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="daptq.kernels")
    layers = [make_layer(in_features=512, out_features=64) for _ in range(3)]
    assert [layer.backend for layer in layers] == [None, None, None]
    x = torch.randn(7, 512)
    results = [layer(x) for layer in layers]
    assert len({layer.backend for layer in layers}) == 1
    assert layers[0].backend in NAMES
    assert torch.equal(results[0], results[2])
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert message.startswith("kernel for 7 x 512 x 64, 4 bits, cpu")
    assert all(name in message for name in KERNELS.names())
    assert "triton-w4a8: there is no CUDA device" in message or torch.cuda.is_available()
    make_layer(in_features=512, out_features=65)(x)
    assert len(caplog.records) == 2


def test_auto_takes_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"ReferenceLinear": 1.0, "Float32CarriedLinear": 2.0, "FbgemmLinear": 3.0, "Avx2Linear": 4.0}
    monkeypatch.setattr(picker, "_time", lambda prepared, *_: times[type(prepared).__name__])
    layer, x = make_layer(in_features=512, out_features=64), torch.randn(2, 512)
    layer(x)
    assert layer.backend == "reference"
    times["Float32CarriedLinear"] = 0.5
    other = make_layer(in_features=512, out_features=72)
    other(x)
    assert other.backend == "float32-carried"


@pytest.mark.skipif("fbgemm" not in NAMES, reason="this processor or torch has no FBGEMM")
def test_auto_takes_no_form_larger_than_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picker, "_time", lambda prepared, *_: 0.0 if type(prepared).__name__ == "FbgemmLinear" else 1.0)
    narrow, wide = make_layer(in_features=64, out_features=64), make_layer(in_features=512, out_features=64)
    narrow(torch.randn(2, 64))
    wide(torch.randn(2, 512))
    assert wide.backend == "fbgemm"
    assert narrow.backend != "fbgemm"
    assert narrow.resident_bytes() <= 2 * 64 * 64 + 1000


def test_the_first_activations_may_hold_nan(caplog: pytest.LogCaptureFixture) -> None:
    layer = make_layer(in_features=512, out_features=64)
    layer(torch.full((2, 512), float("nan")))
    assert "differs" not in caplog.text


def test_a_moved_layer_keeps_its_kernel_and_a_loaded_one_its_place(device: torch.device) -> None:
    layer: nn.Module = make_layer()
    x = torch.randn(2, 24)
    expected = layer(x)
    moved = layer.to(device)
    result: Tensor = moved(x.to(device))
    assert torch.equal(result.cpu(), expected)


def test_packed_weight_refuses_other_dtypes() -> None:
    with pytest.raises(InvalidInputError, match="weight_packed must be uint8"):
        PackedWeight(packed=torch.zeros(2, 3, dtype=torch.int8), in_features=6, num_bits=4)
