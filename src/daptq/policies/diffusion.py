"""Noise-prediction diffusion with a squared-cosine schedule, sampled by deterministic DDIM.

The schedule is computed in float64 and knows nothing of the network: a sampler takes any function that predicts noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from daptq.errors import InvalidInputError

MAX_BETA = 0.999


def squared_cosine_alphas(num_steps: int) -> NDArray[np.float64]:
    """Cumulative products alpha_bar_t, float64 (num_steps,): squared cosine, betas capped at 0.999."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    steps = range(num_steps)
    betas = [min(1 - alpha_bar((i + 1) / num_steps) / alpha_bar(i / num_steps), MAX_BETA) for i in steps]
    return np.cumprod(1.0 - np.array(betas), dtype=np.float64)


def ddim_timesteps(num_steps: int, num_samples: int) -> tuple[int, ...]:
    """The `num_samples` evenly respaced training steps, ascending: 0, k, 2k, … with the smallest integer k that fits.

    Raises:
        InvalidInputError: No integer stride gives exactly `num_samples` steps.
    """
    for stride in range(1, num_steps + 1):
        steps = tuple(range(0, num_steps, stride))
        if len(steps) == num_samples:
            return steps
    raise InvalidInputError(
        f"number of DDIM steps must divide {num_steps} diffusion steps by an integer stride, got {num_samples}. "
        "Choose for example 5 or 10."
    )


def add_noise(
    sample: Float[Tensor, "b t a"],
    noise: Float[Tensor, "b t a"],
    timesteps: Int[Tensor, " b"],
    alphas: NDArray[np.float64],
) -> Float[Tensor, "b t a"]:
    """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise."""
    alpha = torch.from_numpy(alphas)[timesteps.cpu()].to(sample).view(-1, 1, 1)
    return alpha.sqrt() * sample + (1 - alpha).sqrt() * noise


@dataclass(frozen=True, kw_only=True)
class DDIMStep:
    """One step of DDIM with eta 0, from x_t to the sample of the step after it.

    Attributes:
        timestep: Training timestep t.
        factors: sqrt(1 - alpha_bar_t) and sqrt(alpha_bar_t), then sqrt(alpha_bar) and sqrt(1 - alpha_bar) of the next
            timestep, where alpha_bar is 1 after the last one.
    """

    timestep: int
    factors: tuple[float, float, float, float]


def ddim_steps(alphas: NDArray[np.float64], num_samples: int) -> tuple[DDIMStep, ...]:
    """The steps in the order in which they run, noisiest first.

    Args:
        alphas: Cumulative products of the training schedule, float64 (num_steps,).
        num_samples: Number of denoising steps.

    Raises:
        InvalidInputError: No integer stride gives exactly `num_samples` steps.
    """
    timesteps = ddim_timesteps(len(alphas), num_samples)
    present = [float(alphas[timestep]) for timestep in timesteps]
    steps = [
        DDIMStep(
            timestep=timestep,
            factors=(math.sqrt(1 - alpha), math.sqrt(alpha), math.sqrt(previous), math.sqrt(1 - previous)),
        )
        for timestep, alpha, previous in zip(timesteps, present, (1.0, *present), strict=False)
    ]
    return tuple(reversed(steps))


def ddim_sample(
    predict_noise: Callable[[Float[Tensor, "b t a"], int, int], Float[Tensor, "b t a"]],
    noise: Float[Tensor, "b t a"],
    steps: Sequence[DDIMStep],
) -> Float[Tensor, "b t a"]:
    """Runs DDIM with eta 0 from pure noise.

    Args:
        predict_noise: Maps (x_t, training timestep, denoising step counted from 0) to the predicted noise.
        noise: float32 start x_T, standard normal.
        steps: The denoising steps in their order.

    Returns:
        The denoised sample, same shape as `noise`.
    """
    sample = noise
    for index, step in enumerate(steps):
        noised, kept, next_kept, next_noised = step.factors
        predicted = predict_noise(sample, step.timestep, index)
        clean = (sample - noised * predicted) / kept
        sample = next_kept * clean + next_noised * predicted
    return sample
