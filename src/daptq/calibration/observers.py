"""Watches the representation at the perception-to-action interfaces while a policy runs, and changes nothing.

Every representation that passes an interface's tap is handed to a sink, without padding, and of a state with many rows
a random choice, so that what is kept does not grow with their number. The choice depends on the batch's number alone:
two policies that see the same batch are read at the same rows. `InterfaceStatistics` is a pair of sinks: one streams
into mean and covariance, the other is for what was held out. Both keep the representations, in order, so that the same
rows of two policies can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from daptq.calibration.contract import batch_size
from daptq.interfaces.contract import Interface, Tap
from daptq.numerics.moments import Moments
from daptq.policies.contract import Batch, Policy
from daptq.policies.taps import check_mask, watch_taps

__all__ = [
    "ROWS_PER_STATE",
    "InterfaceStatistics",
    "Sink",
    "chosen_rows",
    "observe_interfaces",
    "observe_taps",
]

Sink = Callable[[str, Float[Tensor, "n d"]], None]

ROWS_PER_STATE = 8


@contextmanager
def observe_interfaces(
    policy: Policy, interfaces: Iterable[Interface], batch: Batch, sink: Sink, *, seed: int = 0
) -> Iterator[None]:
    """Within the block, the forwards of the policy on one batch hand their representations to `sink`.

    Args:
        policy: The policy to watch; its outputs are not changed, and nothing is watched after the block.
        interfaces: What to watch, for example ``policy.interfaces()``.
        batch: What the policy reads.
        sink: Called as sink(name, representation) for every tensor that passes the tap of interface `name`: float
            (n, d), detached, at most `ROWS_PER_STATE` rows of each state.
        seed: Number of the batch; it decides which rows are handed on.
    """
    named = tuple(interfaces)
    taps = {interface.name: interface.tap for interface in named}
    masks = {interface.name: policy.interface_mask(interface.name, batch) for interface in named}
    with observe_taps(policy, taps, masks, batch_size(batch), sink, seed=seed):
        yield


@contextmanager
def observe_taps(
    policy: Policy,
    taps: Mapping[str, Tap],
    masks: Mapping[str, Bool[Tensor, "states rows"] | None],
    states: int,
    sink: Sink,
    *,
    seed: int = 0,
) -> Iterator[None]:
    """As `observe_interfaces`, for any taps.

    Args:
        policy: The policy to watch.
        taps: What to watch, by a name for the sink.
        masks: Which rows count at each tap, None for all.
        states: Number of states in the batch.
        sink: See `observe_interfaces`.
        seed: See `observe_interfaces`.
    """

    def pass_on(name: str, tensor: Tensor) -> None:
        rows = taps[name].rows(tensor.detach(), states)
        if rows is not None:
            sink(name, chosen_rows(rows, masks[name], limit=ROWS_PER_STATE, seed=seed))

    with watch_taps(policy, taps, pass_on):
        yield


def chosen_rows(
    rows: Float[Tensor, "states rows d"], mask: Bool[Tensor, "states rows"] | None, *, limit: int, seed: int
) -> Float[Tensor, "n d"]:
    """Rows that are no padding, at most so many of each state, drawn at random and kept in their order.

    Args:
        rows: The representation of each state.
        mask: Which rows count; None where all of them do.
        limit: Largest number of rows of a state.
        seed: Decides which rows are drawn, with the mask and the number of rows.

    Raises:
        InvalidInputError: The mask does not belong to the rows.
    """
    if mask is None and rows.shape[1] <= limit:
        return rows.flatten(0, 1)
    draws = torch.rand(rows.shape[:2], generator=torch.Generator().manual_seed(seed))
    if mask is not None:
        check_mask(rows, mask)
        draws = draws.masked_fill(~mask.cpu(), 2.0)
    drawn = draws.argsort(dim=1)[:, :limit].sort(dim=1).values
    kept = draws.gather(1, drawn) < 1.0
    which, row = torch.arange(len(rows)).unsqueeze(1).expand_as(drawn)[kept], drawn[kept]
    return rows[which.to(rows.device), row.to(rows.device)]


class InterfaceStatistics:
    """What calibration sees at the interfaces of one policy, by the interface's name.

    Attributes:
        moments: Streaming mean and covariance of the rows that maps are fitted to.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self._fitted: dict[str, list[Tensor]] = {}
        self._held_out: dict[str, list[Tensor]] = {}
        self._held_inputs: dict[str, list[Tensor]] = {}

    def fit(self, name: str, representation: Float[Tensor, "n d"]) -> None:
        """Sink for states that maps are fitted to."""
        if name not in self.moments:
            self.moments[name] = Moments(representation.shape[1])
        self.moments[name].update(representation)
        _keep(self._fitted, name, representation)

    def hold_out(self, name: str, representation: Float[Tensor, "n d"]) -> None:
        """Sink for states that maps are judged by."""
        _keep(self._held_out, name, representation)

    def hold_out_input(self, layer: str, x: Float[Tensor, "n in"]) -> None:
        """Sink for the inputs of layers in states that maps are judged by."""
        _keep(self._held_inputs, layer, x)

    def fitted(self, name: str) -> Float[Tensor, "n d"]:
        """Float32 (n, d) representations of the states that maps are fitted to, in the order they were seen."""
        return torch.cat(self._fitted[name])

    def held_out(self, name: str) -> Float[Tensor, "n d"]:
        """Float32 (n, d) representations of the held-out states, in the order they were seen."""
        return torch.cat(self._held_out[name])

    def held_inputs(self, layer: str) -> Float[Tensor, "n in"]:
        """Float32 (n, in) inputs of a layer in the held-out states, in the order they were seen."""
        return torch.cat(self._held_inputs[layer])


def _keep(kept: dict[str, list[Tensor]], name: str, values: Tensor) -> None:
    kept.setdefault(name, []).append(values.to("cpu", torch.float32, copy=True))
