"""Demonstrations of the scripted expert, their shards, and the calibration source that reads them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daptq.calibration import demonstrations
from daptq.calibration.contract import check_batch, open_named_source
from daptq.calibration.demonstrations import (
    CHUNK_SIZE,
    DemonstrationSet,
    Disturbance,
    action_chunks,
    record_episode,
)
from daptq.calibration.states import DemonstrationSource, open_demonstrations
from daptq.calibration.tabletop import DEMONSTRATIONS, open_source
from daptq.environments.tabletop import TabletopEnvironment
from daptq.errors import ArtifactError, CalibrationDataError, UnknownNameError
from daptq.observations import ACTION, STATE, TASK, camera_key
from daptq.policies.cogact_small import SmallCogACTPolicy


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a shard is eight episodes."""
    folder = tmp_path_factory.mktemp("recordings")
    DemonstrationSet(replace(DEMONSTRATIONS, episodes_per_shard=8), "train", folder).shard(0)
    return folder


@given(st.integers(1, 40))
def test_chunks_are_the_following_actions_then_rest(length: int) -> None:
    actions = np.random.default_rng(length).normal(size=(length, 7)).astype(np.float32)
    chunks = action_chunks(actions)
    for frame in range(length):
        for offset in range(CHUNK_SIZE):
            after = frame + offset
            expected = actions[after] if after < length else np.append(np.zeros(6, np.float32), actions[-1, 6])
            np.testing.assert_array_equal(chunks[frame, offset], expected)


def test_labels_are_valid_until_a_disturbance_interferes() -> None:
    disturbed = [False] * 20
    disturbed[5] = disturbed[6] = True
    lengths = demonstrations._valid_lengths(disturbed)
    # The label of the disturbed frame itself is right: what was executed afterwards is not.
    assert lengths[:9].tolist() == [6, 5, 4, 3, 2, 1, 1, CHUNK_SIZE, CHUNK_SIZE]


def test_disturbances_stay_within_their_limits() -> None:
    limits = Disturbance()
    bursts = [limits.schedule(np.random.default_rng(seed), 60) for seed in range(200)]
    offsets = np.array([offset for burst in bursts for offset in burst.values()])
    assert np.abs(offsets[:, :3]).max() <= limits.translation
    assert np.abs(offsets[:, 5]).max() <= limits.yaw
    assert not offsets[:, 3:5].any()
    assert {1.0, -1.0} == set(offsets[:, 6].tolist())
    assert min(len(burst) for burst in bursts) == 0
    assert max(len(burst) for burst in bursts) > 3


def test_labels_are_what_the_expert_would_do_in_the_recorded_state() -> None:
    environment = TabletopEnvironment(image_size={})
    episode = record_episode(environment, DEMONSTRATIONS, task="stack_blocks", seed=4, disturbance=Disturbance())
    assert episode.success
    environment.reset(seed=4, options={"task": "stack_blocks"})
    np.testing.assert_array_equal(episode.arrays["action"][0], DEMONSTRATIONS.expert.action(environment))
    scene = np.isfinite(episode.arrays["object_positions"]).all(axis=(0, 2))
    assert [name for name, present in zip(DEMONSTRATIONS.objects, scene, strict=True) if present] == [
        spec.name for spec in environment.world.objects
    ]
    environment.close()


def test_the_expert_takes_over_where_another_controller_left() -> None:
    environment = TabletopEnvironment(image_size={})
    down = np.array([0, 0.02, -0.02, 0, 0, 0, -1], dtype=np.float32)
    episode = record_episode(
        environment,
        DEMONSTRATIONS,
        task="spoon_on_towel",
        seed=1,
        disturbance=None,
        lead_in=lambda *_: down,
        takeover=5,
    )
    environment.close()
    assert episode.success
    assert episode.arrays[STATE][0, 1] > 0.05  # five steps of 2 cm to the left before the first recorded frame


def test_other_instructions_are_other_data(recordings: Path) -> None:
    @dataclass(frozen=True)
    class Reworded:
        instruction: str
        source: str = "spoon"
        target: str = "towel"

    tasks = {name: Reworded(f"please {task.instruction}") for name, task in DEMONSTRATIONS.tasks.items()}
    source, other = (
        open_demonstrations(settings, "train", limit=4, seed=3, folder=recordings)
        for settings in (DEMONSTRATIONS, replace(DEMONSTRATIONS, tasks=tasks))
    )
    assert source.hash != other.hash
    assert [f"please {task}" for task in next(iter(source))[TASK]] == next(iter(other))[TASK]


def test_states_belong_to_their_instruction(recordings: Path) -> None:
    """Each state's picture, proprioception and actions come from one frame of an episode of that instruction."""
    shard = DemonstrationSet(DEMONSTRATIONS, "train", recordings).shard(0)
    batch = next(iter(open_source("train", limit=16, seed=0, folder=recordings)))
    states, instructions = shard.tensor(STATE), shard.metadata["instructions"]
    for row in range(16):
        # Every episode starts from the same pose; the action chunk tells them apart.
        same = (states == batch[STATE][row]).all(dim=1) & (shard.tensor(ACTION) == batch[ACTION][row]).all(dim=(1, 2))
        frame = int(same.nonzero()[0])
        picture = shard.tensor(camera_key("front"))[frame].permute(2, 0, 1) / 255
        assert torch.equal(batch[camera_key("front")][row], picture)
        assert batch[TASK][row] == instructions[int(shard.tensor("task_index")[frame])]


def test_batches_pass_the_checks_of_the_pipeline(recordings: Path) -> None:
    settings = SmallCogACTPolicy.tiny().config() | {"cameras": {"front": 96, "wrist": 64}}
    policy = SmallCogACTPolicy.from_config(settings, SmallCogACTPolicy.tiny().files())
    for index, batch in enumerate(open_source("train", limit=20, seed=0, folder=recordings)):
        check_batch(batch, policy, index)
        assert torch.isfinite(policy.predict_target(batch, torch.Generator().manual_seed(0)).predicted).all()


@pytest.mark.parametrize("limit", [0, 100_000])
def test_impossible_numbers_of_states_are_refused(recordings: Path, limit: int) -> None:
    settings = replace(DEMONSTRATIONS, shards={"train": 1})
    with pytest.raises(CalibrationDataError, match="number of calibration states must be at"):
        open_demonstrations(settings, "train", limit=limit, seed=0, folder=recordings)


def test_unknown_split_suggests_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        open_named_source("tabletop:trian", limit=4, seed=0)


def test_a_damaged_recording_is_refused(recordings: Path, tmp_path: Path) -> None:
    copied = tmp_path / "train" / "shard-00000"
    copied.parent.mkdir()
    copied.mkdir()
    for file in (recordings / "train" / "shard-00000").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    victim = next(copied.glob("*.safetensors"))
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ArtifactError, match=victim.name):
        DemonstrationSource(DemonstrationSet(DEMONSTRATIONS, "train", tmp_path), limit=4, seed=0)
