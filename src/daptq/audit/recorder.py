"""Watches layers while a policy runs: which operations torch dispatched during each call, on what, with what result.

Hooks on the layers tell which layer is running, torch's dispatcher tells what it runs. An operation that fuses several
layers (`kernels/transformer`) is taken apart: it runs the same code, and for each layer in it the operation
``daptq::layer`` is what a call of the module is elsewhere. An operation that reads a layer's memory while that layer is
not running is recorded as well: the layer's forward was bypassed. What the operations should have been, this module
does not know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.audit.products import Product, product, storage_of, tensors_in
from daptq.kernels.transformer.op import COMPOSITE, LAYER
from daptq.layers.watching import skippable

__all__ = ["Calls", "Watched", "watched"]

# Called before and after a layer's forward with the layer's path, its input and, afterwards, its output.
Before = Callable[[str, Tensor], Any]
After = Callable[[str, Any, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class Watched:
    """One layer to watch.

    Attributes:
        module: The layer.
        storages: Bytes of each storage that belongs to it.
        transforms: Storages of matrices that transform its input.
        opaque_bytes: Bytes that it keeps where torch does not show them.
    """

    module: nn.Module
    storages: Mapping[int, int]
    transforms: frozenset[int]
    opaque_bytes: int


@dataclass(kw_only=True)
class Calls:
    """What was seen of one layer.

    Attributes:
        calls: How often the layer was called.
        products: Its matrix products, and how often each was executed.
        bytes_read: Bytes of the layer's memory, and of temporary copies of its weight, that all calls together read.
        elsewhere: Operations that read the layer's memory while it was not running, and how often.
    """

    calls: int = 0
    products: Counter[Product] = field(default_factory=Counter)
    bytes_read: int = 0
    elsewhere: Counter[str] = field(default_factory=Counter)


@contextmanager
def watched(layers: Mapping[str, Watched], *, before: Before, after: After) -> Iterator[dict[str, Calls]]:
    """Watches layers for as long as the context lasts.

    Args:
        layers: The layers by path.
        before: Called with path and input when a layer is called; what it does is not recorded.
        after: Called with path, what `before` returned, and the layer's output.

    Yields:
        What was seen of each layer, by path.
    """
    recorder = _Recorder(layers, before, after)
    handles = []
    for path, layer in layers.items():
        entered, left = _hooks(recorder, path)
        handles.append(layer.module.register_forward_pre_hook(entered, with_kwargs=True))
        handles.append(layer.module.register_forward_hook(left))
    try:
        with skippable(handles), recorder:
            yield recorder.calls
    finally:
        for handle in handles:
            handle.remove()


def _hooks(recorder: _Recorder, path: str) -> tuple[Callable[..., None], ...]:
    """The functions that a layer calls when it begins and when it ends."""

    def entered(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        recorder.enter(path, next(iter((*args, *kwargs.values()))))

    def left(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
        recorder.leave(path, output)

    return entered, left


class _Recorder(TorchDispatchMode):
    """Sees every operation that torch dispatches."""

    def __init__(self, layers: Mapping[str, Watched], before: Before, after: After) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers, self._before, self._after = layers, before, after
        self.calls = {path: Calls() for path in layers}
        self._owners: dict[int, list[str]] = {}
        for path, layer in layers.items():
            for storage in layer.storages:
                self._owners.setdefault(storage, []).append(path)
        self._running: list[tuple[str, Any]] = []
        self._read: dict[int, int] = {}
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Records nothing inside."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def enter(self, path: str, x: Tensor) -> None:
        """A layer begins with input `x`."""
        with self.paused():
            noted = self._before(path, x)
        self._running.append((path, noted))
        self._read = {}
        self.calls[path].calls += 1

    def leave(self, path: str, output: Tensor) -> None:
        """A layer ends."""
        running, noted = self._running.pop()
        assert running == path, (running, path)
        self.calls[path].bytes_read += sum(self._read.values())
        with self.paused():
            self._after(path, noted, output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Records an operation and runs it."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if func.name() in COMPOSITE:
            return self._taken_apart(func, args, kwargs)
        path = self._running[-1][0] if self._running else None
        read = {storage_of(tensor): tensor for tensor in tensors_in((*args, *kwargs.values()))}
        for storage in read:
            for owner in self._owners.get(storage, ()):
                if path not in self._owners[storage]:
                    self.calls[owner].elsewhere[str(func)] += 1
        if path is not None:
            self._record(path, func, args, kwargs, read)
        return func(*args, **kwargs)

    def _taken_apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Runs an operation of several so that each of them is seen; one layer of a fused stack is a layer's call."""
        owners = self._owners.get(storage_of(args[1]), ()) if func.name() == LAYER else ()
        path = next(iter(owners), None)
        if path is not None:
            self.enter(path, args[0])
        with self:
            result = func.decompose(*args, **kwargs)
        if path is not None:
            self.leave(path, result)
        return result

    def _record(self, path: str, func: Any, args: Any, kwargs: Any, read: Mapping[int, Tensor]) -> None:
        """Notes an operation of the layer that is running."""
        layer = self.layers[path]
        self._read |= {storage: layer.storages[storage] for storage in read if storage in layer.storages}
        found = product(func, args, kwargs, layer.transforms)
        if found is None:
            return
        self.calls[path].products[found] += 1
        self._read |= found.operands
        if found.opaque:
            self._read[0] = layer.opaque_bytes
