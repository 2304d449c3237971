"""Ways to run one control step of a policy in floating point, the best of which a low-bit policy has to beat.

Each candidate is built from the same float policy. A candidate that is not installed, cannot run the policy, or says
something else than float32 in eager mode is left out with a reason. 4-bit weight-only layers of other libraries are
candidates, too, to compare with, and are never the float path.

On a CUDA device eager mode launches kernel by kernel. Eager candidates are there with their denoising loop as one CUDA
graph, too, as low-bit policies have it, and compiled ones are one graph altogether.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.benchmarking.control_step import ControlStep
from daptq.benchmarking.exported_step import ExportedStep, Run, inductor, onnx_runtime, openvino, required
from daptq.errors import InvalidInputError, MissingDependencyError, UnknownNameError
from daptq.packing.checkpoint import replace_module
from daptq.policies.captured import captured_loop
from daptq.policies.contract import Batch, Policy

__all__ = ["EAGER", "FLOAT_PATHS", "Candidate", "FloatPath", "Skipped", "float_paths"]

EAGER = "torch-float32"
Kind = Literal["float", "4-bit"]

# A float32 runtime may add in another order, and ten denoising steps carry that on; 1e-3 is a millimetre.
_TOLERANCE = 1e-3
# Sizes that torchao's kernel takes: inputs that share a scale, outputs of a tile; then those of bitsandbytes.
TORCHAO_INPUTS, TORCHAO_OUTPUTS = 32, 16
BITSANDBYTES_INPUTS, BITSANDBYTES_OUTPUTS = 64, 32


@dataclass(frozen=True, kw_only=True)
class FloatPath:
    """One way to run the control step.

    Attributes:
        name: Name of the candidate.
        kind: ``float``, or ``4-bit`` for weight-only quantization by another library.
        run: Runs the control step and returns the action chunk, float32 on the CPU.
        captured: Whether its denoising loop, or all of it, is one CUDA graph.
        max_abs_difference: Largest difference of its chunk from that of float32 in eager mode, in physical units.
    """

    name: str
    kind: Kind
    run: Run
    captured: bool
    max_abs_difference: float


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A candidate that was left out.

    Attributes:
        name: Name of the candidate.
        reason: Why.
    """

    name: str
    reason: str


def float_paths(
    policy: Policy, step: ControlStep, names: Sequence[str], progress: Callable[[str], None]
) -> tuple[list[FloatPath], list[Skipped]]:
    """Builds candidates and compares each with float32 in eager mode.

    Args:
        policy: A float policy, on the device that candidates run on.
        step: The control step.
        names: Candidates to build, among `FLOAT_PATHS`.
        progress: Called with a candidate's name after it was built or left out.

    Returns:
        Those that run, and those that were left out.

    Raises:
        UnknownNameError: There is no such candidate.
    """
    for name in names:
        if name not in FLOAT_PATHS:
            raise UnknownNameError("float path", name, FLOAT_PATHS)
    expected = step.run(policy)
    sources = _Sources(policy, step)
    built, skipped = [], []
    for name in names:
        attempt = _attempt(name, sources, expected)
        if isinstance(attempt, FloatPath):
            built.append(attempt)
        else:
            skipped.append(Skipped(name=name, reason=attempt))
        progress(name)
    return built, skipped


def _attempt(name: str, sources: _Sources, expected: Float[Tensor, "chunk action"]) -> FloatPath | str:
    """The candidate, or why it is left out."""
    candidate, device = FLOAT_PATHS[name], sources.policy.device.type
    if device not in candidate.devices:
        return f"runs on {' and '.join(candidate.devices)} only, got {device}"
    try:
        run = candidate.build(sources)
        difference = float((run() - expected).abs().max())
    except MissingDependencyError as error:
        return str(error)
    # Exporters and compilers of other projects raise anything at all; the reason goes into the result.
    except Exception as error:  # noqa: BLE001
        return f"cannot run here: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if candidate.exact and not difference <= _TOLERANCE:
        return f"must equal {EAGER} to {_TOLERANCE:g}, got a difference of {difference:.3g}"
    captured = candidate.captured and device == "cuda"
    return FloatPath(name=name, kind=candidate.kind, run=run, captured=captured, max_abs_difference=difference)


class _Sources:
    """What candidates are built from; the export is shared by those that need it."""

    def __init__(self, policy: Policy, step: ControlStep) -> None:
        self.policy, self.step = policy, step
        self._exported: ExportedStep | None = None

    def exported(self) -> ExportedStep:
        """The control step as a graph."""
        if self._exported is None:
            self._exported = ExportedStep(self.policy, self.step)
        return self._exported


def _eager(sources: _Sources) -> Run:
    return lambda: sources.step.run(sources.policy)


def _captured_float32(sources: _Sources) -> Run:
    return _captured(sources.policy, sources.step)


def _bfloat16(sources: _Sources) -> Run:
    """The policy in bfloat16, its inputs cast where a module gets another dtype."""
    policy, step = _in_bfloat16(sources)
    return lambda: step.run(policy)


def _captured_bfloat16(sources: _Sources) -> Run:
    return _captured(*_in_bfloat16(sources))


def _compiled_bfloat16(sources: _Sources) -> Run:
    return inductor(ExportedStep(*_in_bfloat16(sources)))


def _torchao(sources: _Sources) -> Run:
    """4-bit weights of torchao for the CPU, bfloat16 activations."""
    required("torchao")
    quantization = importlib.import_module("torchao.quantization")
    prototype = importlib.import_module("torchao.prototype.quantization.int4")
    policy = copy.deepcopy(sources.policy).to(torch.bfloat16)
    fit = {policy.get_submodule(path) for path in fitting(policy, inputs=TORCHAO_INPUTS, outputs=TORCHAO_OUTPUTS)}
    config = prototype.PrototypeInt4WeightOnlyConfig(group_size=TORCHAO_INPUTS, set_inductor_config=False)
    quantization.quantize_(policy, config, lambda module, _: module in fit)
    step = _cast(policy, sources.step)
    return lambda: step.run(policy)


def _bitsandbytes(sources: _Sources) -> Run:
    """4-bit weights of bitsandbytes, bfloat16 activations: the only ones that its product for the CPU takes."""
    layers = required("bitsandbytes").nn
    policy = copy.deepcopy(sources.policy).to(torch.bfloat16)
    for path in fitting(policy, inputs=BITSANDBYTES_INPUTS, outputs=BITSANDBYTES_OUTPUTS):
        linear: Any = policy.get_submodule(path)
        layer = layers.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            compute_dtype=torch.bfloat16,
            quant_type="nf4",
        )
        layer.weight = layers.Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4")
        layer.bias = linear.bias
        # In training mode it would unpack its weight in every call.
        replace_module(policy, path, layer.to(policy.device).eval())
    step = _cast(policy, sources.step)
    return _captured(policy, step) if policy.device.type == "cuda" else lambda: step.run(policy)


def fitting(policy: Policy, *, inputs: int, outputs: int) -> list[str]:
    """Paths of the linear layers whose sizes a library's kernel takes; the others stay in bfloat16.

    Raises:
        InvalidInputError: There is none.
    """
    modules = {path: policy.get_submodule(path) for path in policy.linear_layers()}
    fitting = [
        path
        for path, module in modules.items()
        if isinstance(module, nn.Linear) and module.in_features % inputs == 0 and module.out_features % outputs == 0
    ]
    if not fitting:
        raise InvalidInputError(
            f"a policy must have a linear layer whose inputs are divisible by {inputs} and its outputs by {outputs}, "
            f"got none of {len(modules)}. Leave this candidate out."
        )
    return fitting


def _captured(policy: Policy, step: ControlStep) -> Run:
    """Runs a policy with its denoising loop as a CUDA graph.

    Raises:
        InvalidInputError: The policy is not on a CUDA device.
    """
    loop = captured_loop(policy)
    if loop is None:
        raise InvalidInputError(f"a policy must be on a CUDA device, got {policy.device}. Leave this candidate out.")

    def run() -> Float[Tensor, "chunk action"]:
        with policy.running(loop):
            return step.run(policy)

    return run


def _in_bfloat16(sources: _Sources) -> tuple[Policy, ControlStep]:
    """A copy of the policy in bfloat16, and the control step as it reads it."""
    policy = copy.deepcopy(sources.policy).to(torch.bfloat16)
    return policy, _cast(policy, sources.step)


@dataclass(frozen=True, kw_only=True)
class _BFloat16Step(ControlStep):
    """A control step whose observation is in bfloat16."""

    def batch(self, policy: Policy) -> Batch:
        batch = super().batch(policy)
        return {key: value.to(torch.bfloat16) if isinstance(value, Tensor) else value for key, value in batch.items()}


def _cast(policy: Policy, step: ControlStep) -> ControlStep:
    """The control step of a bfloat16 policy; modules that get another dtype in a first one keep a hook that casts."""
    cast_step = _BFloat16Step(**{field.name: getattr(step, field.name) for field in fields(step)})
    needed: set[nn.Module] = set()

    def cast(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        other = [isinstance(x, Tensor) and x.is_floating_point() and x.dtype != torch.bfloat16 for x in args]
        if any(other):
            needed.add(module)
        return tuple(x.to(torch.bfloat16) if wrong else x for x, wrong in zip(args, other, strict=True))

    handles = {
        module: module.register_forward_pre_hook(cast) for module in policy.modules() if hasattr(module, "weight")
    }
    cast_step.run(policy)
    for module, handle in handles.items():
        if module not in needed:
            handle.remove()
    return cast_step


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """How a way to run the control step is built.

    Attributes:
        build: Builds it.
        kind: ``float``, or ``4-bit`` for weight-only quantization by another library.
        exact: Whether its chunk has to be that of float32 in eager mode.
        captured: Whether its denoising loop, or all of it, is one CUDA graph on a CUDA device.
        devices: Types of the devices that it runs on.
    """

    build: Callable[[_Sources], Run]
    kind: Kind = "float"
    exact: bool = False
    captured: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


_CPU, _CUDA = ("cpu",), ("cuda",)

FLOAT_PATHS: dict[str, Candidate] = {
    EAGER: Candidate(build=_eager, exact=True),
    "torch-float32-captured": Candidate(build=_captured_float32, exact=True, captured=True, devices=_CUDA),
    "torch-bfloat16": Candidate(build=_bfloat16),
    "torch-bfloat16-captured": Candidate(build=_captured_bfloat16, captured=True, devices=_CUDA),
    "torch-compile": Candidate(build=lambda sources: inductor(sources.exported()), exact=True, captured=True),
    "torch-compile-bfloat16": Candidate(build=_compiled_bfloat16, captured=True, devices=_CUDA),
    "openvino-float32": Candidate(build=lambda sources: openvino(sources.exported()), exact=True, devices=_CPU),
    "onnxruntime-float32": Candidate(build=lambda sources: onnx_runtime(sources.exported()), exact=True, devices=_CPU),
    "torchao-int4": Candidate(build=_torchao, kind="4-bit", devices=_CPU),
    "bitsandbytes-nf4": Candidate(build=_bitsandbytes, kind="4-bit", captured=True),
}
