"""The audit: what each linear layer of a quantized policy really executed in a control step, against its checkpoint.

A policy runs one control step to choose its kernels, and a second one under observation. For each layer of the plan the
audit knows the operations that torch dispatched, the values that they multiplied, the memory that they read, what stays
resident, and, for two rows of every call, whether the result is the reference's bit for bit. Every difference from the
plan is listed. Arithmetic that does not pass torch's dispatcher is seen only by its absence: a layer without a product.

Low bits that are slower than bfloat16 are no difference from the plan; they are listed by themselves, as this machine
measured them at the layer's shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.audit.layer_plan import LayerPlan, read_plan
from daptq.audit.recorder import Calls, Watched, watched
from daptq.audit.resident import Resident, resident
from daptq.audit.rules import Difference, differences_of, plan_differences
from daptq.benchmarking.control_step import ControlStep, control_step
from daptq.errors import InvalidInputError
from daptq.layers.choices import MARGIN
from daptq.layers.picker import measured
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.policies.contract import Policy

__all__ = ["AuditReport", "AuditedLayer", "Difference", "audit", "audit_checkpoint"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class AuditedLayer:
    """What one linear layer was planned to do and did.

    Attributes:
        name: Module path.
        role: Role of its block.
        planned_bits: Bits of a weight in the plan, 16 for a layer that was kept.
        planned_activation_bits: Bits of an activation in the plan, 16 for floating point; None for a layer that was
            kept.
        module: Type of the module that was found at the path; None without one.
        backend: Kernel that a quantized layer chose.
        operations: Matrix products that were executed, most frequent first.
        input_precision: What these multiplied: ``int4``, ``int8`` or a floating-point dtype.
        calls: Calls in one control step.
        bytes_read_per_call: Bytes of the layer's memory, and of temporary copies of its weight, that a call read.
        resident_bytes: Bytes that the layer keeps: weight with padding, scales, bias, and whatever else it holds.
        ratio_to_bfloat16: Time of a call with the layer's kernel divided by that of the layer in bfloat16, as this
            machine measured them; None for a layer that is not quantized or was not called, and where the kernel was no
            candidate.
    """

    name: str
    role: str
    planned_bits: int
    planned_activation_bits: int | None
    module: str | None
    backend: str | None
    operations: tuple[str, ...]
    input_precision: tuple[str, ...]
    calls: int
    bytes_read_per_call: int
    resident_bytes: int
    ratio_to_bfloat16: float | None


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """The outcome of an audit.

    Attributes:
        policy: Name of the policy.
        checkpoint: Folder whose plan it was compared with.
        observation: Environment that was observed, or ``"synthetic"``.
        layers: The layers of the plan in execution order.
        differences: Everything that is not as planned.
    """

    policy: str
    checkpoint: str
    observation: str
    layers: tuple[AuditedLayer, ...]
    differences: tuple[Difference, ...]

    @property
    def outcome(self) -> Literal["as planned", "differs"]:
        """Whether anything differs."""
        return "differs" if self.differences else "as planned"

    @property
    def slower_than_bfloat16(self) -> dict[str, float]:
        """Layers that bfloat16 would make faster by more than noise, with their `ratio_to_bfloat16`."""
        ratios = {layer.name: layer.ratio_to_bfloat16 for layer in self.layers}
        return {name: ratio for name, ratio in ratios.items() if ratio is not None and ratio > MARGIN}

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        slower = {"slower_than_bfloat16": self.slower_than_bfloat16}
        return {"schema_version": SCHEMA_VERSION, "verdict": self.outcome, **asdict(self), **slower}


def audit_checkpoint(checkpoint: str | Path, *, seed: int = 0) -> AuditReport:
    """Loads a quantized policy and audits it; see `audit`.

    Raises:
        UnknownNameError: `checkpoint` is a plain word that is no folder.
        ArtifactError: The folder is no quantized policy, or is damaged.
    """
    plan = read_plan(checkpoint)
    return _audit(load_policy(checkpoint), plan, str(checkpoint), seed)


def audit(policy: Policy, checkpoint: str | Path, *, seed: int = 0) -> AuditReport:
    """Audits a loaded policy against the checkpoint that it should be.

    Args:
        policy: The policy on the CPU; its layers choose their kernels if they have not yet.
        checkpoint: Folder that `daptq quantize` wrote.
        seed: Seed of the observation and of the diffusion noise.

    Raises:
        UnknownNameError: `checkpoint` is a plain word that is no folder.
        ArtifactError: The folder is no quantized policy, or is damaged.
        InvalidInputError: The policy is not on the CPU.
    """
    return _audit(policy, read_plan(checkpoint), str(checkpoint), seed)


def _audit(policy: Policy, plan: Mapping[str, LayerPlan], checkpoint: str, seed: int) -> AuditReport:
    if policy.device.type != "cpu":
        raise InvalidInputError(f"policy must be on the CPU to be audited, got {policy.device}. Move it there.")
    step = control_step(policy, seed)
    step.run(policy)
    modules = {name: _module(policy, name) for name in plan}
    present = {name: module for name, module in modules.items() if module is not None}
    before = {name: resident(module) for name, module in present.items()}
    seen, results, inputs = _observed(policy, step, plan, present, before)
    # A copy may be made in a call: what stays resident is looked for afterwards.
    after = {name: resident(module) for name, module in present.items()}
    found = plan_differences(plan, policy, modules)
    found += differences_of(plan, policy, present, after, seen, results)
    with torch.inference_mode():
        ratios = {name: _ratio(present[name], x) for name, x in inputs.items()}
    layers = tuple(
        _audited(plan[name], modules[name], seen.get(name), after.get(name), ratios.get(name)) for name in plan
    )
    return AuditReport(
        policy=policy.name,
        checkpoint=checkpoint,
        observation=step.source,
        layers=layers,
        differences=tuple(sorted(found, key=lambda difference: list(plan).index(difference.layer))),
    )


def _observed(
    policy: Policy,
    step: ControlStep,
    plan: Mapping[str, LayerPlan],
    modules: Mapping[str, nn.Module],
    held: Mapping[str, Resident],
) -> tuple[dict[str, Calls], dict[str, Counter[str]], dict[str, Tensor]]:
    """One control step under observation.

    What was seen of each layer, how its results differ from the reference's, and what it multiplied at its first call.
    Two rows of each call are compared: a kernel that is right for some rows of a call and wrong for others is beyond
    what an audit looks for.
    """
    layers = {
        name: Watched(
            module=module,
            storages={
                address: tensor.untyped_storage().nbytes() for address, (_, tensor) in held[name].tensors.items()
            },
            transforms=_rotation(held[name]),
            opaque_bytes=_opaque_bytes(module, held[name]),
        )
        for name, module in modules.items()
    }
    results: dict[str, Counter[str]] = {name: Counter() for name in modules}
    inputs: dict[str, Tensor] = {}

    def before(name: str, x: Tensor) -> tuple[Tensor, torch.dtype]:
        rows = x.detach().reshape(-1, x.shape[-1])
        transformed = plan[name].transformed(rows.to(torch.float32))
        inputs.setdefault(name, transformed.clone() if plan[name].integer_activations else transformed.to(x.dtype))
        return transformed[[0, -1]].clone(), x.dtype

    def after(name: str, noted: tuple[Tensor, torch.dtype], output: Tensor) -> None:
        x, dtype = noted
        got = output.detach().reshape(-1, output.shape[-1])[[0, -1]]
        layer = plan[name]
        if got.shape[1] != layer.shape[0] or x.shape[1] != layer.shape[1]:
            results[name]["shape"] += 1
            return
        expected = layer.result(x, policy.denoising_step.index)
        if layer.integer_activations:
            same = torch.equal(expected.to(dtype), got)
        else:
            same = bool(((expected - got.double()).abs() <= layer.rounding(x.to(dtype))).all())
        results[name]["equal" if same else "other"] += 1

    with watched(layers, before=before, after=after) as seen:
        step.run(policy)
    return seen, results, inputs


def _ratio(module: nn.Module, x: Float[Tensor, "m in"]) -> float | None:
    """Measured time of a quantized layer divided by that in bfloat16."""
    if not isinstance(module, QuantizedLinear) or x.shape[1] != module.in_features:
        return None
    table = module.activation_scale
    static = None if table is None else table[0]
    weight = module.packed_weight()
    choice = measured(weight, module.weight_scale, module.bias, x, module.activation_bits, static)
    return choice.ratio_to_bfloat16(module.backend)


def _module(policy: Policy, name: str) -> nn.Module | None:
    """The module at a path, or None."""
    try:
        return policy.get_submodule(name)
    except AttributeError:
        return None


def _rotation(held: Resident) -> frozenset[int]:
    """Storages of the rotation of a layer's input."""
    return frozenset(address for address, (path, _) in held.tensors.items() if path == "_hadamard")


def _opaque_bytes(module: nn.Module, held: Resident) -> int:
    """Bytes that a layer keeps in objects of a library, as its kernel declares them."""
    if not held.opaque or not isinstance(module, QuantizedLinear):
        return 0
    return module.resident_bytes() - sum(buffer.nbytes for buffer in module.buffers())


def _audited(
    plan: LayerPlan, module: nn.Module | None, calls: Calls | None, held: Resident | None, ratio: float | None
) -> AuditedLayer:
    counted: Counter[str] = Counter()
    precisions: Counter[str] = Counter()
    for product, count in (calls.products if calls else Counter()).items():
        counted[product.operation] += count
        precisions[product.precision] += count
    number = calls.calls if calls else 0
    size = 0 if module is None or held is None else held.bytes + _opaque_bytes(module, held)
    return AuditedLayer(
        name=plan.name,
        role=plan.role,
        planned_bits=plan.num_bits,
        planned_activation_bits=plan.activation_bits,
        module=None if module is None else type(module).__name__,
        backend=module.backend if isinstance(module, QuantizedLinear) else None,
        operations=tuple(operation for operation, _ in counted.most_common()),
        input_precision=tuple(sorted(precisions)),
        calls=number,
        bytes_read_per_call=round(calls.bytes_read / number) if calls and number else 0,
        resident_bytes=size,
        ratio_to_bfloat16=ratio,
    )
