"""Which backend multiplies a layer: the one that was asked for, or the fastest at the layer's real shape.

Every candidate is timed on the real activations, after its result was compared with the reference bit by bit; one that
differs is never taken, so a choice that falls differently on a busy machine changes the time and nothing else. A shape
is measured once on each machine: later processes take the kept choice after the same comparison. A form that needs more
memory than the bfloat16 weight it replaces is taken only when asked for by name.
"""

from __future__ import annotations

import logging
import math
import time
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.catalog import KERNELS
from daptq.errors import BackendUnavailableError
from daptq.kernels.linear._choices import recall, remember
from daptq.kernels.linear._prepared import Backend, PackedWeight, PreparedLinear

__all__ = ["AUTO", "REFERENCE", "choose", "load_backend", "prepare"]

AUTO = "auto"
REFERENCE = "reference"

ROUNDS = 5
BYTES_PER_BFLOAT16 = 2

_log = logging.getLogger("daptq.kernels")

Shape = tuple[int, int, int, int, str, int, int, bool]
Arguments = tuple[Tensor, Tensor, Tensor | None, int, Tensor | None]
_choices: dict[Shape, str] = {}


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


def prepare(name: str, weight: PackedWeight) -> PreparedLinear:
    """Prepares a weight for the backend that was asked for.

    Raises:
        UnknownNameError: There is no such backend.
        BackendUnavailableError: It cannot run on this machine, or cannot take this weight.
    """
    backend = load_backend(name)
    if reason := backend.unsupported(weight):
        raise BackendUnavailableError(f"kernel {name!r} must support the layer, but {reason}. Choose {AUTO!r}.")
    return backend.prepare(weight)


def choose(
    weight: PackedWeight,
    weight_scale: Float[Tensor, "out 1"],
    bias: Float[Tensor, " out"] | None,
    x: Float[Tensor, "m in"],
    activation_bits: int = 8,
    activation_scale: Float[Tensor, ""] | None = None,
) -> tuple[str, PreparedLinear]:
    """Takes the fastest backend for a layer at the shape of `x`, and logs it the first time a shape is seen.

    Args:
        weight: The layer's packed weight.
        weight_scale: float32 (out, 1).
        bias: float32 (out,), or None.
        x: float32 (m, in), the activations that the layer is about to multiply.
        activation_bits: 4 or 8.
        activation_scale: Static scale of the activations, float32 scalar; None for one scale per row.

    Returns:
        Name of the backend and the weight in its form.
    """
    static = activation_scale is not None
    where = (str(x.device), torch.get_num_threads())
    shape = (len(x), weight.in_features, weight.out_features, weight.num_bits, *where, activation_bits, static)
    if shape in _choices:
        name = _choices[shape]
        return name, prepare(name, weight)
    x = x.nan_to_num()  # NaN equals nothing, and would disqualify every candidate.
    arguments = (x, weight_scale, bias, activation_bits, activation_scale)
    expected = _reference(weight, arguments)
    kept = recall(_file_name(shape))
    if kept is not None and not isinstance(taken := _try(kept, weight, arguments, expected), str):
        _choices[shape] = kept
        _log.info("kernel for %s is %s (measured by an earlier process on this machine)", _describe(shape), kept)
        return kept, taken
    candidates: dict[str, PreparedLinear] = {}
    remarks: dict[str, str] = {}
    for name in KERNELS.names():
        tried = _try(name, weight, arguments, expected)
        if isinstance(tried, str):
            remarks[name] = tried
        else:
            candidates[name] = tried
    times = dict.fromkeys(candidates, math.inf)
    for _ in range(ROUNDS):
        for name, prepared in candidates.items():
            times[name] = min(times[name], _time(prepared, arguments))
    fastest = min(times, key=lambda name: times[name])
    _choices[shape] = fastest
    remember(_file_name(shape), fastest, times)
    remarks |= {name: f"{1e3 * seconds:.3f} ms" for name, seconds in times.items()}
    listed = "; ".join(f"{name}: {remark}" for name, remark in sorted(remarks.items()))
    _log.info("kernel for %s is %s (%s)", _describe(shape), fastest, listed)
    return fastest, candidates[fastest]


def _try(
    name: str, weight: PackedWeight, arguments: Arguments, expected: Float[Tensor, "m out"]
) -> PreparedLinear | str:
    """The weight in a backend's form, or why the backend is no candidate; the comparison is the warm-up, too."""
    backend = cast("Backend", KERNELS.load(name))
    if reason := backend.unavailable() or backend.unsupported(weight):
        return reason
    prepared = backend.prepare(weight)
    if prepared.resident_bytes() > BYTES_PER_BFLOAT16 * weight.in_features * weight.out_features:
        return "needs more memory than bfloat16"
    if not torch.equal(prepared.run(*arguments).cpu(), expected):
        shape = f"{len(expected)} x {weight.in_features} x {weight.out_features}, {weight.num_bits} bits"
        _log.warning("kernel %s differs from the reference at %s: not used", name, shape)
        return "differs from the reference"
    return prepared


def _reference(weight: PackedWeight, arguments: Arguments) -> Float[Tensor, "m out"]:
    """The reference's result, on the CPU whatever the layer's device."""
    packed = PackedWeight(packed=weight.packed.cpu(), in_features=weight.in_features, num_bits=weight.num_bits)
    x, weight_scale, bias, activation_bits, activation_scale = arguments
    bias = None if bias is None else bias.cpu()
    activation_scale = None if activation_scale is None else activation_scale.cpu()
    return prepare(REFERENCE, packed).run(x.cpu(), weight_scale.cpu(), bias, activation_bits, activation_scale)


def _time(prepared: PreparedLinear, arguments: Arguments) -> float:
    """Seconds of one call."""
    device = arguments[0].device
    _wait(device)
    start = time.perf_counter()
    prepared.run(*arguments)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    """Waits until a device that works asynchronously has finished."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _describe(shape: Shape) -> str:
    rows, in_features, out_features, num_bits, device, threads, activation_bits, static = shape
    activations = f"{'static' if static else 'dynamic'} {activation_bits}-bit activations"
    return f"{rows} x {in_features} x {out_features}, {num_bits} bits, {device}, {threads} threads, {activations}"


def _file_name(shape: Shape) -> str:
    """The shape as the name of a file; another GPU of the same machine is another device."""
    rows, in_features, out_features, num_bits, device, threads, activation_bits, static = shape
    place = torch.cuda.get_device_name(device).replace(" ", "_") if device.startswith("cuda") else device
    sizes = f"{rows}x{in_features}x{out_features}-w{num_bits}a{activation_bits}"
    return f"{sizes}-{'static' if static else 'dynamic'}-{place}-{threads}"
