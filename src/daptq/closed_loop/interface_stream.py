"""What passes the perception-to-action interfaces during each episode of a running policy.

One vector per predicted chunk, episode and row of the representation that is no padding, however many denoising steps
read it. The stream does not change the policy and does not know what the numbers are good for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from daptq.errors import DaptqError, InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.numerics.moments import Moments
from daptq.policies.contract import Policy
from daptq.policies.taps import check_mask, watch_taps

__all__ = ["EpisodeStream", "Reading", "watch_episodes"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EpisodeStream:
    """The representations over one episode.

    Attributes:
        instruction: The instruction that the policy read.
        moments: Mean and covariance over the predictions of the episode, by the interface's name.
    """

    instruction: str
    moments: Mapping[str, Moments]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is kept of an episode's stream, measured against a reference.

    Attributes:
        instruction: The instruction that the policy read.
        score: How unusual the episode is.
        interface: The interface of the channel whose mean moved most.
        channel: That channel.
        moved: By how many standard deviations of an episode's mean it moved, with its sign.
    """

    instruction: str
    score: float
    interface: str
    channel: int
    moved: float


@contextmanager
def watch_episodes(
    policy: Policy, instructions: Sequence[str], maps: Mapping[str, AffineMap] = MappingProxyType({})
) -> Iterator[list[EpisodeStream]]:
    """Within the block the policy drives one episode per instruction, side by side, in this order.

    Args:
        policy: The policy, all of whose interfaces are watched; its outputs are not changed, and nothing is watched
            after the block.
        instructions: Instruction of each episode, in the order of the rows of the policy's batch.
        maps: Maps that the policy has absorbed, by interface; what is read counts after the map.

    Yields:
        A list that holds one stream per episode when the block has ended without an error.

    Raises:
        InvalidInputError: The policy has no interface.
        DaptqError: No prediction was made in the block.
    """
    taps = {interface.name: interface.tap for interface in policy.interfaces()}
    if not taps:
        raise InvalidInputError(
            f"policy {policy.name} must have a perception-to-action interface to be monitored, got none. Monitor "
            "another policy."
        )
    streams: list[dict[str, Moments]] = [{} for _ in instructions]
    finished: list[EpisodeStream] = []

    def add(name: str, representation: Tensor) -> None:
        rows = taps[name].rows(representation.detach(), len(instructions))
        if policy.denoising_step.index != 0 or rows is None:
            return
        rows = rows.to("cpu", torch.float64)
        mask = None if policy.observed is None else policy.interface_mask(name, policy.observed)
        if mask is None:
            mask = torch.ones(rows.shape[:2], dtype=torch.bool)
        check_mask(rows, mask)
        for moments, vectors, real in zip(streams, maps[name](rows) if name in maps else rows, mask.cpu(), strict=True):
            moments.setdefault(name, Moments(rows.shape[-1])).update(vectors[real])

    with watch_taps(policy, taps, add):
        yield finished
    if any(stream.keys() != taps.keys() for stream in streams):
        raise DaptqError(
            "a watched policy must predict at least once, got no prediction at some interface. Drive within the block."
        )
    for instruction, stream in zip(instructions, streams, strict=True):
        finished.append(EpisodeStream(instruction=instruction, moments={name: stream[name] for name in taps}))
