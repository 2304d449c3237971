"""The public conformance suite of a kernel backend: its contract, checked against the reference on many small layers.

It multiplies; it measures no time, and knows no backend but the reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import CheckFailedError, require_check
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, rounding_bound
from daptq.kernels.linear.backends import reference
from daptq.kernels.linear.contract import WEIGHT_BITS, Backend, PackedWeight, PreparedLinear
from daptq.numerics.quantized_matrix import GROUP_SIZES, group_count

__all__ = ["check_backend"]

# Rows, inputs and outputs: less and more than a tile of any kernel, and odd remainders.
SHAPES = ((1, 1, 1), (3, 7, 5), (1, 100, 33), (17, 192, 40), (70, 255, 17), (5, 33, 64), (2, 300, 24))
# Those of the layers with groups or zero points: from one group that no row fills to ten groups.
GROUPED_SHAPES = ((3, 7, 5), (1, 100, 33), (17, 192, 40), (5, 300, 17))

# Bits of the activations, and the static scale. A power of two, so that activations lie exactly between two integers.
DYNAMIC = ((4, None), (8, None))
STATIC = ((4, 2.0**-2), (8, 2.0**-6))
FLOATS = (FLOAT_ACTIVATIONS, None)
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

NOT_FINITE = (torch.nan, torch.inf, -torch.inf)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Case:
    """One product, on the CPU.

    Attributes:
        weight: The weight.
        weight_scale: float32 (out, groups).
        bias: float32 (out,), or None.
        bits: Bits of the activations.
        static: Static scale of the activations, float32 scalar, or None.
        x: (m, in), the activations.
    """

    weight: PackedWeight
    weight_scale: Float[Tensor, "out groups"]
    bias: Float[Tensor, " out"] | None
    bits: int
    static: Float[Tensor, ""] | None
    x: Float[Tensor, "m in"]

    def __str__(self) -> str:
        weight = self.weight
        zero = "" if weight.zero_point is None else " with zero points"
        grid = f" in groups of {weight.group_size}" if weight.group_size else ""
        kind = "static" if self.static is not None else "dynamic"
        activations = str(self.x.dtype).removeprefix("torch.") if self.bits == FLOAT_ACTIVATIONS else kind
        bias = "no bias" if self.bias is None else "a bias"
        return (
            f"{len(self.x)} x {weight.in_features} by {weight.out_features} at {weight.num_bits} bits{grid}{zero}, "
            f"{self.bits}-bit {activations} activations and {bias}"
        )

    def run(self, prepared: PreparedLinear, x: Float[Tensor, "m in"] | None = None) -> Float[Tensor, "m out"]:
        """The product of the case, or that of other activations."""
        return prepared.run(self.x if x is None else x, self.weight_scale, self.bias, self.bits, self.static)

    def on(self, device: torch.device) -> _Case:
        """The same product on a device; the axes of every tensor keep their order in memory."""
        weight, bias, static = self.weight, self.bias, self.static
        zero_point = None if weight.zero_point is None else weight.zero_point.to(device, copy=True)
        return _Case(
            weight=replace(weight, packed=weight.packed.to(device, copy=True), zero_point=zero_point),
            weight_scale=self.weight_scale.to(device, copy=True),
            bias=None if bias is None else bias.to(device, copy=True),
            bits=self.bits,
            static=None if static is None else static.to(device, copy=True),
            x=self.x.to(device, copy=True),
        )

    def same(self, other: _Case) -> bool:
        """Whether another case has the same operands."""
        given, others = ((c.x, c.weight_scale, c.bias, c.static) for c in (self, other))
        pairs = zip(given, others, strict=True)
        return _equal_weights(self.weight, other.weight) and all(
            a is b is None or (a is not None and b is not None and torch.equal(a, b)) for a, b in pairs
        )


def check_backend(backend: Backend, *, device: str | torch.device = "cpu") -> int:
    """Checks that a backend keeps the contract of `Backend` for every layer that it says it supports.

    Args:
        backend: The backend's module.
        device: Where the layers are that it is asked to multiply.

    Returns:
        Number of products that were compared with the reference; 0 where the backend says that it cannot run on this
        machine, and nothing else was checked.

    Raises:
        CheckFailedError: Something differs, or the backend supports none of the layers; the message names the first
            difference.
    """
    reason = backend.unavailable()
    if reason is not None:
        _check_reason(reason, "unavailable()")
        return 0
    products = 0
    for case in _cases():
        placed = case.on(torch.device(device))
        reason = backend.unsupported(placed.weight, placed.bits)
        if reason is not None:
            _check_reason(reason, f"unsupported() of {case}")
            continue
        products += 1
        try:
            _check_product(backend, case, placed)
        except CheckFailedError:
            raise
        except Exception as error:
            raise CheckFailedError(f"{case} must be multiplied, got {type(error).__name__}: {error}.") from error
    require_check(products > 0, f"a backend must support some layer on {device}, got reasons against all of them")
    return products


def _check_reason(reason: object, place: str) -> None:
    said = isinstance(reason, str) and bool(reason.strip())
    require_check(said, f"{place} must say why in words or be None, got {reason!r}")


def _check_product(backend: Backend, case: _Case, placed: _Case) -> None:
    """Compares one product and what stands around it; `placed` is `case` where the backend multiplies."""
    weight = case.weight
    prepared = backend.prepare(placed.weight)
    require_check(
        isinstance(prepared, PreparedLinear), f"{case} must be prepared as a PreparedLinear, got {prepared!r}"
    )
    first = placed.run(prepared)
    shape = (len(case.x), weight.out_features)
    formed = first.dtype == torch.float32 and tuple(first.shape) == shape and first.is_contiguous()
    require_check(
        formed, f"{case} must give contiguous float32 of shape {shape}, got {first.dtype} {tuple(first.shape)}"
    )
    _check_values(case, first, "")
    kept = first.clone()
    placed.run(prepared, 2 * placed.x)
    require_check(torch.equal(first, kept), f"the result of {case} must stay as it is when the next one is computed")
    first.fill_(torch.nan)
    require_check(case.on(placed.x.device).same(placed), f"the operands of {case} must stay as they are")
    _check_spoilt_rows(case, placed, prepared)
    nothing = tuple(placed.run(prepared, placed.x[:0]).shape)
    require_check(nothing == (0, shape[1]), f"no rows of {case} must give shape {(0, shape[1])}, got {nothing}")
    require_check(_equal_weights(prepared.weight(), placed.weight), f"weight() of {case} must be what was prepared")
    numbers = weight.out_features * (weight.in_features + (0 if weight.zero_point is None else weight.groups))
    least, taken = -(-numbers * weight.num_bits // 8), prepared.resident_bytes()
    require_check(isinstance(taken, int) and taken >= least, f"{case} must keep {least} bytes or more, got {taken}")


def _check_values(case: _Case, result: Float[Tensor, "m out"], where: str) -> None:
    """Whether a result on any device is the reference's: bit for bit, or within the rounding of float activations."""
    result, expected = result.cpu(), case.run(reference.prepare(case.weight))
    if case.bits != FLOAT_ACTIVATIONS:
        differ = int((result != expected).sum())
        require_check(
            differ == 0, f"{case} must equal the reference{where}, got {differ} of {expected.numel()} that differ"
        )
        return
    exact = case.weight.matrix(case.weight_scale).dequantize(torch.float64)
    within = (result.double() - expected.double()).abs() <= rounding_bound(case.x, exact, case.bias)
    beyond = int((~within).sum())
    require_check(
        beyond == 0, f"{case} must stay within its rounding{where}, got {beyond} of {expected.numel()} beyond it"
    )


def _check_spoilt_rows(case: _Case, placed: _Case, prepared: PreparedLinear) -> None:
    """A row with NaN or infinity anywhere has no finite result, and the rows around it have their own."""
    in_features = case.weight.in_features
    spots = list(itertools.product(sorted({0, in_features // 2, in_features - 1}), NOT_FINITE))
    spoilt = placed.x[:1].repeat(2 * len(spots), 1)
    for index, (column, value) in enumerate(spots):
        spoilt[2 * index, column] = value
    result = placed.run(prepared, spoilt)
    for row, (column, value) in zip(result[::2], spots, strict=True):
        finite = bool(torch.isfinite(row).any())
        require_check(not finite, f"{value} in column {column} of {case} must leave no number of its row finite")
    _check_values(replace(case, x=case.x[:1].repeat(len(spots), 1)), result[1::2], " in rows beside others with NaN")


def _cases() -> Iterator[_Case]:
    """Every shape at every number of bits with one symmetric scale per row, and every other grid at some shape."""
    generator = torch.Generator().manual_seed(0)
    for index, (num_bits, shape) in enumerate(itertools.product(WEIGHT_BITS, SHAPES)):
        yield from _products(shape, num_bits, 0, False, (*DYNAMIC, *STATIC, FLOATS), index, generator)
    grids = [(size, zero) for size in GROUP_SIZES for zero in (False, True) if size or zero]
    for (row, (size, zero)), (column, num_bits) in itertools.product(enumerate(grids), enumerate(WEIGHT_BITS)):
        # A Latin square: every grid and every number of bits meets every shape, and both kinds of activations.
        shape, turn = GROUPED_SHAPES[(row + column) % len(GROUPED_SHAPES)], (row // 2 + column) % 2
        activations = (DYNAMIC[turn], STATIC[1 - turn], FLOATS)
        yield from _products(shape, num_bits, size, zero, activations, row + column, generator)


def _products(
    shape: tuple[int, int, int],
    num_bits: int,
    group_size: int,
    asymmetric: bool,
    activations: Sequence[tuple[int, float | None]],
    index: int,
    generator: torch.Generator,
) -> Iterator[_Case]:
    """One weight with several kinds of activations; `index` decides about bias, dtype and order in memory."""
    rows, in_features, out_features = shape
    weight = _weight(out_features, in_features, num_bits, group_size, asymmetric, generator)
    scale = 0.01 + torch.rand(out_features, weight.groups, generator=generator)
    bias = torch.randn(out_features, generator=generator)
    for turn, (bits, static) in enumerate(activations, start=index):
        x = _activations(rows, in_features, bits, static, generator)
        if bits == FLOAT_ACTIVATIONS:
            x = x.to(FLOAT_DTYPES[index % len(FLOAT_DTYPES)])
        yield _Case(
            weight=weight,
            weight_scale=scale,
            bias=bias if turn % 2 else None,
            bits=bits,
            static=None if static is None else torch.tensor(static),
            x=x.t().contiguous().t() if turn % 3 == 0 else x,
        )


def _weight(
    out_features: int, in_features: int, num_bits: int, group_size: int, asymmetric: bool, generator: torch.Generator
) -> PackedWeight:
    """Integers and zero points over their whole range; the first row's sums are as large as they get."""
    high, groups = 2 ** (num_bits - 1), group_count(in_features, group_size)
    shapes = (out_features, in_features), (out_features, groups)
    integers, zero_point = (torch.randint(-high, high, s, generator=generator, dtype=torch.int8) for s in shapes)
    integers[0], zero_point[0] = -high, high - 1
    return PackedWeight.from_integers(
        integers, num_bits, group_size=group_size, zero_point=zero_point if asymmetric else None
    )


def _activations(
    rows: int, in_features: int, bits: int, static: float | None, generator: torch.Generator
) -> Float[Tensor, "m in"]:
    """Rows of very different size, float32; the second of three or more is zero, and the third all at its peak.

    The last of three or more lies at the integers and exactly between them, up to the limit and, where that is static,
    beyond it.
    """
    x = torch.randn(rows, in_features, generator=generator)
    x *= torch.exp(torch.randn(rows, 1, generator=generator))
    if rows > 2:
        limit = 2 ** (bits - 1) - 1 if bits != FLOAT_ACTIVATIONS else 100
        halves = torch.randint(-2 * limit, 2 * limit + 1, (in_features,), generator=generator) / 2
        halves[0] = limit  # With this, a dynamic scale is 1.
        x[1] = 0
        x[-1] = halves if static is None else 1.5 * static * halves.round() + 0.5 * static
        if rows > 3:
            x[2] = 3.7
    return x


def _equal_weights(weight: PackedWeight, other: PackedWeight) -> bool:
    sizes, others = ((w.in_features, w.num_bits, w.group_size, w.zero_point is None) for w in (weight, other))
    if sizes != others or not torch.equal(weight.packed, other.packed):
        return False
    return weight.zero_point is other.zero_point is None or (
        weight.zero_point is not None
        and other.zero_point is not None
        and torch.equal(weight.zero_point, other.zero_point)
    )
