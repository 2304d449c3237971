"""How the time of one control step divides among the parts of a policy.

The clock is read whenever a block begins; the time from there on belongs to the block's part until a block of another
part begins. What happens between two blocks (norms, embedding, the diffusion update) counts to the part before it,
and what happens before the first block is preprocessing. The parts add up to the whole step.

The action head's part begins with its denoising loop, whose blocks are not called where it is replayed as a graph. On
a CUDA device the clock waits for the device whenever another part begins.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from daptq.benchmarking.control_step import ControlStep
from daptq.layers.watching import watch_beginnings
from daptq.policies.contract import Condition, Policy, Role

__all__ = ["PARTS", "part_times"]

PARTS = ("preprocessing", "vision", "language", "action_head")

_PART: dict[Role, str] = {
    "vision": "vision",
    "connector": "vision",
    "language": "language",
    "action_head": "action_head",
}


def part_times(policy: Policy, step: ControlStep) -> dict[str, float]:
    """Milliseconds of each part in one control step; reading the clock costs about a microsecond per block.

    Args:
        policy: The policy.
        step: The control step.
    """
    clock, loop = _Clock(policy.device), policy.loop
    parts = {block.name: _PART[block.role] for block in policy.blocks()}

    def announced(condition: Condition, noise: Tensor) -> Tensor:
        clock.enter(_PART["action_head"])
        return loop(condition, noise)

    with watch_beginnings(policy, parts, lambda name: clock.enter(parts[name])), policy.running(announced):
        clock.enter("preprocessing")
        step.run(policy)
        clock.enter(None)
    return {part: 1e3 * clock.seconds[part] for part in PARTS}


class _Clock:
    """Adds up the time between changes of part on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._part: str | None = None
        self._since = 0.0

    def enter(self, part: str | None) -> None:
        """Another part begins, or none."""
        if part == self._part:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._part is not None:
            self.seconds[self._part] += now - self._since
        self._part, self._since = part, now
