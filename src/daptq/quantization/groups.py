"""Groups of layers whose statistics are held in memory together: as many as fit, at least one.

A pass over the calibration data serves one group, so the memory that a stage needs is bounded by the larger of a fixed
amount and its largest layer, whatever the size of the policy.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["GROUP_BYTES", "groups"]

GROUP_BYTES = 2**30


def groups(sizes: Mapping[str, int], limit: int) -> list[tuple[str, ...]]:
    """Splits layers into consecutive groups.

    Args:
        sizes: Bytes that each layer needs, by name in execution order.
        limit: Largest sum of a group [bytes]; a layer that needs more is a group by itself.
    """
    result: list[tuple[str, ...]] = []
    filled = 0
    for name, size in sizes.items():
        if not result or filled + size > limit:
            result.append(())
            filled = 0
        result[-1] += (name,)
        filled += size
    return result
