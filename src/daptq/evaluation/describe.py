"""What a loaded policy is made of: bits of each linear layer and why, bytes in memory and on disk, hash of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from daptq.artifacts import MANIFEST, hash_tensors, read_json
from daptq.observations import ACTION
from daptq.packing.size import weight_bytes_on_disk, weight_bytes_resident
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator


def describe_policy(policy: Policy, directory: Path | None = None) -> dict[str, Any]:
    """Describes a policy as a JSON object, after one prediction.

    A kernel may keep weights in another form than the one on disk from the first prediction on; what counts is the form
    that the robot runs with.

    Args:
        policy: The loaded policy.
        directory: Folder that it was loaded from; None for a policy that is in memory only.

    Returns:
        `family`; `weights` with `bytes_on_disk` (None without a folder), `bytes_in_memory` (parameters and buffers) and
        `sha256` of the state dict; `layers`, one entry per linear layer in execution order with `name`, `role`,
        `num_bits` (of the stored weight), `parameters` (number of weights), `activation_bits` (None: floating point);
        `plan`, what the folder says of how the bits were chosen (None without a folder or for a float policy):
        `sensitivity`, the method of the scores (None where nothing was scored), and `layers` with `name`, `reason` and
        `score`.
    """
    with torch.inference_mode():
        policy.predict_chunk(single_observation(policy, 0), noise_generator(0, 0))
    layers = []
    for name, role in policy.linear_layers().items():
        module = policy.get_submodule(name)
        parameters = cast("int", module.in_features) * cast("int", module.out_features)
        entry = {"name": name, "role": role, "num_bits": weight_bits(module), "parameters": parameters}
        layers.append({**entry, "activation_bits": getattr(module, "activation_bits", None)})
    weights = {
        "bytes_on_disk": None if directory is None else weight_bytes_on_disk(directory),
        "bytes_in_memory": weight_bytes_resident(policy),
        "sha256": hash_tensors(policy.state_dict()),
    }
    plan = None if directory is None else _plan(read_json(directory / MANIFEST)["metadata"])
    return {"family": policy.family, "weights": weights, "layers": layers, "plan": plan}


def _plan(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Reasons and scores of the bit plan; None where there is none, or one that was written in another form."""
    plan = metadata.get("plan")
    listed = plan.get("layers") if isinstance(plan, Mapping) else None
    if not isinstance(listed, list):
        return None
    layers = [{key: entry.get(key) for key in ("name", "reason", "score")} for entry in listed]
    scored = any(layer["score"] is not None for layer in layers)
    return {"sensitivity": metadata["recipe"]["sensitivity"]["method"] if scored else None, "layers": layers}


def single_observation(policy: Policy, seed: int) -> Batch:
    """The first sample of the policy's example batch, on the policy's device, without the action."""
    batch = {key: value[:1] for key, value in policy.example_batch(seed).items() if key != ACTION}
    return {key: value.to(policy.device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def weight_bits(module: nn.Module) -> int:
    """Bits of one weight of a linear layer: `num_bits` when quantized, else those of its dtype."""
    quantized = getattr(module, "num_bits", None)
    if isinstance(quantized, int):
        return quantized
    weight = dict(module.named_parameters(recurse=False))["weight"]  # as it is in memory
    return 8 * weight.element_size()
