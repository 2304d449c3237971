"""What the Triton backends keep of a weight: it stays packed, as it is on disk, with zero points as int8."""

from __future__ import annotations

from daptq.kernels.linear.contract import PackedWeight, PreparedLinear

__all__ = ["TritonLinear"]


class TritonLinear(PreparedLinear):
    """The packed weight, with zero points as int8; a backend adds how it multiplies.

    Args:
        weight: The weight.
    """

    def __init__(self, weight: PackedWeight) -> None:
        self._weight = weight
        self._zero_point = weight.zero_points()

    def weight(self) -> PackedWeight:
        """See `PreparedLinear.weight`."""
        return self._weight

    def resident_bytes(self) -> int:
        """See `PreparedLinear.resident_bytes`."""
        return self._weight.nbytes() + (0 if self._zero_point is None else self._zero_point.nbytes)
