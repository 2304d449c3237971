"""Backend: FBGEMM's int8 matrix product, as it ships inside torch for x86 processors with AVX2 and newer.

FBGEMM multiplies unsigned 8-bit activations with signed 8-bit weights. Activations that are already integers are handed
over with scale 1 and zero point 128, weights with scale 1, so what comes back is the exact integer product. Its AVX2
kernel adds two neighbouring products in 16 bits, which is exact for weights of up to 4 bits (255 * 8 * 2 < 2^15) and
would overflow for 8.

The weight is resident as int8 in FBGEMM's own layout, padded to blocks of 512 input by 8 output features: 1 byte per
weight for 512 input features, 2.7 for 192. torch marks the creation of this layout as deprecated; a torch without it
makes the backend unavailable.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.kernels.linear.arithmetic import quantize_activations, rescale
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear, beyond_channels

__all__ = ["prepare", "unavailable", "unsupported"]

MAX_BITS = 4
BLOCK_IN, BLOCK_OUT = 512, 8

_ENGINE = "fbgemm"
_OPERATIONS = ("linear_prepack", "linear_unpack", "linear_with_input_q_dq_qweight_dq_output_fp32")
_ZERO_POINT = 128


class FbgemmLinear(PreparedLinear):
    """A weight in FBGEMM's layout."""

    def __init__(self, weight: PackedWeight) -> None:
        self._shape = (weight.out_features, weight.in_features)
        self._num_bits, self._group_size = weight.num_bits, weight.group_size
        self._weight: Any = _prepack(weight)
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def run(
        self,
        x: Float[Tensor, "m in"],
        weight_scale: Float[Tensor, "out 1"],
        bias: Float[Tensor, " out"] | None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "m out"]:
        """See `PreparedLinear.run`."""
        integers, scale = quantize_activations(x, activation_bits, activation_scale)
        return rescale(self._multiply(integers, 1.0, _ZERO_POINT, self._weight), scale, weight_scale, bias)

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        quantized, _ = torch.ops.quantized.linear_unpack(self._weight)
        return PackedWeight.from_integers(quantized.int_repr(), self._num_bits, group_size=self._group_size)

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`; the blocks are those of FBGEMM's AVX2 kernel."""
        out_features, in_features = self._shape
        rows, columns = -(-in_features // BLOCK_IN) * BLOCK_IN, -(-out_features // BLOCK_OUT) * BLOCK_OUT
        column_sums = 4 * out_features
        return rows * columns + column_sums

    def __reduce__(self) -> tuple[type[FbgemmLinear], tuple[PackedWeight]]:
        """Copies and pickles as the packed weight: the library's object has no portable form."""
        return type(self), (self.weight(),)


def unavailable() -> str | None:
    """Why FBGEMM's int8 product cannot be called here, or None."""
    if _ENGINE not in torch.backends.quantized.supported_engines:
        return "this build of torch has no FBGEMM for this processor"
    missing = [name for name in _OPERATIONS if not hasattr(torch.ops.quantized, name)]
    return f"torch {torch.__version__} has no operation quantized::{missing[0]}" if missing else None


def unsupported(weight: PackedWeight, activation_bits: int) -> str | None:
    """Why the weight cannot be multiplied exactly by FBGEMM, or None."""
    if weight.packed.device.type != "cpu":
        return f"FBGEMM runs on the CPU only, not on {weight.packed.device.type}"
    if weight.num_bits > MAX_BITS:
        return (
            f"FBGEMM's 16-bit sums overflow for weights of more than {MAX_BITS} bits, and these have {weight.num_bits}"
        )
    return beyond_channels(weight, activation_bits)


def prepare(weight: PackedWeight) -> FbgemmLinear:
    """Copies the weight into FBGEMM's layout."""
    return FbgemmLinear(weight)


def _prepack(weight: PackedWeight) -> Any:
    """The library's object for the integers with scale 1; the engine that torch is set to is left as it was."""
    engine = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantized = torch.quantize_per_tensor(weight.integers().to(torch.float32), 1.0, 0, torch.qint8)
        try:
            torch.backends.quantized.engine = _ENGINE
            return torch.ops.quantized.linear_prepack(quantized, None)
        finally:
            torch.backends.quantized.engine = engine
