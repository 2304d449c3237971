"""The part of the suite of a policy family that is about its interfaces: every fold belongs to its tap.

A fold promises that a policy with the folded weights answers as the old one would with a map of the representation in
between. The suite puts a map there, by hooks, and compares. Where the representation can be seen, it is replaced:

- at the tap. Of a tap at an input the same vectors are replaced where other linear layers read them, too, so that a
  fold that leaves out one of these is found;
- where the tap is passed before the action head runs and the perception goes on with the same tensor (keys that the
  language model itself attends to as well), the map is one of what the action head reads alone: then one tensor of the
  condition is replaced, by the one that follows from the replaced representation.

It computes in the policy's own precision, so it compares what a map moves with what is left of that after folding. It
cannot see that something else than a linear layer reads a tensor that a tap at an input stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import CheckFailedError, InvalidInputError, require_check
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.conformance import example_map, with_folded
from daptq.interfaces.contract import Fold, Interface, Tap
from daptq.layers.watching import replace_inputs, replace_outputs, watch
from daptq.observations import TASK
from daptq.policies.contract import Batch, Condition, Policy
from daptq.policies.taps import check_mask, watch_taps

__all__ = ["check_folds"]

# How far the maps are from the identity, as a part of the way to an example that is far from it.
STRENGTH = 0.3
# What a map must move, relative to the answer.
MOVED = 1e-3
# What may be left: a part of what the map moves, and rounding of float32, relative to the answer.
LEFT, ROUNDING = 1e-3, 1e-5

Rows = Float[Tensor, "states rows d"]
Calls = Mapping[str, frozenset[int]]
"""Which calls of modules, counted from 0 in one prediction, read a representation, by path."""


def check_folds(policy: Policy, batch: Batch, seed: int) -> None:
    """Checks that every fold of every interface can take a map of what passes the interface's tap.

    Args:
        policy: A float policy on the CPU, whose interfaces name modules, layers and parameters of it.
        batch: Its example batch.
        seed: Seed of the diffusion noise and of noise levels.

    Raises:
        CheckFailedError: A tap is never passed, a mask does not belong to it, a fold belongs elsewhere, or the map of a
            representation moves nothing.
    """
    if not policy.interfaces():
        return
    with torch.no_grad():
        prediction = _Prediction(policy, batch, seed)
        seen = _representations(prediction)
        readers = _other_readers(prediction, seen)
        for interface in policy.interfaces():
            _check_interface(prediction, interface, seen[interface.name], readers[interface.name])


class _Prediction:
    """A chunk and the prediction of the training loss, always of the same observations and noise.

    Attributes:
        policy: The policy as it is.
        batch: The observations.
        states: How many there are.
        plain: What the policy answers: a normalised chunk, and the prediction of the loss.
    """

    def __init__(self, policy: Policy, batch: Batch, seed: int) -> None:
        self.policy, self.batch, self.states, self._seed = policy, batch, len(batch[TASK]), seed
        self.plain = self.answers(policy)

    def condition(self) -> Condition:
        self.policy.denoising_step.index = 0
        return self.policy.condition(self.batch)

    def chunk(self, condition: Condition) -> Tensor:
        return self._chunk(self.policy, condition)

    def answers(self, policy: Policy) -> list[Tensor]:
        policy.denoising_step.index = 0
        chunk = self._chunk(policy, policy.condition(self.batch))
        return [chunk, policy.predict_target(self.batch, self._generator()).predicted]

    def _chunk(self, policy: Policy, condition: Condition) -> Tensor:
        policy.denoising_step.index = 0
        return policy.denoise(condition, policy.noise(self.states, self._generator()))

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed)


def _representations(prediction: _Prediction) -> dict[str, list[Rows]]:
    """What passes the taps in the calls of one prediction, by the interface's name."""
    policy = prediction.policy
    taps = {interface.name: interface.tap for interface in policy.interfaces()}
    seen: dict[str, list[Rows]] = {name: [] for name in taps}

    def keep(name: str, tensor: Tensor) -> None:
        rows = taps[name].rows(tensor, prediction.states)
        if rows is not None:
            seen[name].append(rows.clone())

    try:
        with watch_taps(policy, taps, keep):
            prediction.answers(policy)
        for name, calls in seen.items():
            require_check(
                bool(calls), f"something must pass the tap of interface {name!r} in a prediction, got nothing"
            )
            mask = policy.interface_mask(name, prediction.batch)
            if mask is not None:
                check_mask(calls[0], mask)
    except InvalidInputError as error:
        raise CheckFailedError(f"what passes the taps must be what the interfaces say: {error}") from error
    return seen


def _other_readers(prediction: _Prediction, seen: Mapping[str, Sequence[Rows]]) -> dict[str, Calls]:
    """Calls of linear layers that read what passes a tap at an input, other than inside the tap's own module."""
    policy = prediction.policy
    taps = {one.name: one.tap for one in policy.interfaces() if one.tap.side == "input"}
    found: dict[str, dict[str, set[int]]] = {name: {} for name in seen}
    counts: dict[str, int] = {}

    def look(path: str, tensor: Tensor) -> None:
        count = counts[path] = counts.get(path, -1) + 1
        rows = Tap(path).rows(tensor, prediction.states)
        for name, tap in taps.items():
            inside = f"{path}.".startswith(f"{tap.module}.")
            if not inside and rows is not None and any(_same(rows, own) for own in seen[name]):
                found[name].setdefault(path, set()).add(count)

    with watch(policy, policy.linear_layers(), look):
        prediction.answers(policy)
    return {name: {path: frozenset(calls) for path, calls in layers.items()} for name, layers in found.items()}


def _same(rows: Rows, own: Rows) -> bool:
    """Whether two tensors are the same representation; zeros tell nothing."""
    return torch.equal(rows, own) and bool(own.any())


def _check_interface(prediction: _Prediction, interface: Interface, seen: Sequence[Rows], readers: Calls) -> None:
    plain = prediction.plain
    for fold in interface.folds:
        what = f"fold {fold.method!r} of interface {interface.name!r}"
        try:
            affine = _map_for(fold, seen[0])
            answers = prediction.answers(with_folded(prediction.policy, fold, affine))
        except (InvalidInputError, CheckFailedError, RuntimeError) as error:  # torch's, where sizes do not fit
            raise CheckFailedError(f"{what} must take a map of what passes the tap: {error}") from error
        with _replaced(prediction, interface.tap, readers, affine):
            mapped = prediction.answers(prediction.policy)
        found = [_Comparison(plain, mapped, answers)]
        if not found[0].holds:
            chunks = [prediction.chunk(one) for one in _of_the_head(prediction, interface.tap, affine)]
            found += [_Comparison(plain[:1], [chunk], answers[:1]) for chunk in chunks]
        least = min(found, key=lambda one: (not one.holds, one.left))
        moved = max(one.moved for one in found)
        require_check(
            moved > MOVED, f"a map of interface {interface.name!r} must move the prediction, moved {moved:.1e}"
        )
        require_check(
            least.holds,
            f"{what} must answer as a map of what passes the tap does, differs by {least.left:.1e} where that moves "
            f"{least.moved:.1e}",
        )


def _map_for(fold: Fold, rows: Rows) -> AffineMap:
    """A well-conditioned map of the fold's class, with a shift on the scale of the representation.

    Raises:
        InvalidInputError: The channels cannot be shared by the fold's heads.
    """
    channels = rows.shape[-1]
    far, identity = example_map(fold.map_class, channels, fold.map_heads), AffineMap.identity(channels)
    scale = float(rows.double().square().mean().sqrt())
    return AffineMap(
        matrix=identity.matrix + STRENGTH * (far.matrix - identity.matrix), shift=STRENGTH * scale * far.shift
    )


@contextmanager
def _replaced(prediction: _Prediction, tap: Tap, readers: Calls, affine: AffineMap) -> Iterator[None]:
    """Within the block the representation is mapped at the tap, and where other layers read it from elsewhere."""
    policy, states = prediction.policy, prediction.states
    counts: dict[str, int] = {}
    mapped: list[Rows] = []

    def changed(rows: Rows) -> Rows:
        mapped.append(affine(rows).to(rows))
        return mapped[-1]

    def unless_mapped(rows: Rows) -> Rows:
        return rows if any(_same(rows, own) for own in mapped) else affine(rows)

    def at_the_tap(_: str, tensor: Tensor) -> Tensor:
        return tap.changed(tensor, states, changed)

    def at_a_reader(path: str, tensor: Tensor) -> Tensor:
        count = counts[path] = counts.get(path, -1) + 1
        return Tap(path).changed(tensor, states, unless_mapped) if count in readers[path] else tensor

    at_side = replace_inputs if tap.side == "input" else replace_outputs
    with at_side(policy, [tap.module], at_the_tap), replace_inputs(policy, readers, at_a_reader):
        yield


def _of_the_head(prediction: _Prediction, tap: Tap, affine: AffineMap) -> Iterator[Condition]:
    """Conditions with one tensor that follows from the mapped representation, each."""
    plain = prediction.condition()
    with _replaced(prediction, tap, {}, affine):
        mapped = prediction.condition()
    for place, (one, other) in enumerate(zip(plain, mapped, strict=True)):
        if not torch.equal(one, other):
            yield (*plain[:place], other, *plain[place + 1 :])


class _Comparison:
    """What a map does to answers against what folded weights do; each answer is measured by its own size.

    Attributes:
        moved: How far the map moves the answer that it moves most.
        left: How far the answer of the folded weights is from there, of the answer where it is farthest.
        holds: Whether the map moves an answer, and the folded weights move every answer as it does.
    """

    def __init__(self, plain: Sequence[Tensor], mapped: Sequence[Tensor], folded: Sequence[Tensor]) -> None:
        sizes = [float(one.norm().clamp(min=1e-12)) for one in plain]
        moved = [float((other - one).norm()) / size for one, other, size in zip(plain, mapped, sizes, strict=True)]
        left = [float((answer - one).norm()) / size for answer, one, size in zip(folded, mapped, sizes, strict=True)]
        self.moved, self.left = max(moved), max(left)
        alike = all(off <= LEFT * by + ROUNDING for by, off in zip(moved, left, strict=True))
        self.holds = alike and self.moved > MOVED
