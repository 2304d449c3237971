"""Which backend multiplies a layer: the one that was asked for, or the fastest at the layer's real shape.

Every candidate is timed on the real activations, after its result was compared with the reference bit by bit; one that
differs is never taken, so a choice that falls differently on a busy machine changes the time and nothing else. Where
activations are not quantized there are no bits to agree on: a result must lie within the rounding of its arithmetic. A
shape is measured once on each machine: later processes, and those that measure it at the same time and finish later,
take the kept choice after the same comparison. A form that needs more memory than the bfloat16 weight it replaces is
taken only when asked for by name.

What the layer would take in bfloat16 is measured and kept as well. A quantized layer has no float copy to go back to,
so where bfloat16 is faster the picker says so, as a warning in every process, and takes the fastest low-bit kernel;
whether such layers are quantized at all is decided when the policy is (`Recipe.float_where_faster`).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.catalog import KERNELS
from daptq.errors import BackendUnavailableError, InvalidInputError
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, rounding_bound
from daptq.kernels.linear.contract import Backend, PackedWeight, PreparedLinear
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.choices import Choice, recall, remember

__all__ = ["AUTO", "REFERENCE", "choose", "load_backend", "measured", "prepare"]

AUTO = "auto"
REFERENCE = "reference"

ROUNDS = 5
# A candidate that takes this many times as long as the best is timed once: a round of a large layer takes a minute.
TIMED_ONCE_ABOVE = 10
BYTES_PER_BFLOAT16 = 2

_log = logging.getLogger("daptq.kernels")

# What `PreparedLinear.run` takes: activations, scales of the weight, bias, activation bits, static activation scale.
Operands = tuple[Tensor, Tensor, Tensor | None, int, Tensor | None]
# Whether a result is the reference's.
Agreement = Callable[[Tensor], bool]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Everything but the machine that the fastest backend depends on."""

    rows: int
    in_features: int
    out_features: int
    num_bits: int
    group_size: int
    asymmetric: bool
    activation_bits: int
    static: bool
    dtype: torch.dtype
    device: str
    threads: int

    def __str__(self) -> str:
        grid = f" in groups of {self.group_size}" if self.group_size else ""
        weights = f"{self.num_bits} bits{grid}{' with zero points' if self.asymmetric else ''}"
        sizes = f"{self.rows} x {self.in_features} x {self.out_features}"
        how, activations = self._activations()
        return f"{sizes}, {weights}, {self.device}, {self.threads} threads, {how} {activations} activations"

    def file_name(self) -> str:
        """The shape as the name of a file; another GPU of the same machine is another device."""
        cuda = self.device.startswith("cuda")
        place = torch.cuda.get_device_name(self.device).replace(" ", "_") if cuda else self.device
        grid = f"{f'g{self.group_size}' if self.group_size else ''}{'z' if self.asymmetric else ''}"
        sizes = f"{self.rows}x{self.in_features}x{self.out_features}"
        return f"{sizes}-w{self.num_bits}{grid}a{self.activation_bits}-{self._activations()[0]}-{place}-{self.threads}"

    def _activations(self) -> tuple[str, str]:
        """How activations are scaled, or their dtype, and what they are."""
        if self.activation_bits == FLOAT_ACTIVATIONS:
            return str(self.dtype).removeprefix("torch."), "unquantized"
        return "static" if self.static else "dynamic", f"{self.activation_bits}-bit"


_choices: dict[Shape, Choice] = {}


def load_backend(name: str) -> Backend:
    """The backend called `name`.

    Raises:
        UnknownNameError: There is no such backend.
        BackendUnavailableError: It cannot run on this machine.
    """
    backend = cast("Backend", KERNELS.load(name))
    if reason := backend.unavailable():
        raise BackendUnavailableError(f"kernel {name!r} must be able to run here, but {reason}. Choose {AUTO!r}.")
    return backend


def prepare(name: str, weight: PackedWeight, activation_bits: int = 8) -> PreparedLinear:
    """Prepares a weight for the backend that was asked for.

    Raises:
        UnknownNameError: There is no such backend.
        BackendUnavailableError: It cannot run on this machine, or cannot take this weight with such activations.
    """
    backend = load_backend(name)
    if reason := backend.unsupported(weight, activation_bits):
        raise BackendUnavailableError(f"kernel {name!r} must support the layer, but {reason}. Choose {AUTO!r}.")
    return backend.prepare(weight)


def choose(
    weight: PackedWeight,
    weight_scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
    x: Float[Tensor, "m in"],
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
) -> tuple[str, PreparedLinear]:
    """Takes the fastest backend for a layer at the shape of `x`, and logs it the first time a shape is seen.

    Args:
        weight: The layer's packed weight.
        weight_scale: float32 (out, groups).
        bias: float32 (out,), or None.
        x: (m, in), the activations that the layer is about to multiply.
        activation_bits: 4, 8 or 16.
        activation_scale: Static scale of the activations, float32 scalar; None for one scale per row.

    Returns:
        Name of the backend and the weight in its form.
    """
    shape = _shape(weight, x, activation_bits, activation_scale)
    if shape in _choices:
        name = _choices[shape].kernel
        return name, prepare(name, weight, activation_bits)
    # NaN equals nothing, and would disqualify every candidate.
    operands = (x.nan_to_num(), weight_scale, bias, activation_bits, activation_scale)
    agrees = _agreement(weight, operands)
    return _chosen_earlier(shape, weight, operands, agrees) or _measure_and_choose(shape, weight, operands, agrees)


def _chosen_earlier(
    shape: Shape, weight: PackedWeight, operands: Operands, agrees: Agreement
) -> tuple[str, PreparedLinear] | None:
    """The backend that an earlier process chose, or None where there is none or it can no longer be used."""
    kept = recall(shape.file_name())
    if kept is None:
        return None
    try:
        prepared = _try(kept.kernel, weight, operands, agrees)
    except InvalidInputError:  # It is from another distribution that has broken since.
        return None
    if isinstance(prepared, str):
        return None
    _settle(shape, kept, "measured by an earlier process on this machine")
    return kept.kernel, prepared


def _measure_and_choose(
    shape: Shape, weight: PackedWeight, operands: Operands, agrees: Agreement
) -> tuple[str, PreparedLinear]:
    """The fastest backend, or the one that another process has chosen while this one measured."""
    tried = KERNELS.usable(lambda name, _: _try(name, weight, operands, agrees))
    candidates = {name: prepared for name, prepared in tried.items() if not isinstance(prepared, str)}
    measured_now = _race(candidates, BFloat16Linear(weight.matrix(operands[1]).dequantize(), operands[2]), operands)
    kept = remember(shape.file_name(), measured_now)
    if kept is measured_now:
        remarks = {name: reason for name, reason in tried.items() if isinstance(reason, str)}
        remarks |= {name: f"{taken:.3f} ms" for name, taken in kept.milliseconds.items()}
        _settle(shape, kept, "; ".join(f"{name}: {remark}" for name, remark in sorted(remarks.items())))
    else:
        _settle(shape, kept, "measured by another process on this machine at the same time")
    return kept.kernel, candidates[kept.kernel]


def _race(candidates: Mapping[str, PreparedLinear], in_bfloat16: BFloat16Linear, operands: Operands) -> Choice:
    """The least time of each candidate and of the layer in bfloat16 over rounds in which they take turns."""
    times, floats = dict.fromkeys(candidates, math.inf), math.inf
    for _ in range(ROUNDS):
        contenders = [name for name in candidates if times[name] <= TIMED_ONCE_ABOVE * min(times.values())]
        for name in contenders:
            times[name] = min(times[name], _time(candidates[name], operands))
        floats = min(floats, _float_time(in_bfloat16, operands[0]))
    return Choice(
        kernel=min(times, key=lambda name: times[name]),
        milliseconds={name: 1e3 * seconds for name, seconds in times.items()},
        bfloat16_milliseconds=1e3 * floats,
    )


def measured(
    weight: PackedWeight,
    weight_scale: Float[Tensor, "out groups"],
    bias: Float[Tensor, " out"] | None,
    x: Float[Tensor, "m in"],
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
) -> Choice:
    """What this machine measured for a layer at the shape of `x`; it is measured now if it never was.

    Args: As in `choose`.
    """
    shape = _shape(weight, x, activation_bits, activation_scale)
    if shape not in _choices:
        choose(weight, weight_scale, bias, x, activation_bits, activation_scale)
    return _choices[shape]


def _shape(
    weight: PackedWeight, x: Float[Tensor, "m in"], activation_bits: int, activation_scale: Float[Tensor, ""] | None
) -> Shape:
    return Shape(
        rows=len(x),
        in_features=weight.in_features,
        out_features=weight.out_features,
        num_bits=weight.num_bits,
        group_size=weight.group_size,
        asymmetric=weight.zero_point is not None,
        activation_bits=activation_bits,
        static=activation_scale is not None,
        dtype=x.dtype,
        device=str(x.device),
        threads=torch.get_num_threads(),
    )


def _settle(shape: Shape, choice: Choice, why: str) -> None:
    """Takes a choice for this process and says it once, as a warning where bfloat16 is faster."""
    _choices[shape] = choice
    level = logging.WARNING if choice.slower else logging.INFO
    _log.log(level, "kernel for %s is %s (%s); %s", shape, choice.kernel, why, choice.explanation())


def _try(name: str, weight: PackedWeight, operands: Operands, agrees: Agreement) -> PreparedLinear | str:
    """The weight in a backend's form, or why the backend is no candidate; the comparison is the warm-up, too."""
    backend = cast("Backend", KERNELS.load(name))
    x, activation_bits = operands[0], operands[3]
    if reason := backend.unavailable() or backend.unsupported(weight, activation_bits):
        return reason
    prepared = backend.prepare(weight)
    if prepared.resident_bytes() > BYTES_PER_BFLOAT16 * weight.in_features * weight.out_features:
        return "needs more memory than bfloat16"
    if name != REFERENCE and not agrees(prepared.run(*operands).cpu()):
        shape = f"{len(x)} x {weight.in_features} x {weight.out_features}, {weight.num_bits} bits"
        _log.warning("kernel %s differs from the reference at %s: not used", name, shape)
        return "differs from the reference"
    return prepared


def _agreement(weight: PackedWeight, operands: Operands) -> Agreement:
    """What tells whether a result is the reference's: bit for bit, or within the rounding of floating-point products.

    The reference computes on the CPU, whatever the layer's device.
    """
    zero_point = None if weight.zero_point is None else weight.zero_point.cpu()
    packed = replace(weight, packed=weight.packed.cpu(), zero_point=zero_point)
    x, weight_scale, activation_bits = operands[0].cpu(), operands[1].cpu(), operands[3]
    bias, activation_scale = (None if one is None else one.cpu() for one in (operands[2], operands[4]))
    reference = prepare(REFERENCE, packed, activation_bits)
    expected = reference.run(x, weight_scale, bias, activation_bits, activation_scale)
    if activation_bits != FLOAT_ACTIVATIONS:
        return lambda result: torch.equal(result, expected)
    bound = rounding_bound(x, packed.matrix(weight_scale).dequantize(torch.float64), bias)
    return lambda result: bool(((result.double() - expected.double()).abs() <= bound).all())


def _float_time(layer: BFloat16Linear, x: Float[Tensor, "m in"]) -> float:
    """Seconds of one call of the layer in bfloat16."""
    _wait(x.device)
    start = time.perf_counter()
    layer(x)
    _wait(x.device)
    return time.perf_counter() - start


def _time(prepared: PreparedLinear, operands: Operands) -> float:
    """Seconds of one call."""
    device = operands[0].device
    _wait(device)
    start = time.perf_counter()
    prepared.run(*operands)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Waits until a device that works asynchronously has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
