"""One control step, from an observation to an action chunk: what is audited and what is timed.

The observation is the first one of an episode of `tabletop` where the policy's cameras, state and actions are those of
that environment, and a random batch of the policy's declared inputs otherwise. Rendering and physics are no part of a
step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.compatibility import compatible
from daptq.environments.contract import Environment
from daptq.errors import InvalidInputError
from daptq.evaluation.describe import single_observation
from daptq.observations import STATE, TASK
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator, observation_batch

__all__ = ["ControlStep", "control_step"]

ENVIRONMENT = "tabletop"
SYNTHETIC = "synthetic"


@dataclass(frozen=True, kw_only=True)
class ControlStep:
    """What a policy is given in one control step.

    Attributes:
        source: Name of the environment that was observed, or ``"synthetic"``.
        observation: uint8 (height, width, 3) per camera and, for a policy that reads it, the state, float32
            (state_dim,), with LeRobot's keys.
        instruction: What the robot should do.
        seed: Seed of the diffusion noise.
    """

    source: str
    observation: Mapping[str, Any]
    instruction: str
    seed: int

    def batch(self, policy: Policy) -> Batch:
        """The observation as the policy reads it, on its device."""
        batch = observation_batch(policy, self.observation, self.instruction)
        return {key: value.to(policy.device) if isinstance(value, Tensor) else value for key, value in batch.items()}

    def generator(self) -> torch.Generator:
        """The source of the diffusion noise, the same in every call."""
        return noise_generator(self.seed, 0)

    def run(self, policy: Policy) -> Float[Tensor, "chunk action"]:
        """The action chunk, float32 on the CPU, in physical units."""
        with torch.inference_mode():
            # Bringing the answer to the CPU waits for the device.
            return policy.predict_chunk(self.batch(policy), self.generator())[0].float().cpu()


def control_step(policy: Policy, seed: int = 0) -> ControlStep:
    """The control step that a policy is audited or timed with.

    Args:
        policy: The policy; it says which cameras and how many numbers of state it reads.
        seed: Seed of the episode, of random inputs and of the diffusion noise.
    """
    environment = _environment(policy)
    if environment is None:
        example = single_observation(policy, seed)
        state = {STATE: example[STATE][0].cpu().numpy()} if policy.state_dim else {}
        images = {camera: _as_image(example[camera][0]) for camera in policy.cameras}
        return ControlStep(source=SYNTHETIC, observation={**images, **state}, instruction=example[TASK][0], seed=seed)
    try:
        observation, info = environment.reset(seed=seed)
    finally:
        environment.close()
    return ControlStep(source=ENVIRONMENT, observation=observation, instruction=info["task"], seed=seed)


def _environment(policy: Policy) -> Environment | None:
    """The environment with the policy's cameras, or None where it has others, or the policy cannot act in it."""
    try:
        made: Environment = ENVIRONMENTS.load(ENVIRONMENT).make(image_size=dict(policy.cameras))
    except InvalidInputError:  # It has no such camera, or cannot render it at this size.
        return None
    if compatible(policy, made):
        return made
    made.close()
    return None


def _as_image(values: Float[Tensor, "3 height width"]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An image in [0, 1] as a camera gives it."""
    return (values.permute(1, 2, 0) * 255).to(torch.uint8).cpu().numpy()
