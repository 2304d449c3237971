"""Hands on what passes the taps of a policy's interfaces while the policy runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from daptq.errors import InvalidInputError
from daptq.interfaces.contract import Tap
from daptq.layers.watching import watch, watch_outputs

__all__ = ["check_mask", "watch_taps"]


@contextmanager
def watch_taps(policy: nn.Module, taps: Mapping[str, Tap], hook: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `hook` is called as hook(name, tensor) whenever a tensor passes a tap.

    Args:
        policy: The policy; its outputs are not changed, and nothing is watched after the block.
        taps: What to watch, by a name for the hook.
        hook: Gets the tensor itself, so that it can ask for its gradient.
    """
    read: dict[str, list[str]] = {}
    written: dict[str, list[str]] = {}
    for name, tap in taps.items():
        (read if tap.side == "input" else written).setdefault(tap.module, []).append(name)

    def before(module: str, tensor: Tensor) -> None:
        for name in read[module]:
            hook(name, tensor)

    def after(module: str, _: Tensor, tensor: Tensor) -> None:
        for name in written[module]:
            hook(name, tensor)

    with watch(policy, read, before), watch_outputs(policy, written, after):
        yield


def check_mask(rows: Float[Tensor, "states rows d"], mask: Bool[Tensor, "states rows"]) -> None:
    """Refuses a mask that does not belong to the rows.

    Raises:
        InvalidInputError: It does not.
    """
    if mask.shape != rows.shape[:2] or mask.dtype != torch.bool:
        raise InvalidInputError(
            f"interface_mask must be a boolean tensor {tuple(rows.shape[:2])}, as many rows as pass the tap, got "
            f"{mask.dtype} {tuple(mask.shape)}. Correct the policy's mask."
        )
