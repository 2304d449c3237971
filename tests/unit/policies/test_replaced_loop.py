"""What runs in place of a policy's denoising: for how long, for which predictions, and what it is no part of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from daptq.benchmarking.control_step import ControlStep
from daptq.benchmarking.exported_step import ExportedStep
from daptq.observations import STATE
from daptq.policies.captured import captured_denoising
from daptq.policies.contract import Condition, Loop
from tests.conformance.test_policy_parts import Deterministic
from tests.integration.quantization.conftest import ChainPolicy


class Doubled(nn.Module):
    """A loop that is a module with a parameter of its own."""

    def __init__(self, denoise: Loop) -> None:
        super().__init__()
        self.scale, self.denoise = nn.Parameter(torch.tensor(2.0)), denoise

    def forward(self, condition: Condition, noise: Tensor) -> Tensor:
        return self.scale * self.denoise(condition, noise)


def chunks(policy: ChainPolicy) -> tuple[Tensor, Tensor]:
    batch = policy.example_batch(0)
    with torch.inference_mode():
        return (
            policy.predict_chunk(batch, torch.Generator().manual_seed(1)),
            policy.denoised_chunk(batch, torch.Generator().manual_seed(1)),
        )


def test_a_loop_runs_within_its_block_and_the_one_before_it_afterwards() -> None:
    policy = ChainPolicy.tiny()
    own = chunks(policy)
    with policy.running(lambda condition, noise: -policy.denoise(condition, noise)):
        assert all(torch.equal(chunk, -before) for chunk, before in zip(chunks(policy), own, strict=True))
        outer = policy.loop
        with policy.running(lambda condition, noise: 3 * outer(condition, noise)):
            torch.testing.assert_close(chunks(policy)[0], -3 * own[0])
        assert policy.loop is outer
    assert policy.loop == policy.denoise
    assert all(torch.equal(chunk, before) for chunk, before in zip(chunks(policy), own, strict=True))


def test_an_error_leaves_the_policy_as_it_was() -> None:
    policy = ChainPolicy.tiny()

    def fails(condition: Condition, noise: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), policy.running(fails):
        chunks(policy)
    assert policy.loop == policy.denoise


def test_a_loop_that_is_a_module_is_no_part_of_the_policy() -> None:
    policy = ChainPolicy.tiny()
    names, own = list(policy.state_dict()), chunks(policy)
    with policy.running(Doubled(policy.denoise)):
        assert list(policy.state_dict()) == names
        torch.testing.assert_close(chunks(policy)[0], 2 * own[0])


class Again:
    """A recording that computes again, as a graph does."""

    def record(self, function):  # type: ignore[no-untyped-def]
        self.function, self.result = function, function()
        return self.result

    def replay(self) -> None:
        self.result.copy_(self.function())


def test_a_deterministic_policy_needs_no_noise() -> None:
    policy = Deterministic.tiny()
    batch = policy.example_batch(0)
    first, second = (policy.predict_chunk(batch, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert torch.equal(first, second)
    generator = torch.Generator().manual_seed(3)
    state = generator.get_state()
    assert policy.noise(4, generator).shape == (4, 0)
    assert torch.equal(generator.get_state(), state)
    with torch.inference_mode(), captured_denoising(policy, Again) as replayed:
        assert replayed
        assert torch.equal(policy.predict_chunk(batch, generator), first)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [ChainPolicy, Deterministic])
def test_an_exported_step_has_the_noise_as_an_input(kind: type[ChainPolicy]) -> None:
    policy = kind.tiny()
    observation = {STATE: policy.example_batch(3)[STATE][0].numpy()}
    step = ControlStep(source="made up", observation=observation, instruction="move", seed=4)
    # A loop that runs meanwhile is no part of the graph.
    with policy.running(lambda condition, noise: 0 * policy.denoise(condition, noise)):
        exported = ExportedStep(policy, step)
    noise, state = exported.inputs()
    assert (noise.shape[0], state.shape) == (1, (1, 5))
    torch.testing.assert_close(exported.program.module()(noise, state)[0], step.run(policy))
