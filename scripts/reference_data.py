"""What a policy of the reference architecture is trained on.

Frames of the demonstrations with privileged labels, augmented; and the instructions from which its tokenizer learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daptq.artifacts import Artifact, read_artifact
from daptq.calibration.demonstrations import CHUNK_SIZE, DemonstrationSettings, Episode, LeadIn, record_episode
from daptq.calibration.tabletop import DEMONSTRATIONS as TABLETOP
from daptq.environments.contract import Environment
from daptq.observations import STATE, TASK, camera_key
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import predict_chunks

SHIFT = 2
FIRST_RECOVERY_SEED = 200_000
VERBS = (
    "put the {a} on the {b}",
    "put the {a} in the {b}",
    "stack the {a} on the {b}",
    "move the {a} near the {b}",
    "pick up the {a}",
    "place the {a} next to the {b}",
    "take the {a} off the {b}",
    "push the {a} to the {b}",
)
NOUNS = (
    "spoon",
    "towel",
    "carrot",
    "plate",
    "green block",
    "yellow block",
    "red block",
    "blue block",
    "eggplant",
    "basket",
    "cup",
    "bowl",
    "knife",
    "sponge",
    "can",
    "drawer",
)


def instruction_corpus() -> Iterator[str]:
    """Instructions from which the tokenizer learns its merges: the benchmark's and their like."""
    for task in TABLETOP.tasks.values():
        yield from [task.instruction] * 8
    for verb in VERBS:
        for a in NOUNS:
            for b in NOUNS:
                if a != b:
                    yield verb.format(a=a, b=b)


def successful_frames(shard: Artifact) -> dict[str, Tensor]:
    """The tensors of a shard without the episodes that the expert failed."""
    tensors = dict(shard.tensors())
    kept = torch.tensor(shard.metadata["success"])[tensors["episode_index"]]
    return {key: value[kept] for key, value in tensors.items()}


class Frames:
    """All frames of the demonstrations, in memory."""

    def __init__(self, folders: list[Path], settings: DemonstrationSettings, limit: int | None = None) -> None:
        self.settings = settings
        paths = [path for folder in folders for path in sorted(folder.glob("shard-?????"))][:limit]
        shards = [successful_frames(read_artifact(path, kind="demonstrations")) for path in paths]
        self.tensors = {key: torch.cat([shard[key] for shard in shards]) for key in shards[0]}
        self.shards = len(shards)
        tasks, names = settings.tasks.values(), settings.objects
        self.instructions = [task.instruction for task in tasks]
        self.source = torch.tensor([names.index(task.source) for task in tasks])
        self.target = torch.tensor([names.index(task.target) for task in tasks])

    def __len__(self) -> int:
        return len(self.tensors["action"])

    def batch(self, index: Tensor, generator: torch.Generator | None) -> tuple[Batch, dict[str, Tensor]]:
        """A policy batch (augmented when a generator is given) and privileged labels for the frames `index`."""
        rows = {key: value[index] for key, value in self.tensors.items()}
        batch: Batch = {TASK: [self.instructions[i] for i in rows["task_index"].tolist()], STATE: rows[STATE]}
        for camera in self.settings.cameras:
            image = rows[camera_key(camera)].permute(0, 3, 1, 2).float().div_(255.0)
            batch[camera_key(camera)] = augment(image, SHIFT, generator) if generator else image
        here = rows[STATE][:, None, :3]
        positions, yaws = rows["object_positions"], rows["object_yaws"]
        each = torch.arange(len(index))
        source, target = self.source[rows["task_index"]], self.target[rows["task_index"]]
        angles = torch.stack([torch.sin(2 * yaws), torch.cos(2 * yaws)], dim=-1)
        scene = torch.cat([10 * (positions - torch.tensor([0.28, 0.0, 0.0])), angles], dim=-1)
        relative = 10 * (positions - here)
        goal = torch.cat([relative[each, source], angles[each, source], relative[each, target]], dim=-1)
        valid = torch.arange(CHUNK_SIZE) < rows["valid"][:, None]
        labels = {
            "action": rows["action"],
            "valid": valid.float().unsqueeze(-1),
            "scene": scene.flatten(1),
            "goal": goal,
        }
        return batch, labels


def augment(image: Tensor, shift: int, generator: torch.Generator) -> Tensor:
    """Random shift by up to `shift` pixels, brightness and contrast, per sample."""
    count, _, height, width = image.shape
    padded = F.pad(image, (shift,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * shift + 1, (count, 2), generator=generator).tolist()
    shifted = torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets, strict=True)])
    gain = 1 + 0.2 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    bias = 0.1 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    noise = 0.01 * torch.randn(shifted.shape, generator=generator)
    return (shifted * gain + bias + noise).clamp_(0, 1)


def follow(policy: Policy, instruction: str, seed: int) -> LeadIn:
    """A controller that does what the policy says."""
    chunk: Tensor | None = None

    def action(observation: Mapping[str, Any], step: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        nonlocal chunk
        phase = step % policy.n_action_steps
        if phase == 0 or chunk is None:
            chunk = predict_chunks(policy, [observation], [instruction], seeds=[seed], step_indices=[step])[0]
        return chunk[phase].numpy().astype(np.float32)

    return action


def record_recoveries(
    environment: Environment, settings: DemonstrationSettings, policy: Policy, index: int
) -> list[Episode]:
    """One shard of episodes that `policy` begins and the expert, taking over at a random step, finishes."""
    episodes = []
    for number in range(index * settings.episodes_per_shard, (index + 1) * settings.episodes_per_shard):
        task, seed = settings.task(number), FIRST_RECOVERY_SEED + number // settings.episodes_per_seed
        episodes.append(
            record_episode(
                environment,
                settings,
                task=task,
                seed=seed,
                disturbance=None,
                lead_in=follow(policy, settings.tasks[task].instruction, seed),
                takeover=int(np.random.default_rng(FIRST_RECOVERY_SEED + number).integers(2, 28)),
            )
        )
    return episodes
