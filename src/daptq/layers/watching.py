"""Watching modules while a policy runs, and switching off the fusing of the stacks that hold them.

A fused stack (`daptq.layers.transformer_stack`) runs its layers without calling their modules, so hooks on them would
never be called. Code that needs the calls must say so: `unfused` lets every stack of a policy call its modules, `watch`
and `watch_outputs`, `replace_inputs` and `replace_outputs` do it for the stacks that hold their modules, and
`watch_beginnings` hears of a fused stack
without switching it off. A hook from elsewhere on a module of a fused stack is refused, never skipped.

A declaration concerns modules, as a hook does: it holds in all threads, may be nested, and ends with its block whether
that ends well or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from daptq.errors import InvalidInputError

__all__ = [
    "announce",
    "must_be_called",
    "refuse_hooks",
    "replace_inputs",
    "replace_outputs",
    "skippable",
    "unfused",
    "watch",
    "watch_beginnings",
    "watch_outputs",
]

_lock = threading.Lock()
# How many declarations say that a module must be called.
_called: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
# Functions to call when a module begins, also where it is fused.
_listeners: WeakKeyDictionary[nn.Module, tuple[Callable[[], None], ...]] = WeakKeyDictionary()
# Ids of the hooks that a fused stack may skip.
_skippable: set[int] = set()


@contextmanager
def unfused(policy: nn.Module) -> Iterator[None]:
    """Within the block every stack in the policy calls its modules one by one.

    Their results then differ from those of the fused stack in their last bits.
    """
    with _must_be_called(tuple(policy.modules())):
        yield


@contextmanager
def watch(policy: nn.Module, names: Iterable[str], hook: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block `hook` hears of every call of the named modules before it begins.

    Stacks that hold one of the modules are not fused meanwhile. Outputs and gradients are not changed by watching.

    Args:
        policy: The policy, or any module.
        names: Paths of modules in it.
        hook: Called as hook(name, input) with the module's first argument.
    """
    modules = {name: policy.get_submodule(name) for name in names}
    with _must_be_called(tuple(modules.values())), ExitStack() as hooks:
        for name, module in modules.items():

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                hook(name, _first(args, kwargs))

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@contextmanager
def watch_outputs(
    policy: nn.Module, names: Iterable[str], hook: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """As `watch`, but `hook` is called as hook(name, input, output) when a call has ended."""
    modules = {name: policy.get_submodule(name) for name in names}
    with _must_be_called(tuple(modules.values())), ExitStack() as hooks:
        for name, module in modules.items():

            def after(_: nn.Module, args: Any, kwargs: Any, output: Tensor, name: str = name) -> None:
                hook(name, _first(args, kwargs), output)

            hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield


@contextmanager
def replace_inputs(
    policy: nn.Module, names: Iterable[str], replacement: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """Within the block the named modules read replacement(name, input) in the place of their first argument.

    Stacks that hold one of the modules are not fused meanwhile.

    Args:
        policy: The policy, or any module.
        names: Paths of modules in it.
        replacement: Asked at every call of one of them.
    """
    modules = {name: policy.get_submodule(name) for name in names}
    with _must_be_called(tuple(modules.values())), ExitStack() as hooks:
        for name, module in modules.items():

            def before(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> tuple[Any, Any]:
                first = replacement(name, _first(args, kwargs))
                return ((first, *args[1:]), kwargs) if args else (args, {**kwargs, next(iter(kwargs)): first})

            hooks.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


@contextmanager
def replace_outputs(
    policy: nn.Module, names: Iterable[str], replacement: Callable[[str, Tensor], Tensor]
) -> Iterator[None]:
    """As `replace_inputs`, but the named modules answer replacement(name, output)."""
    modules = {name: policy.get_submodule(name) for name in names}
    with _must_be_called(tuple(modules.values())), ExitStack() as hooks:
        for name, module in modules.items():

            def after(_: nn.Module, __: Any, output: Tensor, name: str = name) -> Tensor:
                return replacement(name, output)

            hooks.callback(module.register_forward_hook(after).remove)
        yield


@contextmanager
def watch_beginnings(policy: nn.Module, names: Iterable[str], hook: Callable[[str], None]) -> Iterator[None]:
    """Within the block `hook` is called as hook(name) whenever a named module begins.

    Stacks stay fused: the modules around the layers of a fused stack begin together, in their order, when the stack
    begins. Its layers themselves do not begin.
    """
    with ExitStack() as stack:
        handles: list[RemovableHandle] = []
        for name in names:
            module = policy.get_submodule(name)

            def begins(*_: Any, name: str = name) -> None:
                hook(name)

            handles.append(module.register_forward_pre_hook(begins))
            stack.callback(handles[-1].remove)
            stack.enter_context(_listening(module, begins))
        with skippable(handles):
            yield


@contextmanager
def skippable(handles: Sequence[RemovableHandle]) -> Iterator[None]:
    """Within the block a fused stack may skip these hooks, because their owner sees its layers by other means."""
    ids = {handle.id for handle in handles}
    with _lock:
        _skippable.update(ids)
    try:
        yield
    finally:
        with _lock:
            _skippable.difference_update(ids)


def must_be_called(modules: Iterable[nn.Module]) -> bool:
    """Whether somebody has declared that one of the modules must be called."""
    return bool(_called) and any(module in _called for module in modules)


def refuse_hooks(modules: Iterable[nn.Module]) -> None:
    """Checks that fusing the modules skips no hook that its owner did not declare to be skippable.

    Raises:
        InvalidInputError: There is such a hook.
    """
    for module in modules:
        if not (module._forward_pre_hooks or module._forward_hooks):
            continue
        if not _skippable.issuperset((*module._forward_pre_hooks, *module._forward_hooks)):
            raise InvalidInputError(
                f"modules of a fused stack must have no hooks, got one on a {type(module).__name__}. Watch it with "
                "daptq.layers.watching.watch, or run the policy within daptq.layers.watching.unfused(policy)."
            )


def announce(modules: Iterable[nn.Module]) -> None:
    """Tells those who wait for one of the modules that it begins."""
    if _listeners:
        for module in modules:
            for listener in _listeners.get(module, ()):
                listener()


@contextmanager
def _must_be_called(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within the block a stack that holds one of the modules is not fused."""
    with _lock:
        for module in modules:
            _called[module] = _called.get(module, 0) + 1
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _called[module] -= 1
                if not _called[module]:
                    del _called[module]


@contextmanager
def _listening(module: nn.Module, listener: Callable[[], None]) -> Iterator[None]:
    """Within the block `listener` is called when the module begins as part of a fused stack."""
    with _lock:
        _listeners[module] = (*_listeners.get(module, ()), listener)
    try:
        yield
    finally:
        with _lock:
            left = tuple(other for other in _listeners[module] if other is not listener)
            if left:
                _listeners[module] = left
            else:
                del _listeners[module]


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first argument of a call."""
    return next(iter((*args, *kwargs.values())))
