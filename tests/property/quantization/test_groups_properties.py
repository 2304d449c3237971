"""Groups of layers keep the order, respect the limit and are as few as filling one after the other allows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daptq.quantization.profiling import groups


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 150))
def test_groups_partition_the_layers_in_order_within_the_limit(sizes: list[int], limit: int) -> None:
    named = {f"layer.{index}": size for index, size in enumerate(sizes)}
    parts = groups(named, limit)
    assert [name for part in parts for name in part] == list(named)
    totals = [sum(named[name] for name in part) for part in parts]
    assert all(total <= limit or len(part) == 1 for part, total in zip(parts, totals, strict=True))
    # The next layer would not have fitted.
    assert all(total + named[after[0]] > limit for total, after in zip(totals, parts[1:], strict=False))
