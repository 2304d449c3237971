"""The diffusion schedule, DDIM and the DiT against independent float64 references written from the formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from daptq.errors import InvalidInputError
from daptq.policies.diffusion import add_noise, ddim_sample, ddim_steps, ddim_timesteps, squared_cosine_alphas
from daptq.policies.dit import DiT

Array = NDArray[np.float64]


def test_schedule_telescopes_to_the_cosine() -> None:
    # Without the cap, the product of (1 - beta) telescopes to alpha_bar(t + 1) / alpha_bar(0).
    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    expected = [alpha_bar((i + 1) / 100) / alpha_bar(0) for i in range(99)]
    np.testing.assert_allclose(squared_cosine_alphas(100)[:99], expected, rtol=1e-12)
    # The last step would have beta = 1; the cap leaves one thousandth of the variance before it.
    assert squared_cosine_alphas(100)[99] == pytest.approx(expected[98] * 0.001, rel=1e-9)


def test_respaced_steps_are_those_of_the_public_model() -> None:
    assert ddim_timesteps(100, 10) == (0, 10, 20, 30, 40, 50, 60, 70, 80, 90)
    assert ddim_timesteps(100, 5) == (0, 20, 40, 60, 80)
    with pytest.raises(InvalidInputError, match="integer stride, got 60"):
        ddim_timesteps(100, 60)


def test_ddim_recovers_the_sample_when_the_noise_is_known() -> None:
    # With the exact noise at every step, DDIM must end at x_0 whatever the schedule (float32: 1e-4 of unit scale,
    # since the first division by sqrt(alpha_bar_90) = 0.13 magnifies rounding by 8).
    alphas = squared_cosine_alphas(100)
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(3, 4, 7, generator=generator) * 2 - 1
    start = torch.randn(3, 4, 7, generator=generator)

    def exact(sample: torch.Tensor, timestep: int, _: int) -> torch.Tensor:
        alpha = alphas[timestep]
        return (sample - math.sqrt(alpha) * clean) / math.sqrt(1 - alpha)

    torch.testing.assert_close(ddim_sample(exact, start, ddim_steps(alphas, 10)), clean, atol=1e-4, rtol=0)


def test_one_ddim_step_in_fractions() -> None:
    # Rational alpha_bars with rational roots make the update exact: alpha_0 = (3/5)^2 and (1 - alpha_0) = (4/5)^2.
    predicted, start = Fraction(1, 4), Fraction(1, 2)
    clean = (start - Fraction(4, 5) * predicted) / Fraction(3, 5)
    steps = ddim_steps(np.array([0.36]), 1)
    result = ddim_sample(lambda *_: torch.full((1, 1, 1), 0.25), torch.full((1, 1, 1), 0.5), steps)
    assert result.item() == pytest.approx(float(clean), abs=1e-7)


@given(st.integers(0, 99), st.floats(-1, 1), st.floats(-3, 3))
def test_noising_keeps_the_formula(timestep: int, value: float, noise: float) -> None:
    alphas = squared_cosine_alphas(100)
    noisy = add_noise(torch.full((1, 1, 1), value), torch.full((1, 1, 1), noise), torch.tensor([timestep]), alphas)
    expected = math.sqrt(alphas[timestep]) * value + math.sqrt(1 - alphas[timestep]) * noise
    assert noisy.item() == pytest.approx(expected, abs=1e-6)


class _Reference:
    """The DiT in float64 numpy, by loops over heads and the definition of each operation."""

    def __init__(self, net: DiT, heads: int) -> None:
        self.weights = {name: value.double().numpy() for name, value in net.state_dict().items()}
        self.heads = heads
        self.depth = len(net.blocks)

    def linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    @staticmethod
    def norm(x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)

    def attention(self, name: str, x: Array) -> Array:
        width = x.shape[1]
        size = width // self.heads
        qkv = self.linear(f"{name}.qkv", x)
        outputs = []
        for head in range(self.heads):
            q, k, v = (qkv[:, part * width + head * size : part * width + (head + 1) * size] for part in range(3))
            scores = np.exp(q @ k.T / math.sqrt(size))
            outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
        return self.linear(f"{name}.proj", np.concatenate(outputs, axis=1))

    def __call__(self, actions: Array, timestep: int, condition: Array) -> Array:
        angles = timestep * np.exp(-math.log(10000) * np.arange(128) / 128)
        features = np.concatenate([np.cos(angles), np.sin(angles)])[None]
        hidden = self.linear("t_embedder.mlp.0", features)
        time = self.linear("t_embedder.mlp.2", hidden / (1 + np.exp(-hidden)))
        token = time + self.linear("z_embedder.linear", condition)
        x = np.concatenate([token, self.linear("x_embedder.linear", actions)]) + self.weights["positional_embedding"]
        for block in range(self.depth):
            x = x + self.attention(f"blocks.{block}.attn", self.norm(x))
            inner = self.linear(f"blocks.{block}.mlp.fc1", self.norm(x))
            gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
            x = x + self.linear(f"blocks.{block}.mlp.fc2", gelu)
        return self.linear("final_layer.linear", self.norm(x))[1:]


@pytest.fixture
def net() -> DiT:
    dit = DiT(action_dim=7, chunk_size=5, condition_size=12, hidden_size=24, depth=3, num_heads=3)
    dit.initialize()
    for parameter in dit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return dit


def test_dit_equals_its_float64_reference(net: DiT) -> None:
    actions, condition = torch.randn(2, 5, 7), torch.randn(2, 1, 12)
    predicted = net(actions, torch.tensor([0, 73]), condition)
    reference = _Reference(net, heads=3)
    for row, timestep in enumerate((0, 73)):
        expected = reference(actions[row].double().numpy(), timestep, condition[row].double().numpy())
        # Three blocks of float32 arithmetic on values of order ten: a few hundred roundings of 1e-6.
        np.testing.assert_allclose(predicted[row].detach().numpy(), expected, atol=2e-4, rtol=2e-4)


def test_guidance_extrapolates_from_the_unconditional_branch(net: DiT) -> None:
    actions, condition = torch.randn(1, 5, 7), torch.randn(1, 1, 12)
    timesteps = torch.tensor([40])
    conditioned = net(actions, timesteps, condition)
    unconditioned = net(actions, timesteps, net.z_embedder.uncondition.expand(1, 1, -1))
    guided = net.guided(actions, timesteps, condition, 1.5)
    torch.testing.assert_close(guided, unconditioned + 1.5 * (conditioned - unconditioned), atol=1e-4, rtol=1e-4)
    assert (conditioned - unconditioned).abs().max() > 0.1  # otherwise any scale would pass


def test_parameter_names_are_those_of_the_public_model(net: DiT) -> None:
    block = {f"blocks.0.{n}.{k}" for n in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for k in ("weight", "bias")}
    outer = {
        f"{n}.{k}"
        for n in (
            "history_embedder.linear",
            "x_embedder.linear",
            "t_embedder.mlp.0",
            "t_embedder.mlp.2",
            "z_embedder.linear",
            "final_layer.linear",
        )
        for k in ("weight", "bias")
    }
    expected = block | outer | {"positional_embedding", "z_embedder.uncondition"}
    assert {name for name in net.state_dict() if not name.startswith(("blocks.1", "blocks.2"))} == expected
