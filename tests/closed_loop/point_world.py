"""A point that a policy pushes about: a closed loop whose every number can be worked out by hand."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from daptq.action_space import END_EFFECTOR_DELTA
from daptq.environments.contract import Environment, Info, Observation
from daptq.interfaces.contract import Interface, Tap
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.observations import STATE, ImageSizes
from daptq.policies.contract import Batch, Block, Condition, DenoisingStep, Policy, Prediction

TASKS = ("left", "right")
VARIANTS = {
    "gust": SimpleNamespace(description="wind of 4 mm a step to the right", wind=-0.004, reading=0.0),
    "breeze": SimpleNamespace(description="wind of 0.5 mm a step to the left", wind=0.0005, reading=0.0),
    "offset": SimpleNamespace(description="the sensor reads 9.5 mm too little", wind=0.0, reading=-0.0095),
}
GOAL = {"left": 0.1, "right": -0.1}
STEPS = 3


class PointWorld(Environment):
    """A point on a line: x moves by the first entry of the action, and by 1 mm a step beside that.

    There is a cup at x > 50 mm, which the point holds while it is there.

    "left" is fulfilled where x >= 0.1 m, "right" where x <= -0.1 m. The start is within 5 mm of the origin. The yaw
    changes by the sixth entry of the action [rad]. A sensor reads 0 with an error of 0.5 mm that stays for an episode.
    On a variant a wind moves x, too, or the sensor reads something else.
    """

    tasks: ClassVar[tuple[str, ...]] = TASKS
    control_frequency: ClassVar[float] = 5.0
    resets: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, image_size: ImageSizes | None = None, horizon: int = 24, variant: str | None = None) -> None:
        self.wind = 0.0 if variant is None else VARIANTS[variant].wind
        self.offset = 0.0 if variant is None else VARIANTS[variant].reading
        self.reading = 0.0
        self.image_size = dict(image_size or {})
        self.horizon = horizon
        self._task = "left"
        self.x, self.yaw, self.steps = 0.0, 0.0, 0
        self.closed = False
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (7,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({STATE: gymnasium.spaces.Box(-np.inf, np.inf, (7,), np.float32)})

    @property
    def task(self) -> str:
        return self._task

    @property
    def instruction(self) -> str:
        return f"go {self._task}"

    @property
    def joint_positions(self) -> Any:
        return np.array([self.x])

    def forward_kinematics(self, joint_positions: Any) -> Any:
        return np.array([joint_positions[0], 0.0, 0.0]), np.eye(3)

    def jacobian(self) -> Any:
        return np.eye(6)[:, :1]

    def privileged_state(self) -> dict[str, Any]:
        return {"held": "cup" if self.x > 0.05 else None}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        super().reset(seed=seed)
        self._task = (options or {}).get("task", "left")
        PointWorld.resets.append((self._task, int(seed or 0)))
        self.x, self.yaw, self.steps = float(np.random.default_rng(seed).uniform(-0.005, 0.005)), 0.0, 0
        self.reading = self.offset + float(np.random.default_rng([1, seed or 0]).normal(0.0, 0.0005))
        return self.observe(), self._info()

    def advance(self, action: Any) -> Info:
        if not np.isfinite(action).all():
            raise ValueError("action is not finite")
        self.x += float(action[0]) + 0.001 + self.wind
        self.yaw += float(action[5])
        self.steps += 1
        return self._info()

    def get_state(self) -> Any:
        return np.array([TASKS.index(self._task), self.x, self.yaw, self.steps])

    def set_state(self, state: Any) -> tuple[Observation, Info]:
        self._task, self.x, self.yaw, self.steps = TASKS[int(state[0])], float(state[1]), float(state[2]), int(state[3])
        return self.observe(), self._info()

    def close(self) -> None:
        self.closed = True

    def observe(self) -> Observation:
        return {STATE: np.array([self.x, self.reading, 0.0, 0.0, 0.0, self.yaw, 1.0], dtype=np.float32)}

    def _info(self) -> Info:
        by_task = {"left": self.x >= GOAL["left"], "right": self.x <= GOAL["right"]}
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return {
            "task": self.instruction,
            "success": by_task[self._task],
            "success_by_task": by_task,
            "step_index": self.steps,
            "end_effector_position": np.array([self.x, 0.0, 0.0]),
            "end_effector_rotation": np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]]),
        }


class Pusher(Policy):
    """Walks towards the instructed side with 10 mm a step, plus noise, plus its own constant error; grips the cup.

    Args:
        error: Added to x of every action [m].
        turn: Yaw change of every action [rad].
        noise: Standard deviation of the diffusion noise on x [m].
        stop_at: Where it stops walking [m]; beyond the goal by default.
        pause: How long a prediction takes [s].
    """

    family: ClassVar[str] = "pusher"

    def __init__(
        self,
        name: str = "pusher",
        *,
        error: float = 0.0,
        turn: float = 0.0,
        noise: float = 0.0,
        stop_at: float = 1.0,
        pause: float = 0.0,
    ) -> None:
        super().__init__()
        self.name, self.action_space, self.chunk_size = name, END_EFFECTOR_DELTA, 8
        self.n_action_steps, self.cameras, self.state_dim = 4, {}, 7
        self.denoising_steps, self.denoising_step = 1, DenoisingStep()
        self.gain = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.gain.weight)
        self.error, self.turn, self.spread, self.stop_at = error, turn, noise, stop_at
        self.pause = pause
        self.predictions: list[tuple[float, float]] = []

    @classmethod
    def from_config(cls, config: Mapping[str, Any], files: Mapping[str, bytes], *, empty: bool = False) -> Self:
        return cls(**config)

    @classmethod
    def tiny(cls, seed: int = 0) -> Self:
        return cls()

    def config(self) -> dict[str, Any]:
        return {"name": self.name}

    def files(self) -> dict[str, bytes]:
        return {}

    def blocks(self) -> tuple[Block, ...]:
        return (Block(name="gain", role="action_head"),)

    def interfaces(self) -> tuple[Interface, ...]:
        return ()

    def head_stack(self) -> tuple[str, ...]:
        return ()

    def condition(self, batch: Batch) -> Condition:
        time.sleep(self.pause)
        sides = torch.tensor([1.0 if "left" in task else -1.0 for task in batch["task"]])
        return batch[STATE], sides

    def noise(self, count: int, generator: torch.Generator | Sequence[torch.Generator]) -> Tensor:
        generators = [generator] * count if isinstance(generator, torch.Generator) else generator
        return torch.stack([self.spread * torch.randn(self.chunk_size, generator=one) for one in generators])

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        state, sides = condition
        chunk = torch.zeros(len(noise), self.chunk_size, 7)
        for row, drawn in enumerate(noise):
            x = float(state[row, 0])
            self.predictions.append((x, float(drawn.sum())))
            chunk[row, :, 0] = (0.01 * float(sides[row]) if abs(x) < self.stop_at else 0.0) + self.error + drawn
            chunk[row, :, 6] = -1.0 if x > 0.05 else 1.0
        chunk[..., 5] = self.turn
        return chunk

    def executed(self, chunk: Tensor, batch: Batch) -> Tensor:
        return chunk

    def unlimited(self, chunk: Tensor, batch: Batch) -> Tensor:
        return chunk

    @property
    def action_unit(self) -> Tensor:
        return torch.ones(7)

    def predict_target(self, batch: Batch, generator: torch.Generator) -> Prediction:
        raise NotImplementedError

    def example_batch(self, seed: int) -> Batch:
        return {STATE: torch.zeros(2, 7), "task": ["go left"] * 2, "action": torch.zeros(2, self.chunk_size, 7)}


def make(*, image_size: ImageSizes | None = None, variant: str | None = None) -> PointWorld:
    """What the catalog calls where this module is plugged in as an environment."""
    return PointWorld(image_size, variant=variant)


class Deadly(Pusher):
    """Kills the worker process that asks it to predict, the first so many times; the process it was made in is spared.

    Args:
        marks: Folder with one file for every death.
        deaths: How many processes to kill.
    """

    def __init__(self, name: str, *, marks: Path, deaths: int, **settings: float) -> None:
        super().__init__(name, **settings)
        self.marks, self.deaths, self.home = marks, deaths, os.getpid()

    def condition(self, batch: Batch) -> Condition:
        if os.getpid() != self.home and len(os.listdir(self.marks)) < self.deaths:
            (self.marks / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().condition(batch)


class Reader(Pusher):
    """Walks by what the consumer makes of z = (10 mm to the asked side + reading, x), in three denoising steps.

    The consumer also reads a constant behind z, as guidance does.
    """

    def __init__(self) -> None:
        super().__init__("reader")
        self.consumer: nn.Module = nn.Linear(2, 1)
        self.constant = nn.Parameter(torch.tensor([[0.3, -0.2]]))
        with torch.no_grad():
            self.consumer.weight.copy_(torch.tensor([[1.0, 0.0]]))
            self.consumer.bias.zero_()

    def interfaces(self) -> tuple[Interface, ...]:
        return (Interface("consumer", Tap("consumer"), (IntoConsumers(("consumer",), ("constant",)),)),)

    def condition(self, batch: Batch) -> Condition:
        sides = torch.tensor([0.01 if "left" in task else -0.01 for task in batch["task"]])
        return (torch.stack([sides + batch[STATE][:, 1], batch[STATE][:, 0]], dim=1),)

    def denoise(self, condition: Condition, noise: Tensor) -> Tensor:
        (z,) = condition
        for step in range(STEPS):
            self.denoising_step.index = step
            read = self.consumer(torch.cat([z, self.constant.expand(len(z), 2)]).unsqueeze(1))[: len(z), 0]
        chunk = torch.zeros(len(z), self.chunk_size, 7)
        chunk[:, :, 0] = read
        return chunk
