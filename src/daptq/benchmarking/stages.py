"""How the time of one control step divides among the parts of a policy.

The clock is read whenever a block begins; the time from there on belongs to the block's stage until a block of another
stage begins. What happens between two blocks (norms, embedding, the diffusion update) counts to the stage before it,
and what happens before the first block is preprocessing. The stages add up to the whole step.

The action head's stage begins with its denoising loop, whose blocks are not called where it is replayed as a graph. On
a CUDA device the clock waits for the device whenever another stage begins.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from daptq.benchmarking.control_step import ControlStep
from daptq.layers.watching import watch_beginnings
from daptq.policies.contract import Condition, Policy, Role

__all__ = ["STAGES", "stage_times"]

STAGES = ("preprocessing", "vision", "language", "action_head")

_STAGE: dict[Role, str] = {
    "vision": "vision",
    "connector": "vision",
    "language": "language",
    "action_head": "action_head",
}


def stage_times(policy: Policy, step: ControlStep) -> dict[str, float]:
    """Milliseconds of each stage in one control step; reading the clock costs about a microsecond per block.

    Args:
        policy: The policy.
        step: The control step.
    """
    clock, loop = _Clock(policy.device), policy.loop
    stages = {block.name: _STAGE[block.role] for block in policy.blocks()}

    def announced(condition: Condition, noise: Tensor) -> Tensor:
        clock.enter(_STAGE["action_head"])
        return loop(condition, noise)

    with watch_beginnings(policy, stages, lambda name: clock.enter(stages[name])), policy.running(announced):
        clock.enter("preprocessing")
        step.run(policy)
        clock.enter(None)
    return {stage: 1e3 * clock.seconds[stage] for stage in STAGES}


class _Clock:
    """Adds up the time between changes of stage on a device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._stage: str | None = None
        self._since = 0.0

    def enter(self, stage: str | None) -> None:
        """Another stage begins, or none."""
        if stage == self._stage:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if self._stage is not None:
            self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now
