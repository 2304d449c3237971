"""The public conformance suite of a calibration source: its contract, checked on a few dozen states.

It opens a split several times and reads every batch; it knows no policy, so sizes are compared between batches alone.
"""

from __future__ import annotations

import copy
import re
from typing import Protocol

import torch
from torch import Tensor

from daptq.calibration.contract import CalibrationSource
from daptq.errors import CheckFailedError, UnknownNameError, require_check
from daptq.observations import ACTION, STATE, TASK, is_camera
from daptq.policies.contract import Batch

__all__ = ["OpenSource", "check_source"]

UNKNOWN_SPLIT = "no-such-split"
SEEDS = (0, 1, 2)

# Axes of each kind of tensor.
_AXES = {ACTION: ("b", "chunk", "action"), STATE: ("b", "state")}
_IMAGE_AXES = ("b", "3", "height", "width")


class OpenSource(Protocol):
    """What a source's file defines under the name ``open_source``."""

    def __call__(self, split: str, /, *, limit: int | None, seed: int) -> CalibrationSource:
        """Opens a split, see `daptq.calibration.contract.open_named_source`."""


def check_source(open_source: OpenSource, split: str, *, limit: int = 24) -> None:
    """Checks that what `open_source` opens keeps the contract of `CalibrationSource`.

    Args:
        open_source: Opens a split of the source.
        split: A split that the source has.
        limit: Number of states to ask for, at least 2. What the seed decides is checked where the split has more than
            half as many.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    source = open_source(split, limit=limit, seed=SEEDS[0])
    _check_description(source)
    batches = _read(source)
    _check_batches(batches, limit)
    _check_repeats(source, batches)
    again = open_source(split, limit=limit, seed=SEEDS[0])
    require_check(again.hash == source.hash, "hash must be the same when a source is opened again")
    require_check(_same(_read(again), batches), "batches must be the same when a source is opened again")
    _check_draws(open_source, split, limit)
    _check_unknown_split(open_source)


def _check_description(source: CalibrationSource) -> None:
    for name in ("hash", "licence", "description"):
        text = getattr(source, name, None)
        lines = text.splitlines() if isinstance(text, str) else []
        require_check(len(lines) == 1 and bool(lines[0].strip()), f"{name} must be one line of text, got {text!r}")
    is_digest = re.fullmatch("[0-9a-f]{64}", source.hash) is not None
    require_check(is_digest, f"hash must be a SHA-256 in hexadecimal digits, got {source.hash!r}")


def _check_batches(batches: list[Batch], limit: int) -> None:
    """Every batch is one that a policy can read, and all of them have the same keys and sizes."""
    require_check(bool(batches), "a source must hold at least one batch, got none")
    sizes: dict[str, tuple[int, ...]] = {}
    for index, batch in enumerate(batches):
        place = f"batch {index}"
        missing = [key for key in (ACTION, TASK) if key not in batch]
        require_check(not missing, f"{place} must have the keys {missing}, got {sorted(batch)}")
        require_check(
            any(map(is_camera, batch)), f"{place} must have pictures of a camera, got the keys {sorted(batch)}"
        )
        found = {key: _size(batch, key, place) for key in batch}
        sizes = sizes or found
        require_check(sizes.keys() == found.keys(), f"keys of {place} must be {sorted(sizes)}, got {sorted(found)}")
        for key, size in found.items():
            require_check(size == sizes[key], f"sizes of {key} in {place} must be {sizes[key]}, got {size}")
    states = _count(batches)
    require_check(states <= limit, f"a source with limit {limit} must hold at most {limit} states, got {states}")


def _size(batch: Batch, key: str, place: str) -> tuple[int, ...]:
    """Lengths of all axes but the first of what a batch holds under `key`, after it was checked."""
    value, states = batch[key], len(batch[ACTION])
    if key == TASK:
        listed = isinstance(value, list) and all(isinstance(task, str) for task in value)
        require_check(
            listed and len(value) == states, f"{key} of {place} must be a list of {states} str, got {value!r}"
        )
        return ()
    axes = _IMAGE_AXES if is_camera(key) else _AXES.get(key)
    if axes is None:
        raise CheckFailedError(f"{place} must hold nothing but a policy's keys and {ACTION}, got {key}.")
    form = f"float32 ({', '.join(axes)})"
    if not isinstance(value, Tensor):
        raise CheckFailedError(f"{key} of {place} must be {form}, got a {type(value).__name__}.")
    got = f"{value.dtype} of shape {tuple(value.shape)}".removeprefix("torch.")
    shaped = value.dim() == len(axes) and all(value.shape[1:]) and (not is_camera(key) or value.shape[1] == 3)
    require_check(value.dtype == torch.float32 and shaped, f"{key} of {place} must be {form}, got {got}")
    require_check(0 < len(value) == states, f"{key} of {place} must have one entry for each state, got {got}")
    require_check(bool(torch.isfinite(value).all()), f"{key} of {place} must be finite")
    if is_camera(key):
        low, high = float(value.min()), float(value.max())
        require_check(0 <= low <= high <= 1, f"{key} of {place} must lie in [0, 1], got [{low:.4g}, {high:.4g}]")
    return tuple(value.shape[1:])


def _check_repeats(source: CalibrationSource, batches: list[Batch]) -> None:
    """Batches come again from the first one on, whoever stopped early or wrote into one."""
    require_check(_same(_read(source), batches), "batches must be the same at every iteration")
    for value in next(iter(source)).values():
        if isinstance(value, Tensor):
            value.fill_(-1)
        else:
            value.clear()
    require_check(
        _same(_read(source), batches), "batches must stay the same when a reader stops early or writes into one"
    )


def _check_draws(open_source: OpenSource, split: str, limit: int) -> None:
    """Other states have another hash, and the seed decides which are drawn where there are more than the limit."""
    opened: list[tuple[str, CalibrationSource]] = [
        (f"limit {states} and seed {seed}", open_source(split, limit=states, seed=seed))
        for states, seed in ((limit, SEEDS[0]), *((limit // 2, seed) for seed in SEEDS))
    ]
    drawn = [(place, source.hash, _read(source)) for place, source in opened]
    for place, _, batches in drawn[1:]:
        most, states = limit // 2, _count(batches)
        require_check(states <= most, f"a source with {place} must hold at most {most} states, got {states}")
    for index, (place, digest, batches) in enumerate(drawn):
        for other, its_digest, its_batches in drawn[:index]:
            told = digest != its_digest or _same(batches, its_batches)
            require_check(told, f"hash must differ between {other} and {place}, whose batches differ")
    whole, *parts = drawn
    if _count(whole[2]) > limit // 2:
        varied = any(not _same(part[2], parts[0][2]) for part in parts)
        require_check(varied, f"seeds {SEEDS} must draw different states where there are more than the limit")


def _check_unknown_split(open_source: OpenSource) -> None:
    try:
        open_source(UNKNOWN_SPLIT, limit=1, seed=SEEDS[0])
    except UnknownNameError:
        return
    raise CheckFailedError(f"split {UNKNOWN_SPLIT!r} must be refused with an UnknownNameError when it is opened.")


def _read(source: CalibrationSource) -> list[Batch]:
    """Copies of all batches: a source that hands out what it keeps must not change them."""
    return [copy.deepcopy(batch) for batch in source]


def _count(batches: list[Batch]) -> int:
    return sum(len(batch[ACTION]) for batch in batches)


def _same(batches: list[Batch], others: list[Batch]) -> bool:
    """Whether batches are equal, cut at the same places."""
    return len(batches) == len(others) and all(
        batch.keys() == other.keys()
        and all(torch.equal(v, other[k]) if isinstance(v, Tensor) else v == other[k] for k, v in batch.items())
        for batch, other in zip(batches, others, strict=True)
    )
