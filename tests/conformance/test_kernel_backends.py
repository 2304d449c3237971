"""Every kernel backend of the catalog keeps the contract, and the suite that says so notices when one does not."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from daptq.catalog import KERNELS
from daptq.errors import CheckFailedError
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, quantize_activations, rescale
from daptq.kernels.linear.backends import reference
from daptq.kernels.linear.conformance import check_backend
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear, beyond_channels

# Triton decides when it is imported whether it runs in its interpreter: these are checked in another process.
TRITON = ["triton-w4a16", "triton-w4a8"]
EVERYWHERE = {"reference", "float32-carried"}

IN_ANOTHER_PROCESS = """
import json, sys
from daptq.catalog import KERNELS
from daptq.kernels.linear.conformance import check_backend
device, *names = sys.argv[1:]
print(json.dumps({name: check_backend(KERNELS.load(name), device=device) for name in names}))
"""

CASES = [(name, "cpu") for name in KERNELS.names() if name not in TRITON]
CASES += [("float32-carried", "cuda")] if torch.cuda.is_available() else []


@pytest.mark.parametrize(("name", "device"), CASES)
def test_backend_keeps_the_contract(name: str, device: str) -> None:
    backend: Any = KERNELS.load(name)
    products = check_backend(backend, device=device)
    if name in EVERYWHERE:
        assert products > 200
    elif backend.unavailable() is None:
        assert products > 50
    else:
        assert products == 0


# Triton is not imported here: its LLVM and that of Mesa, which other tests draw with, do not go together.
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")
@pytest.mark.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def test_triton_backends_keep_the_contract(device: str) -> None:
    # NumPy, which the interpreter runs on, warns of infinity times zero.
    warned = ["-W", "error", "-W", "ignore:invalid value:RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, *warned, "-c", IN_ANOTHER_PROCESS, device, *TRITON],
        env={**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    products = json.loads(done.stdout.splitlines()[-1])
    assert list(products) == TRITON
    assert min(products.values()) > 50


Run = Callable[[PackedWeight, Tensor, Tensor, Tensor | None, int, Tensor | None], Tensor]


def product(
    weight: PackedWeight, x: Tensor, scale: Tensor, bias: Tensor | None, bits: int, static: Tensor | None
) -> Tensor:
    """The reference's product."""
    return reference.prepare(weight).run(x, scale, bias, bits, static)


class _Form(PreparedLinear):
    """A sound form of a weight: the defects below are planted in it."""

    run_as: Run = staticmethod(product)

    def __init__(self, weight: PackedWeight) -> None:
        self.given = weight

    def run(
        self,
        x: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        activation_bits: int = 8,
        activation_scale: Tensor | None = None,
    ) -> Tensor:
        return self.run_as(self.given, x, weight_scale, bias, activation_bits, activation_scale)

    def weight(self) -> PackedWeight:
        return self.given

    def resident_bytes(self) -> int:
        return self.given.nbytes()


class _Backend:
    """A backend that stands for a module.

    Args:
        form: Makes the form of a weight.
        missing: Why the backend cannot run.
        refuses: Why it refuses a layer.
    """

    def __init__(
        self,
        form: Callable[[PackedWeight], Any] = _Form,
        *,
        missing: Any = None,
        refuses: Callable[[PackedWeight, int], Any] = lambda *_: None,
    ) -> None:
        self.form, self.missing, self.refuses = form, missing, refuses

    def unavailable(self) -> str | None:
        return self.missing

    def unsupported(self, weight: PackedWeight, activation_bits: int) -> str | None:
        return self.refuses(weight, activation_bits)

    def prepare(self, weight: PackedWeight) -> PreparedLinear:
        return self.form(weight)


def form_that(run: Run) -> type[PreparedLinear]:
    """A form that multiplies in its own way."""

    class Form(_Form):
        run_as = staticmethod(run)

    return Form


def multiplying(run: Run) -> _Backend:
    """A backend that multiplies in its own way."""
    return _Backend(form_that(run))


def rounding(by: Callable[[Tensor], Tensor], *, in_order: bool = True) -> _Backend:
    """A backend for one scale per row that rounds activations in its own way, and may multiply the scales first."""

    def run(
        weight: PackedWeight, x: Tensor, scale: Tensor, bias: Tensor | None, bits: int, static: Tensor | None
    ) -> Tensor:
        steps = quantize_activations(x, bits, static)[1]
        integers = by(x / steps).clamp_(*((-127.0, 127.0) if bits == 8 else (-7.0, 7.0)))
        sums = (integers.double() @ weight.integers().double().mT).float()
        return (
            rescale(sums, steps, scale, bias)
            if in_order
            else sums * (steps * scale.t()) + (0 if bias is None else bias)
        )

    return _Backend(form_that(run), refuses=beyond_channels)


def test_the_backend_of_the_planted_defects_is_sound() -> None:
    assert check_backend(rounding(torch.round)) > 100


def forgets_the_bias(weight: PackedWeight, x: Tensor, scale: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    return product(weight, x, scale, None, *rest)


def forgets_the_static_scale(weight: PackedWeight, x: Tensor, scale: Tensor, bias: Any, bits: int, _: Any) -> Tensor:
    return product(weight, x, scale, bias, bits, None)


def loses_zero_points(weight: PackedWeight, *rest: Any) -> Tensor:
    return product(replace(weight, zero_point=None), *rest)


def loses_the_last_input(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    ragged = weight.in_features % 32 and len(x) > 1 and rest[2] == 8
    return product(weight, x * (torch.arange(x.shape[1]) < x.shape[1] - 1) if ragged else x, *rest)


def rounds_what_is_not_quantized(
    weight: PackedWeight, x: Tensor, scale: Tensor, bias: Any, bits: int, s: Any
) -> Tensor:
    return product(weight, x.float(), scale, bias, min(bits, 8), s)


def multiplies_in_bfloat16(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    return product(weight, x.bfloat16() if rest[2] == FLOAT_ACTIVATIONS else x, *rest)


def cleans_up(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    return product(weight, x.nan_to_num(), *rest)


def looks_away(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    return product(weight, torch.where(torch.isinf(x[:, -1:]), 0, x), *rest)


def spoils_every_row(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    return product(weight, x, *rest) + 0 * x.float().sum()


def writes_into_activations(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    result = product(weight, x, *rest)
    x.round_()
    return result


def writes_into_scales(weight: PackedWeight, x: Tensor, scale: Tensor, *rest: Any) -> Tensor:
    result = product(weight, x, scale, *rest)
    scale.mul_(2)
    return result


def answers_in_float64(*operands: Any) -> Tensor:
    return product(*operands).double()


def answers_in_columns(*operands: Any) -> Tensor:
    return product(*operands).t().contiguous().t()


def keeps_a_batch_axis(*operands: Any) -> Tensor:
    return product(*operands).unsqueeze(0)


def fails_without_rows(weight: PackedWeight, x: Tensor, *rest: Any) -> Tensor:
    return product(weight, x[torch.arange(max(len(x), 1))], *rest)


def fails_with_groups(weight: PackedWeight, *rest: Any) -> Tensor:
    if weight.groups > 1:
        raise NotImplementedError("groups will come")
    return product(weight, *rest)


class _OneResult(_Form):
    """Writes every result of a shape into the same memory."""

    def __init__(self, weight: PackedWeight) -> None:
        super().__init__(weight)
        self.results: dict[int, Tensor] = {}

    def run(self, x: Tensor, *operands: Any) -> Tensor:
        result = self.results.setdefault(len(x), torch.empty(len(x), self.given.out_features))
        return result.copy_(super().run(x, *operands))


class _AnotherWeight(_Form):
    def weight(self) -> PackedWeight:
        return replace(self.given, packed=self.given.packed ^ 1)


class _ForgetsGroups(_Form):
    def weight(self) -> PackedWeight:
        return self.given if self.given.groups > 1 else replace(self.given, group_size=0)


class _ForgetsZeroPoints(_Form):
    def weight(self) -> PackedWeight:
        return replace(self.given, zero_point=None)


class _TakesNothing(_Form):
    def resident_bytes(self) -> int:
        return self.given.out_features


class _WritesIntoTheWeight(_Form):
    def __init__(self, weight: PackedWeight) -> None:
        super().__init__(replace(weight, packed=weight.packed.clone()))
        weight.packed.zero_()


def test_a_backend_that_cannot_run_is_not_asked_for_more() -> None:
    def prepare(weight: PackedWeight) -> PreparedLinear:
        pytest.fail("it cannot run")

    assert check_backend(_Backend(prepare, missing="this processor is made of wood")) == 0


@pytest.mark.parametrize(
    ("defective", "message"),
    [
        (rounding(lambda x: torch.floor(x + 0.5)), "must equal the reference, got"),
        (rounding(torch.trunc), "must equal the reference, got"),
        (rounding(torch.round, in_order=False), "must equal the reference, got"),
        (multiplying(forgets_the_bias), "a bias must equal the reference, got"),
        (multiplying(forgets_the_static_scale), "static activations .* must equal the reference, got"),
        (multiplying(loses_zero_points), "with zero points, .* must equal the reference, got"),
        (multiplying(loses_the_last_input), "8-bit dynamic activations .* must equal the reference"),
        (multiplying(rounds_what_is_not_quantized), "16-bit float32 .* must stay within its rounding, got"),
        (multiplying(multiplies_in_bfloat16), "16-bit float32 .* must stay within its rounding, got"),
        (multiplying(cleans_up), "nan in column 0 of .* must leave no number of its row finite"),
        (multiplying(looks_away), "inf in column . of .* must leave no number of its row finite"),
        (multiplying(spoils_every_row), "must equal the reference in rows beside others with NaN"),
        (multiplying(writes_into_activations), "the operands of .* must stay as they are"),
        (multiplying(writes_into_scales), "the operands of .* must stay as they are"),
        (multiplying(answers_in_float64), "contiguous float32 of shape .* got torch.float64"),
        (multiplying(answers_in_columns), "contiguous float32 of shape"),
        (multiplying(keeps_a_batch_axis), r"contiguous float32 of shape \(1, 1\), got torch.float32 \(1, 1, 1\)"),
        (multiplying(fails_without_rows), "must be multiplied, got IndexError"),
        (multiplying(fails_with_groups), "must be multiplied, got NotImplementedError: groups will come"),
        (_Backend(_OneResult), "must stay as it is when the next one is computed"),
        (_Backend(_AnotherWeight), r"weight\(\) of .* must be what was prepared"),
        (_Backend(_ForgetsGroups), r"weight\(\) of .* in groups of 32, .* must be what was prepared"),
        (_Backend(_ForgetsZeroPoints), r"weight\(\) of .* with zero points, .* must be what was prepared"),
        (_Backend(_TakesNothing), "must keep .* bytes or more, got"),
        (_Backend(_WritesIntoTheWeight), "the operands of .* must stay as they are"),
        (_Backend(lambda weight: weight), "must be prepared as a PreparedLinear, got PackedWeight"),
        (_Backend(refuses=lambda *_: "it takes none"), "must support some layer on cpu"),
        (
            _Backend(refuses=lambda *_: ""),
            r"unsupported\(\) of 1 x 1 by 1 at 2 bits, .* must say why in words or be None, got ''",
        ),
        (_Backend(refuses=lambda *_: False), r"unsupported\(\) of .* must say why in words or be None, got False"),
        (_Backend(missing=" "), r"unavailable\(\) must say why in words or be None, got ' '"),
        (_Backend(missing=True), r"unavailable\(\) must say why in words or be None, got True"),
    ],
)
def test_a_planted_defect_is_found(defective: _Backend, message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        check_backend(defective)
