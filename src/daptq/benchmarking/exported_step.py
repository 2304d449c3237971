"""One control step of a policy as a graph of tensor operations, for the runtimes that the float path is chosen from.

The whole step is exported, denoising loop unrolled, with the images, the state and the diffusion noise as inputs; the
instruction is a constant of the graph, which favours the runtime. What a runtime does with the graph is its own.
The graph is traced on the CPU and then moved: tracing on another device would leave the constants behind.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from daptq.benchmarking.control_step import ControlStep
from daptq.errors import MissingDependencyError
from daptq.observations import TASK
from daptq.policies.captured import CapturedFunction
from daptq.policies.contract import Batch, Policy

__all__ = ["Exported", "ExportedStep", "Run", "inductor", "onnx_runtime", "openvino"]

Run = Callable[[], Float[Tensor, "chunk action"]]


class Exported(Protocol):
    """A graph with its inputs.

    Attributes:
        program: What torch exported; its result has one row for each sample.
    """

    program: torch.export.ExportedProgram

    def inputs(self) -> tuple[Tensor, ...]:
        """What the graph is run on."""


class ExportedStep:
    """A control step that was exported once.

    Args:
        policy: A policy in floating point; the graph runs on its device.
        step: The control step.

    Attributes:
        program: What torch exported.
    """

    def __init__(self, policy: Policy, step: ControlStep) -> None:
        self._policy, self._step = policy, step
        on_cpu = policy.device.type == "cpu"
        traced = policy if on_cpu else copy.deepcopy(policy).cpu()
        with torch.no_grad():
            program = torch.export.export(_Step(traced, step).eval(), self._inputs(traced), strict=False)
        self.program = program if on_cpu else move_to_device_pass(program, policy.device)

    def inputs(self) -> tuple[Tensor, ...]:
        """The diffusion noise and the observation, made anew as in every control step."""
        return self._inputs(self._policy)

    def _inputs(self, policy: Policy) -> tuple[Tensor, ...]:
        return (policy.noise(1, self._step.generator()), *_tensors(self._step.batch(policy)))


def inductor(exported: Exported) -> Run:
    """Compiles the graph with torch.compile's default backend; on a CUDA device all of it is one CUDA graph.

    There it also tries several kernels for every product. Torch would leave a graph that it cannot record to Python
    without an error, so it is not asked to record.
    """
    on_cuda = exported.inputs()[0].device.type == "cuda"
    compiled = torch.compile(exported.program.module(), mode="max-autotune-no-cudagraphs" if on_cuda else None)
    step: Callable[..., Tensor] = CapturedFunction(compiled) if on_cuda else compiled

    def run() -> Float[Tensor, "chunk action"]:
        with torch.inference_mode():
            return step(*exported.inputs())[0].float().cpu()

    return run


def openvino(exported: Exported) -> Run:
    """Compiles the graph with OpenVINO for the CPU, in float32.

    Raises:
        MissingDependencyError: OpenVINO is not installed.
    """
    runtime = required("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = runtime.compile_model(runtime.convert_model(exported.program), "CPU", settings)

    def run() -> Float[Tensor, "chunk action"]:
        # Returned without a copy, the result would be overwritten by the next call.
        result = model([tensor.numpy() for tensor in exported.inputs()])[0]
        return torch.from_numpy(result[0].copy())

    return run


def onnx_runtime(exported: Exported) -> Run:
    """Compiles the graph with ONNX Runtime for the CPU, in float32.

    Raises:
        MissingDependencyError: ONNX Runtime or the packages that export to it are not installed.
    """
    runtime = required("onnxruntime")
    for package in ("onnx", "onnxscript"):
        required(package)
    program = torch.onnx.export(exported.program, exported.inputs(), dynamo=True, verbose=False)
    assert program is not None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(
        program.model_proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [value.name for value in session.get_inputs()]

    def run() -> Float[Tensor, "chunk action"]:
        arrays = (tensor.numpy() for tensor in exported.inputs())
        return torch.from_numpy(session.run(None, dict(zip(names, arrays, strict=True)))[0][0])

    return run


def required(package: str) -> Any:
    """An optional package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"package {package} must be installed, got no such module. Install daptq[benchmark]."
        ) from error


class _Step(nn.Module):
    """A control step whose noise is an input."""

    def __init__(self, policy: Policy, step: ControlStep) -> None:
        super().__init__()
        batch = step.batch(policy)
        self.policy, self.task, self.keys = policy, batch[TASK], [key for key in batch if key != TASK]

    def forward(self, noise: Tensor, *observed: Tensor) -> Float[Tensor, "1 chunk action"]:
        batch = {TASK: self.task, **dict(zip(self.keys, observed, strict=True))}
        return self.policy.executed(self.policy.denoise(self.policy.condition(batch), noise), batch)


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    """The observation of a batch, in its order."""
    return tuple(value for key, value in batch.items() if key != TASK)
