"""The CogACT policy: configuration, prompt, normalisation, execution of chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daptq.errors import InvalidInputError
from daptq.observations import ACTION, STATE, TASK, camera_key
from daptq.policies.cogact_small import SmallCogACTConfig, SmallCogACTPolicy
from daptq.policies.contract import Batch
from daptq.policies.execution import noise_generator
from daptq.policies.tokenizer import prompt, train_tokenizer
from daptq.policies.vision_tower import Keypoints, pixel_shuffle


@pytest.fixture(scope="module")
def policy() -> SmallCogACTPolicy:
    return SmallCogACTPolicy.tiny()


def one(batch: Batch, row: int) -> Batch:
    return {key: value[row : row + 1] for key, value in batch.items()}


def test_prompt_is_the_public_one() -> None:
    assert prompt("Pick Up the cup") == "In: What action should the robot take to pick up the cup?\nOut:"


def test_tokenizer_encodes_what_it_never_saw() -> None:
    tokenizer = train_tokenizer(["put the spoon on the towel"], 300)
    text = prompt("déplace la carotte")
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_samples_of_a_batch_do_not_influence_each_other(policy: SmallCogACTPolicy) -> None:
    # The two prompts differ in length, so this also shows that padding is invisible.
    batch = policy.example_batch(0)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    both = policy.predict_chunk(batch, generators)
    for row in range(2):
        alone = policy.predict_chunk(one(batch, row), torch.Generator().manual_seed(row))
        torch.testing.assert_close(alone[0], both[row], atol=1e-5, rtol=1e-4)


def test_the_instruction_changes_the_chunk(policy: SmallCogACTPolicy) -> None:
    batch = one(policy.example_batch(0), 0)
    other = {**batch, TASK: ["stack the green block"]}
    first, second = (policy.predict_chunk(b, noise_generator(0, 0)) for b in (batch, other))
    assert not torch.equal(first, second)


@given(st.lists(st.floats(-0.2, 0.2), min_size=6, max_size=6), st.sampled_from([-1.0, 1.0]))
def test_normalisation_round_trip_clips_to_the_quantiles(values: list[float], gripper: float) -> None:
    policy = SmallCogACTPolicy.tiny()
    actions = torch.tensor([*values, gripper]).view(1, 1, 7)
    back = policy.unnormalize(policy.normalize(actions))
    expected = torch.minimum(torch.maximum(actions, policy.action_low), policy.action_high)
    torch.testing.assert_close(back, expected, atol=1e-6, rtol=0)


def test_gripper_is_thresholded_at_one_half(policy: SmallCogACTPolicy) -> None:
    raw = torch.zeros(1, 2, 7)
    raw[0, :, 6] = torch.tensor([0.49, 0.51])
    assert policy.unnormalize(raw)[0, :, 6].tolist() == [-1.0, 1.0]


def test_proprioception_is_an_option() -> None:
    settings = SmallCogACTPolicy.tiny().config() | {"state_dim": 0, "state_mean": [], "state_std": []}
    blind = SmallCogACTPolicy.from_config(settings, SmallCogACTPolicy.tiny().files())
    assert blind.state_projector is None
    assert "state_projector" not in blind.linear_layers()
    torch.nn.init.normal_(blind.action_model.net.final_layer.linear.weight)
    batch = blind.example_batch(0)
    moved = {**batch, STATE: torch.ones(2, 7)}
    assert torch.equal(
        blind.predict_chunk(batch, noise_generator(0, 0)), blind.predict_chunk(moved, noise_generator(0, 0))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cameras": {"front": 70}}, "multiple of 32, got 70"),
        ({"n_action_steps": 17}, "between 1 and chunk_size = 16, got 17"),
        ({"action_low": [0.0]}, "action_low must have 7 entries, got 1"),
        ({"action_dim": 8}, r"action_dim must be 7 \(3 ee-position-delta \[m\], .*\), got 8"),
        ({"denoising_steps": 60}, "integer stride, got 60"),
        ({"colour": "red"}, r"known keys only, got \['colour'\]"),
    ],
)
def test_bad_configuration_is_refused(policy: SmallCogACTPolicy, change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        SmallCogACTConfig.from_json(policy.config() | change, "cogact-small")


def test_incomplete_configuration_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="must be complete"):
        SmallCogACTConfig.from_json({"name": "x"}, "cogact-small")


def test_images_of_another_size_are_refused(policy: SmallCogACTPolicy) -> None:
    batch = policy.example_batch(0)
    batch[camera_key("front")] = torch.zeros(2, 3, 32, 64)
    with pytest.raises(InvalidInputError, match=r"camera 'front' must have shape \(b, 3, 64, 64\)"):
        policy.predict_chunk(batch, noise_generator(0, 0))


def test_keypoints_are_the_expected_coordinates() -> None:
    keypoints = Keypoints(1, 1)
    torch.nn.init.ones_(keypoints.heatmaps.weight)
    assert keypoints.heatmaps.bias is not None
    torch.nn.init.zeros_(keypoints.heatmaps.bias)
    features = torch.zeros(1, 1, 3, 5)
    features[0, 0, 2, 1] = 1e4  # all probability at row 2 of 3, column 1 of 5
    assert keypoints(features)[0].tolist() == pytest.approx([-0.5, 1.0])
    assert keypoints(torch.zeros(1, 1, 3, 5))[0].tolist() == pytest.approx([0.0, 0.0], abs=1e-7)


def test_pixel_shuffle_joins_neighbours() -> None:
    tokens = torch.arange(16.0).view(1, 16, 1)
    assert pixel_shuffle(tokens, 4)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_noise_depends_on_seed_and_step_only() -> None:
    draws = {tuple(torch.randn(2, generator=noise_generator(*key)).tolist()) for key in ((0, 0), (0, 1), (1, 0))}
    assert len(draws) == 3
    again = torch.randn(2, generator=noise_generator(1, 0)).tolist()
    assert tuple(again) in draws


def test_example_batch_has_actions_in_range(policy: SmallCogACTPolicy) -> None:
    actions = policy.example_batch(1)[ACTION]
    assert actions[..., :6].abs().max() <= 0.2
    assert set(actions[..., 6].flatten().tolist()) <= {-1.0, 1.0}
