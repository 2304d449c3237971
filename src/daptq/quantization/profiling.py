"""Checked calibration data, and passes of a policy over it.

A pass serves as many layers as fit into a fixed amount of memory, so the memory that a stage needs is bounded by the
larger of that amount and its largest layer, whatever the size of the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.calibration.contract import CalibrationSource, batch_size, checked, limited
from daptq.calibration.observers import InterfaceStatistics, observe_interfaces, observe_taps
from daptq.errors import CalibrationDataError
from daptq.interfaces.contract import Interface, Tap
from daptq.observations import ACTION, STATE
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator
from daptq.progress import Progress

__all__ = ["GROUP_BYTES", "Calibration", "evaluating", "groups", "observe"]


# One batch in four is not used for fitting maps, only for judging them.
HOLD_OUT_EVERY = 4

# Of the statistics of the layers that one pass serves.
GROUP_BYTES = 2**30


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Calibration data that has passed every check.

    Attributes:
        source: Where the batches come from.
        limit: Largest number of states.
        seed: Seed of the diffusion noise; batch i sees the same noise whichever policy reads it.
        batches: Number of batches.
        states: Number of states.
        chunks: float32 (n, chunk_size, action_dim), the demonstrated chunks, physical units.
        positions: float32 (n, state_dim), the proprioception before each chunk; None where a batch has none.
    """

    source: CalibrationSource
    limit: int
    seed: int
    batches: int
    states: int
    chunks: Float[Tensor, "n chunk action"]
    positions: Float[Tensor, "n state"] | None

    @property
    def actions(self) -> Float[Tensor, "n action"]:
        """Every action of every chunk, float32, physical units."""
        return self.chunks.flatten(0, 1)

    @classmethod
    def checked(
        cls, source: CalibrationSource, policy: Policy, *, limit: int, seed: int, progress: Progress
    ) -> Calibration:
        """Reads all batches once and checks each.

        Raises:
            CalibrationDataError: The source is empty, or a batch is not fit for the policy; the message names it.
        """
        chunks: list[Tensor] = []
        positions: list[Tensor] = []
        states = 0
        for batch in limited(checked(source, policy), limit):
            chunks.append(batch[ACTION].float())
            positions += [batch[STATE].float()] if STATE in batch else []
            states += batch_size(batch)
            progress(states, limit, "check")
        if not states:
            raise CalibrationDataError(
                f"calibration data must hold at least one state, got none from {source.description!r}. "
                "Choose other data."
            )
        return cls(
            source=source,
            limit=limit,
            seed=seed,
            batches=len(chunks),
            states=states,
            chunks=torch.cat(chunks),
            positions=torch.cat(positions) if len(positions) == len(chunks) else None,
        )

    def __iter__(self) -> Iterator[tuple[Batch, torch.Generator]]:
        """Every batch with the generator of its noise."""
        for index, batch in enumerate(limited(self.source, self.limit)):
            yield batch, noise_generator(self.seed, index)

    def fits(self, index: int) -> bool:
        """Whether maps are fitted to this batch."""
        return self.batches == 1 or not self._held(index)

    def judges(self, index: int) -> bool:
        """Whether maps are judged by this batch; a single batch has to do both."""
        return self.batches == 1 or self._held(index)

    def _held(self, index: int) -> bool:
        every = min(HOLD_OUT_EVERY, self.batches)
        return index % every == every - 1


@contextmanager
def evaluating(policy: nn.Module) -> Iterator[None]:
    """Within the block the policy is in evaluation mode."""
    before = policy.training
    policy.eval()
    try:
        yield
    finally:
        policy.train(before)


def observe(
    policy: Policy,
    interfaces: tuple[Interface, ...],
    calibration: Calibration,
    step: Callable[[Batch, torch.Generator], None],
    *,
    recorded: Mapping[str, str] = MappingProxyType({}),
    progress: Callable[[int, int], None],
) -> InterfaceStatistics:
    """Runs `step` over all batches and collects what passes the interfaces.

    Args:
        policy: The policy that runs.
        interfaces: What to watch.
        calibration: The batches.
        step: Runs the policy on a batch.
        recorded: Layers whose inputs are collected as well, where rows are held out, each with the name of the
            interface whose rows they belong to.
        progress: Called as progress(done, total) after every batch.
    """
    statistics = InterfaceStatistics()
    for index, (batch, generator) in enumerate(calibration):

        def sink(name: str, representation: Tensor, index: int = index) -> None:
            if calibration.fits(index):
                statistics.fit(name, representation)
            if calibration.judges(index):
                statistics.hold_out(name, representation)

        def input_sink(layer: str, x: Tensor, index: int = index) -> None:
            if calibration.judges(index):
                statistics.hold_out_input(layer, x)

        taps = {layer: Tap(layer) for layer in recorded}
        masks = {layer: policy.interface_mask(name, batch) for layer, name in recorded.items()}
        states = batch_size(batch)
        with (
            observe_interfaces(policy, interfaces, batch, sink, seed=index),
            observe_taps(policy, taps, masks, states, input_sink, seed=index),
        ):
            step(batch, generator)
        progress(index + 1, calibration.batches)
    return statistics


def groups(sizes: Mapping[str, int], limit: int) -> list[tuple[str, ...]]:
    """Splits layers into consecutive groups.

    Args:
        sizes: Bytes that each layer needs, by name in execution order.
        limit: Largest sum of a group [bytes]; a layer that needs more is a group by itself.
    """
    result: list[tuple[str, ...]] = []
    filled = 0
    for name, size in sizes.items():
        if not result or filled + size > limit:
            result.append(())
            filled = 0
        result[-1] += (name,)
        filled += size
    return result
