"""What passes a perception-to-action interface during each episode of a running policy.

One vector per predicted chunk and episode, however many denoising steps read it. The stream does not change the policy
and does not know what the numbers are good for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from daptq.errors import DaptqError, InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.contract import Interface
from daptq.numerics.moments import Moments
from daptq.policies.contract import Policy
from daptq.policies.taps import watch_taps

__all__ = ["EpisodeStream", "Reading", "only_interface", "watch_episodes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStream:
    """The representation over one episode.

    Attributes:
        instruction: What the policy was told.
        moments: Mean and covariance over the predictions of the episode.
    """

    instruction: str
    moments: Moments


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is kept of an episode's stream, measured against a reference.

    Attributes:
        instruction: What the policy was told.
        score: How strange the episode is.
        channel: The channel whose mean moved most.
        moved: By how many standard deviations of an episode's mean, with its sign.
    """

    instruction: str
    score: float
    channel: int
    moved: float


def only_interface(policy: Policy) -> Interface:
    """The interface of a policy that has one.

    Raises:
        InvalidInputError: It has none or several.
    """
    interfaces = policy.interfaces()
    if len(interfaces) != 1:
        raise InvalidInputError(
            f"a monitored policy must have one perception-to-action interface, got {len(interfaces)}. "
            "Monitor another policy."
        )
    return interfaces[0]


@contextmanager
def watch_episodes(
    policy: Policy, interface: Interface, instructions: Sequence[str], affine: AffineMap | None = None
) -> Iterator[list[EpisodeStream]]:
    """Within the block the policy drives one episode per instruction, side by side, in this order.

    Args:
        policy: The policy; its outputs are not changed, and the hook is gone after the block.
        interface: What to watch.
        instructions: Instruction of each episode, in the order of the rows of the policy's batch.
        affine: A map that the consumer has absorbed; what it reads counts after the map.

    Yields:
        A list that holds one stream per episode when the block has ended without an error.

    Raises:
        DaptqError: No prediction was made in the block.
    """
    streams: list[Moments] = []
    finished: list[EpisodeStream] = []

    def add(_: str, representation: Tensor) -> None:
        rows = interface.tap.rows(representation.detach(), len(instructions))
        if policy.denoising_step.index != 0 or rows is None:
            return
        rows = rows.to("cpu", torch.float64)
        if not streams:
            streams.extend(Moments(rows.shape[-1]) for _ in instructions)
        for moments, vectors in zip(streams, rows if affine is None else affine(rows), strict=True):
            moments.update(vectors)

    with watch_taps(policy, {interface.name: interface.tap}, add):
        yield finished
    if not streams:
        raise DaptqError("a watched policy must predict at least once, got no prediction. Drive within the block.")
    pairs = zip(instructions, streams, strict=True)
    finished.extend(EpisodeStream(instruction=instruction, moments=moments) for instruction, moments in pairs)
