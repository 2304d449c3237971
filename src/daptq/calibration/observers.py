"""Watches the representation at the perception-to-action interfaces while a policy runs, and changes nothing.

A forward pre-hook on each interface's observed module hands every representation that passes to a sink.
`InterfaceStatistics` is a pair of sinks: one streams into mean and covariance, the other is for what was held out. Both
keep the representations, in order, so that the same states of two policies can be paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.layers.watching import watch
from daptq.numerics.moments import Moments
from daptq.policies.contract import Interface, Policy

__all__ = ["InterfaceStatistics", "Sink", "observe_interfaces"]

Sink = Callable[[str, Float[Tensor, "n d"]], None]


@contextmanager
def observe_interfaces(policy: Policy, interfaces: Iterable[Interface], sink: Sink) -> Iterator[None]:
    """Within the block, every forward of the policy hands its representations to `sink`.

    Args:
        policy: The policy to watch; its outputs are not changed, and the hooks are gone after the block.
        interfaces: What to watch, for example ``policy.interfaces()``.
        sink: Called as sink(observed, representation) once per forward of the observed module: the module path
            `Interface.observed`, and float (n, d), detached, with all leading dimensions flattened into n.
    """

    def pass_on(observed: str, representation: Tensor) -> None:
        sink(observed, representation.detach().reshape(-1, representation.shape[-1]))

    with watch(policy, [interface.observed for interface in interfaces], pass_on):
        yield


class InterfaceStatistics:
    """What calibration sees at the interfaces of one policy; interfaces are named by their observed module.

    Attributes:
        moments: Streaming mean and covariance of the states that maps are fitted to.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self._fitted: dict[str, list[Tensor]] = {}
        self._held_out: dict[str, list[Tensor]] = {}

    def fit(self, observed: str, representation: Float[Tensor, "n d"]) -> None:
        """Sink for states that maps are fitted to."""
        if observed not in self.moments:
            self.moments[observed] = Moments(representation.shape[1])
        self.moments[observed].update(representation)
        self._fitted.setdefault(observed, []).append(representation.to("cpu", torch.float32, copy=True))

    def hold_out(self, observed: str, representation: Float[Tensor, "n d"]) -> None:
        """Sink for states that maps are judged by."""
        self._held_out.setdefault(observed, []).append(representation.to("cpu", torch.float32, copy=True))

    def fitted(self) -> dict[str, Float[Tensor, "n d"]]:
        """Float32 (n, d) representations of the states that maps are fitted to, in the order they were seen."""
        return {observed: torch.cat(parts) for observed, parts in self._fitted.items()}

    def held_out(self) -> dict[str, Float[Tensor, "n d"]]:
        """Float32 (n, d) representations of the held-out states, in the order they were seen."""
        return {observed: torch.cat(parts) for observed, parts in self._held_out.items()}
