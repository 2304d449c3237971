"""From an environment's observations to action chunks.

The diffusion noise of a prediction depends on the episode's seed and the step index only, so two policies that act in
the same episode see the same noise whenever they predict at the same step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError
from daptq.observations import STATE, TASK
from daptq.policies.contract import Batch, Policy


def noise_generator(seed: int, step_index: int) -> torch.Generator:
    """A CPU generator whose stream depends on (seed, step_index) alone."""
    words = np.random.SeedSequence([seed, step_index]).generate_state(2, np.uint32)
    generator = torch.Generator()
    generator.manual_seed(int(words[0]) << 31 ^ int(words[1]))
    return generator


def observation_batch(policy: Policy, observation: Mapping[str, Any], instruction: str) -> Batch:
    """Turns one environment observation into a batch of one.

    Args:
        policy: The policy that will read the batch; it says which cameras it needs, and whether it reads the state.
        observation: uint8 (height, width, 3) per camera and float32 (state_dim,) under ``observation.state``; whatever
            the policy does not read may be missing and is left out.
        instruction: What the robot should do.

    Raises:
        InvalidInputError: The observation lacks something that the policy reads.
    """
    read = (*policy.cameras, STATE) if policy.state_dim else tuple(policy.cameras)
    if missing := [key for key in read if key not in observation]:
        raise InvalidInputError(
            f"observation for policy {policy.name} must have the keys {missing}, got {sorted(observation)}. Choose an "
            "environment or a data set with this camera or proprioception."
        )
    batch: Batch = {TASK: [instruction]}
    for camera in policy.cameras:
        image = torch.from_numpy(np.ascontiguousarray(observation[camera]))
        batch[camera] = image.permute(2, 0, 1).unsqueeze(0).float().div_(255.0)
    if policy.state_dim:
        batch[STATE] = torch.from_numpy(np.asarray(observation[STATE], dtype=np.float32)).unsqueeze(0)
    return batch


def predict_chunks(
    policy: Policy,
    observations: Sequence[Mapping[str, Any]],
    instructions: Sequence[str],
    *,
    seeds: Sequence[int],
    step_indices: Sequence[int],
) -> Float[Tensor, "b chunk action"]:
    """Predicts one action chunk for each of several episodes in one call of the policy, on the CPU.

    Each episode has its own noise, so a chunk depends on the others of the call in float rounding only.

    Args:
        policy: The policy to ask.
        observations: One observation for each episode, see `observation_batch`.
        instructions: What the robot should do in each.
        seeds: Seed of the diffusion noise of each.
        step_indices: Control step of each, counted from 0 in its episode.
    """
    parts = [observation_batch(policy, *both) for both in zip(observations, instructions, strict=True)]
    batch: Batch = {key: torch.cat([part[key] for part in parts]).to(policy.device) for key in parts[0] if key != TASK}
    batch[TASK] = list(instructions)
    noise = [noise_generator(*both) for both in zip(seeds, step_indices, strict=True)]
    with torch.inference_mode():
        return policy.predict_chunk(batch, noise).cpu()
