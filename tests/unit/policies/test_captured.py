"""The denoising loop as a recording: what is recorded, when, and that a replay sees its inputs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from daptq.observations import ACTION
from daptq.policies.captured import CapturedFunction, CapturedLoop, captured_denoising, captured_loop
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Batch


class Eager:
    """A recording that computes again on the tensors it was given, as a graph does, without a GPU."""

    made: list[Eager]

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        self.function, self.replays = function, 0
        self.result = function()
        type(self).made.append(self)
        return self.result

    def replay(self) -> None:
        self.replays += 1
        self.result.copy_(self.function())


class Stale(Eager):
    """A recording that forgets to compute again."""

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture(autouse=True)
def nothing_made() -> None:
    Eager.made = Stale.made = []


def batch_of(policy: SmallCogACTPolicy, seed: int) -> Batch:
    batch = {key: value for key, value in policy.example_batch(seed).items() if key != ACTION}
    return {key: value.to(policy.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def predicted(policy: SmallCogACTPolicy, seed: int) -> Tensor:
    with torch.inference_mode():
        return policy.predict_chunk(batch_of(policy, seed), torch.Generator().manual_seed(seed))


def test_replays_give_what_the_loop_gives(device: torch.device) -> None:
    policy = SmallCogACTPolicy.tiny().to(device)
    expected = [predicted(policy, seed) for seed in range(3)]
    assert not torch.equal(expected[0], expected[1])
    with captured_denoising(policy, Eager):
        results = [predicted(policy, seed) for seed in range(3)]
        assert len(Eager.made) == 1
        assert Eager.made[0].replays == 3
    torch.testing.assert_close(results, expected)
    if device.type == "cuda":
        with captured_denoising(policy):
            torch.testing.assert_close([predicted(policy, seed) for seed in range(3)], expected)
    predicted(policy, 0)
    assert Eager.made[0].replays == 3  # Outside the loop is the policy's own again.


def test_a_recording_that_does_not_compute_again_is_seen() -> None:
    policy = SmallCogACTPolicy.tiny()
    expected = [predicted(policy, seed) for seed in range(2)]
    with captured_denoising(policy, Stale):
        results = [predicted(policy, seed) for seed in range(2)]
    assert torch.equal(results[0], expected[0])
    assert not torch.equal(results[1], expected[1])


def test_every_shape_has_a_recording_of_its_own() -> None:
    loop = CapturedFunction(lambda a, b: a + 2 * b, Eager)
    for rows in (2, 3, 2):
        a, b = torch.randn(rows, 4), torch.randn(rows, 4)
        result = loop(a, b)
        assert torch.equal(result, a + 2 * b)
        # Neither what was given nor what was returned is the recording's own memory.
        kept = result.clone()
        a.zero_()
        loop(torch.ones(rows, 4), torch.ones(rows, 4))
        assert torch.equal(result, kept)
    assert [recording.replays for recording in Eager.made] == [4, 2]


def test_nothing_is_captured_on_a_cpu_and_an_error_leaves_the_policy_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = SmallCogACTPolicy.tiny()
    with captured_denoising(policy) as replayed:
        assert not replayed
        assert policy.loop == policy.denoise
    assert captured_loop(policy) is None
    inside = captured_denoising(policy, Eager)
    assert inside.__enter__() is True
    assert isinstance(policy.loop, CapturedLoop)
    assert inside.__exit__(RuntimeError, RuntimeError("inside"), None) is not True
    assert policy.loop == policy.denoise
    # On a CUDA device, what is made is a CUDA graph.
    monkeypatch.setattr(type(policy), "device", torch.device("cuda"))
    with captured_denoising(policy) as replayed:
        assert replayed
        assert isinstance(policy.loop, CapturedLoop)
    assert policy.loop == policy.denoise
