"""The denoising loop of a policy on a CUDA device as one CUDA graph, replayed for every chunk.

At one observation a step of the loop launches hundreds of small kernels, and launching them takes longer than running
them; a graph is launched at once. It is recorded the first time that the loop sees tensors of a shape and replays what
was recorded then: Python does not run again, so neither do hooks, and a layer that is replaced meanwhile is not seen.
Do not capture while layers are watched or changed. Replaying was not run on a GPU yet, and no time of it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from daptq.policies.contract import Condition, Loop, Policy

__all__ = ["CapturedFunction", "CapturedLoop", "CudaRecording", "Recording", "captured_denoising", "captured_loop"]

# What a call does for the first time, such as choosing a kernel or a library's workspace, cannot be recorded.
WARM_UPS = 3


class Recording(Protocol):
    """One recorded computation on tensors that stay where they are."""

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """Runs `function` in advance, then records it; returns the tensor that holds its result after a replay."""

    def replay(self) -> None:
        """Computes again from what the inputs hold now."""


class CudaRecording:
    """A `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], Tensor]) -> Tensor:
        """See `Recording.record`."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                function()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            return function()

    def replay(self) -> None:
        """See `Recording.replay`."""
        self._graph.replay()


class CapturedFunction:
    """A function of tensors that is recorded once for each combination of shapes, and replayed from then on.

    Args:
        function: The function; it depends on its arguments and on nothing else that changes.
        make: Makes an empty recording.
    """

    def __init__(self, function: Callable[..., Tensor], make: Callable[[], Recording] = CudaRecording) -> None:
        self._function, self._make = function, make
        self._recordings: dict[tuple[object, ...], tuple[Recording, tuple[Tensor, ...], Tensor]] = {}

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The function's result, a tensor of its own."""
        key = tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in inputs)
        if key not in self._recordings:
            held = tuple(tensor.clone() for tensor in inputs)
            recording = self._make()
            self._recordings[key] = (recording, held, recording.record(lambda: self._function(*held)))
        recording, held, result = self._recordings[key]
        for place, tensor in zip(held, inputs, strict=True):
            place.copy_(tensor)
        recording.replay()
        return result.clone()


class CapturedLoop:
    """A denoising loop that is recorded, see `CapturedFunction`: what `Policy.running` takes.

    Args:
        denoise: The loop, for example a policy's `denoise`; its layers must stay what they are from now on.
        make: Makes an empty recording.
    """

    def __init__(self, denoise: Loop, make: Callable[[], Recording] = CudaRecording) -> None:
        self._captured = CapturedFunction(lambda *inputs: denoise(inputs[:-1], inputs[-1]), make)

    def __call__(self, condition: Condition, noise: Tensor) -> Tensor:
        """The normalised action chunk."""
        return self._captured(*condition, noise)


def captured_loop(policy: Policy, make: Callable[[], Recording] | None = None) -> CapturedLoop | None:
    """The policy's denoising loop as a recording, or None where the policy is not on a CUDA device.

    Args:
        policy: The policy. Its layers must stay what they are from now on, and it must predict without gradient.
        make: Makes recordings, on any device; by default CUDA graphs, on a CUDA device only.
    """
    if make is None and policy.device.type != "cuda":
        return None
    return CapturedLoop(policy.denoise, make or CudaRecording)


@contextmanager
def captured_denoising(policy: Policy, make: Callable[[], Recording] | None = None) -> Iterator[bool]:
    """Within the block predictions replay `captured_loop`, where there is one; gives whether they do."""
    loop = captured_loop(policy, make)
    if loop is None:
        yield False
        return
    with policy.running(loop):
        yield True
