"""The contract of a calibration source, and the checks that every batch passes before any long work.

A source yields batches of demonstration states: the keys of a policy's batch (see `daptq.policies.contract`) plus
``action``, float32 (b, chunk_size, action_dim) in physical units. This module does not know where the states come
from.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from daptq.catalog import SOURCES
from daptq.errors import CalibrationDataError, UnknownNameError
from daptq.observations import ACTION, STATE, TASK
from daptq.policies.contract import Batch, Policy

__all__ = ["CalibrationSource", "batch_size", "check_batch", "checked", "limited", "open_named_source", "source_name"]


class CalibrationSource(ABC):
    """Batches of demonstration states, the same ones at every iteration.

    Attributes:
        hash: SHA-256 over everything that decides the batches; a resumed run compares it.
        licence: SPDX identifier of the data's licence.
        description: What the data is, in one line.
    """

    hash: str
    licence: str
    description: str

    @abstractmethod
    def __iter__(self) -> Iterator[Batch]:
        """Yields the batches from the first one on; 8 to 16 states each are a good size."""


def open_named_source(data: str, *, limit: int | None, seed: int) -> CalibrationSource:
    """Opens a source by its name in the catalog, for example ``"tabletop:train"``.

    Args:
        data: ``"name:split"``.
        limit: Largest number of states, or None for all.
        seed: Decides which states are drawn when there are more.

    Raises:
        CalibrationDataError: `data` is not of the form ``name:split``.
        UnknownNameError: No source has this name, or it has no such split.
    """
    name, split = source_name(data)
    return SOURCES.load(name).open_source(split, limit=limit, seed=seed)


def source_name(data: str) -> tuple[str, str]:
    """The source and the split in ``"source:split"``; nothing is imported or opened.

    Raises:
        CalibrationDataError: `data` is not of this form.
        UnknownNameError: No source has this name.
    """
    name, _, split = data.partition(":")
    if not (name and split):
        raise CalibrationDataError(
            f"calibration data must be named 'source:split', got {data!r}. Write for example 'tabletop:train'."
        )
    if name not in SOURCES.names():
        raise UnknownNameError(SOURCES.kind, name, SOURCES.names())
    return name, split


def batch_size(batch: Batch) -> int:
    """Number of states of a batch that `check_batch` accepted."""
    return len(batch[ACTION])


def limited(batches: Iterable[Batch], limit: int) -> Iterator[Batch]:
    """The batches, the last one cut, until `limit` states have been seen; no further batch is read."""
    remaining = limit
    for batch in batches:
        yield {key: value[:remaining] for key, value in batch.items()}
        remaining -= batch_size(batch)
        if remaining <= 0:
            return


def checked(source: CalibrationSource, policy: Policy) -> Iterator[Batch]:
    """The batches of a source, each one checked by `check_batch` when it is read."""
    for index, batch in enumerate(source):
        check_batch(batch, policy, index)
        yield batch


def check_batch(batch: Batch, policy: Policy, index: int) -> None:
    """Refuses a batch that the policy cannot be calibrated on.

    Args:
        batch: A batch of a calibration source.
        policy: The policy that will read it; it says which cameras, state and actions it needs.
        index: Number of the batch, counted from 0, for the message.

    Raises:
        CalibrationDataError: A key is missing, a tensor has the wrong shape or dtype or is not finite, or the batch is
            empty; the message names the batch and the key.
    """
    place = f"calibration batch {index}"
    wanted = (ACTION, TASK, *policy.cameras, *((STATE,) if policy.state_dim else ()))
    if missing := [key for key in wanted if key not in batch]:
        raise CalibrationDataError(f"{place} must have the keys {missing}, got {sorted(batch)}. Add what is missing.")
    actions = batch[ACTION]
    _check_tensor(actions, (None, policy.chunk_size, policy.action_dim), ACTION, place)
    states = len(actions)
    if states == 0:
        raise CalibrationDataError(f"{place} must hold at least one state, got none. Leave empty batches out.")
    for key, size in policy.cameras.items():
        _check_tensor(batch[key], (states, 3, *((None, None) if size is None else size)), key, place)
    if STATE in batch:  # A drift model may read the state where the policy does not.
        _check_tensor(batch[STATE], (states, policy.state_dim or None), STATE, place)
    if len(batch[TASK]) != states or not all(isinstance(task, str) for task in batch[TASK]):
        raise CalibrationDataError(
            f"task of {place} must be a list of {states} instructions, got {batch[TASK]!r}. Give one for each state."
        )


def _check_tensor(value: object, shape: tuple[int | None, ...], key: str, place: str) -> None:
    """Refuses what is not a finite float tensor of `shape`, where None stands for any length."""
    free = ("b", *("any" for _ in shape[1:]))
    expected = "(" + ", ".join(name if n is None else str(n) for name, n in zip(free, shape, strict=True)) + ")"
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = f"dtype {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise CalibrationDataError(
            f"{key} of {place} must be a float tensor of shape {expected}, got {got}. Convert it."
        )
    fits = value.dim() == len(shape) and all(w is None or w == g for w, g in zip(shape, value.shape, strict=True))
    if not fits:
        raise CalibrationDataError(
            f"{key} of {place} must have shape {expected}, got {tuple(value.shape)}. Match the policy's sizes."
        )
    if not bool(torch.isfinite(value).all()):
        bad = int((~torch.isfinite(value)).sum())
        raise CalibrationDataError(
            f"{key} of {place} must be finite, got {bad} NaN or infinite values. Remove those states from the data."
        )
