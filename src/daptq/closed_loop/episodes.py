"""Which episodes an evaluation runs: task, seed and the steps at which the state is saved for drift.

Episode i asks task i modulo the number of tasks, and its seed depends on the run's seed and i alone, so the first N
episodes of a longer run are the N episodes of a shorter one. Where seeds choose one of a task's fixed initial states in
turn, every task counts its own seeds: it sees its states as often, and the same episodes, as when it is asked alone.
Seeds start at 10 000 000; demonstrations use seeds below 1 000 000, so no evaluated initial state was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from daptq.errors import InvalidInputError

EVALUATION_SEED_START = 10_000_000
SEEDS_PER_RUN = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One initial state and one stream of diffusion noise, the same for every policy.

    Attributes:
        index: Number of the episode in this evaluation, from 0.
        task: Name of the task that is asked.
        seed: Seed of the initial state and of the diffusion noise.
        branch_steps: Control steps, ascending, before which the baseline's state is saved for drift.
    """

    index: int
    task: str
    seed: int
    branch_steps: tuple[int, ...] = ()


def schedule_episodes(
    tasks: Sequence[str],
    *,
    episodes: int,
    seed: int,
    seeds_per_task: bool = False,
    drift_states: int = 0,
    possible_steps: Sequence[int] = (),
) -> tuple[Episode, ...]:
    """Spreads episodes over tasks, and states for drift over episodes, as evenly as counts allow.

    Args:
        tasks: Names of the tasks to ask.
        episodes: Number of episodes over all tasks together, at least one per task.
        seed: Seed of the evaluation, at least 0.
        seeds_per_task: Whether the k-th episode of every task has the k-th seed; otherwise no seed is used twice.
        drift_states: Number of states to save over all episodes together.
        possible_steps: Control steps that a state may be saved at; each at most once per episode.

    Raises:
        InvalidInputError: There are fewer episodes than tasks or more than 1 000 000, the seed is negative, or more
            states are asked for than there are places.
    """
    if not len(tasks) <= episodes <= SEEDS_PER_RUN or episodes < 1:
        message = f"episodes must be between {max(1, len(tasks))} (one per task) and {SEEDS_PER_RUN}, got {episodes}."
        raise InvalidInputError(message + " Ask for more episodes or fewer tasks.")
    if seed < 0:
        raise InvalidInputError(f"seed must be at least 0, got {seed}. Choose another seed.")
    if not 0 <= drift_states <= episodes * len(possible_steps):
        most = episodes * len(possible_steps)
        message = f"drift_states must be between 0 and {most} ({len(possible_steps)} per episode), got {drift_states}."
        raise InvalidInputError(message + " Ask for fewer states or more episodes.")
    scheduled = []
    for index in range(episodes):
        number = index // len(tasks) if seeds_per_task else index
        episode_seed = EVALUATION_SEED_START + seed * SEEDS_PER_RUN + number
        count = drift_states // episodes + (index < drift_states % episodes)
        # The order of an episode's steps depends on its seed alone: asking for more states keeps those asked before.
        order = np.random.default_rng(episode_seed).permutation(len(possible_steps))
        steps = tuple(sorted(int(possible_steps[place]) for place in order[:count]))
        scheduled.append(Episode(index=index, task=tasks[index % len(tasks)], seed=episode_seed, branch_steps=steps))
    return tuple(scheduled)
