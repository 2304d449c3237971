"""A predicted chunk against DDIM with guidance that is written out step by step, and its limits by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from daptq.observations import ACTION
from daptq.policies.cogact_family import CogACTFamily
from daptq.policies.cogact_public import PublicCogACTPolicy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Batch

FAMILIES = [SmallCogACTPolicy, PublicCogACTPolicy]


def cumulative_alphas(steps: int) -> list[float]:
    """Products of 1 - beta of the squared-cosine schedule, each beta at most 0.999."""

    def remaining(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    product, products = 1.0, []
    for step in range(steps):
        product *= 1 - min(1 - remaining((step + 1) / steps) / remaining(step / steps), 0.999)
        products.append(product)
    return products


def sampled_by_hand(policy: CogACTFamily, batch: Batch, noise: Tensor) -> Tensor:
    """The normalised chunk: two passes of the network in each of ten steps, with and without the observation."""
    settings, net = policy.settings, policy.action_model.net
    alphas = cumulative_alphas(settings.diffusion_steps)
    cognition = policy.cognition(batch).unsqueeze(1)
    nothing = net.z_embedder.uncondition.expand(len(noise), 1, settings.language_width)
    sample = noise
    for step in reversed(range(0, settings.diffusion_steps, settings.diffusion_steps // settings.denoising_steps)):
        times = torch.full((len(noise),), step)
        seen, unseen = net(sample, times, cognition), net(sample, times, nothing)
        predicted = unseen + settings.guidance_scale * (seen - unseen)
        clean = (sample - math.sqrt(1 - alphas[step]) * predicted) / math.sqrt(alphas[step])
        before = alphas[step - 10] if step else 1.0
        sample = math.sqrt(before) * clean + math.sqrt(1 - before) * predicted
    return sample


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("each", [False, True])
def test_a_chunk_is_guided_ddim_un_normalised(family: type[CogACTFamily], each: bool) -> None:
    policy = family.tiny(seed=2)
    batch = {key: value for key, value in policy.example_batch(4).items() if key != ACTION}

    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (7, 8)]

    if each:
        noise = torch.stack([torch.randn(16, 7, generator=one) for one in generators()])
    else:
        noise = torch.randn(2, 16, 7, generator=generators()[0])
    with torch.inference_mode():
        expected = sampled_by_hand(policy, batch, noise)
        source = generators() if each else generators()[0]
        executed = policy.predict_chunk(batch, source)
        source = generators() if each else generators()[0]
        free = policy.denoised_chunk(batch, source)
    # What is compared is normalised: with the first step's division by 0.13, float32 leaves about 1e-5.
    low, high = torch.tensor(policy.settings.action_low), torch.tensor(policy.settings.action_high)
    for column in range(7):
        values = expected[..., column]
        if column < 6:
            span = float(high[column] - low[column])
            scaled = [low[column] + (value + 1) / 2 * span for value in (values.clamp(-1, 1), values)]
            torch.testing.assert_close(executed[..., column], scaled[0], atol=2e-4 * span, rtol=0)
            torch.testing.assert_close(free[..., column], scaled[1], atol=2e-4 * span, rtol=2e-4)
        else:
            clear = (values - 0.5).abs() > 1e-3
            assert bool(clear.any())
            assert torch.equal(executed[..., column][clear], torch.where(values[clear] >= 0.5, 1.0, -1.0))
            torch.testing.assert_close(free[..., column], 2 * values - 1, atol=1e-3, rtol=2e-4)
    assert float(expected.std()) > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_are_the_chunk(family: type[CogACTFamily]) -> None:
    policy = family.tiny(seed=2)
    batch = policy.example_batch(1)
    with torch.inference_mode():
        (cognition,) = policy.condition(batch)
        noise = policy.noise(2, torch.Generator().manual_seed(3))
        chunk = policy.denoise((cognition,), noise)
        assert torch.equal(cognition, policy.cognition(batch))
        assert torch.equal(noise, torch.randn(2, 16, 7, generator=torch.Generator().manual_seed(3)))
        whole = policy.predict_chunk(batch, torch.Generator().manual_seed(3))
        assert torch.equal(policy.executed(chunk, batch), whole)
