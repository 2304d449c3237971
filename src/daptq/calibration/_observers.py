"""Watches the representation at the perception-to-action interfaces while a policy runs, without changing what it computes.

A forward pre-hook on each interface's observed module hands every representation that passes to a sink. The module keeps
nothing itself: what is kept, and for how long, is the sink's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from daptq.policies._base import Policy

__all__ = ["Sink", "observe_interfaces"]

Sink = Callable[[str, Float[Tensor, "n d"]], None]


@contextmanager
def observe_interfaces(policy: Policy, sink: Sink) -> Iterator[None]:
    """Within the block, every forward of the policy hands its representations to `sink`.

    Args:
        policy: The policy to watch; its outputs are not changed, and the hooks are gone after the block.
        sink: Called as sink(observed, representation) once per forward of the observed module: the module path
            `Interface.observed`, and float (n, d), detached, with all leading dimensions flattened into n.
    """

    def hook_for(observed: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            representation: Tensor = inputs[0].detach()
            sink(observed, representation.reshape(-1, representation.shape[-1]))

        return hook

    with ExitStack() as hooks:
        for interface in policy.interfaces():
            module = policy.get_submodule(interface.observed)
            hooks.callback(module.register_forward_pre_hook(hook_for(interface.observed)).remove)
        yield
