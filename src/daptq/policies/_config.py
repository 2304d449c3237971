"""What the configurations of several families have in common: reading them from JSON, and checks of the action side."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import fields
from typing import Any, TypeVar

from daptq.errors import InvalidInputError
from daptq.policies.diffusion import ddim_timesteps

Config = TypeVar("Config")


def config_from_json(kind: type[Config], config: Mapping[str, Any], label: str) -> Config:
    """Builds a configuration from a JSON object, naming what is missing or unknown.

    Args:
        kind: A frozen dataclass that checks its values when it is built.
        config: Its fields by name; lists stand for tuples.
        label: What is configured, for messages, for example ``"cogact-small"``.

    Raises:
        InvalidInputError: A key is unknown or missing, or a value cannot be used.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(config) - known):
        raise InvalidInputError(f"configuration of {label} must have known keys only, got {unknown}. Remove them.")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise InvalidInputError(
            f"configuration of {label} must be complete, got {error}. Add what is missing."
        ) from error


def check_lengths(entries: Mapping[str, tuple[Sized, int]]) -> None:
    """Refuses statistics of another length than they must have.

    Args:
        entries: Values and expected length, by label.

    Raises:
        InvalidInputError: A length differs.
    """
    for label, (values, length) in entries.items():
        if len(values) != length:
            raise InvalidInputError(f"{label} must have {length} entries, got {len(values)}. Recompute the statistics.")


def check_chunk(n_action_steps: int, chunk_size: int, diffusion_steps: int, denoising_steps: int) -> None:
    """Refuses a chunk that cannot be executed or denoised.

    Raises:
        InvalidInputError: More actions are executed than predicted, or no stride gives the denoising steps.
    """
    if not 1 <= n_action_steps <= chunk_size:
        raise InvalidInputError(
            f"n_action_steps must be between 1 and chunk_size = {chunk_size}, got {n_action_steps}. "
            "Execute at most what is predicted."
        )
    ddim_timesteps(diffusion_steps, denoising_steps)
