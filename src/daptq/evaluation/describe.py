"""What a loaded policy is made of: bits of each linear layer and why, bytes in memory and on disk, hash of weights."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from daptq.artifacts import hash_tensors
from daptq.evaluation.description import BitPlan, LayerReason, LinearLayer, PolicyDescription, Weights
from daptq.observations import ACTION
from daptq.packing.metadata import CheckpointMetadata
from daptq.packing.size import weight_bytes_on_disk, weight_bytes_resident
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator


def describe_policy(policy: Policy, directory: Path | None = None) -> PolicyDescription:
    """Describes a policy after one prediction.

    A kernel may keep weights in another form than the one on disk from the first prediction on; what counts is the form
    that the robot runs with.

    Args:
        policy: The loaded policy.
        directory: Folder that it was loaded from; None for a policy that is in memory only.
    """
    with torch.inference_mode():
        policy.predict_chunk(single_observation(policy, 0), noise_generator(0, 0))
    layers = []
    for name, role in policy.linear_layers().items():
        module = policy.get_submodule(name)
        layers.append(
            LinearLayer(
                name=name,
                role=role,
                num_bits=weight_bits(module),
                parameters=cast("int", module.in_features) * cast("int", module.out_features),
                activation_bits=getattr(module, "activation_bits", None),
            )
        )
    return PolicyDescription(
        family=policy.family,
        weights=Weights(
            bytes_on_disk=None if directory is None else weight_bytes_on_disk(directory),
            bytes_in_memory=weight_bytes_resident(policy),
            sha256=hash_tensors(policy.state_dict()),
        ),
        layers=tuple(layers),
        plan=None if directory is None else _plan(CheckpointMetadata.read(directory)),
    )


def _plan(metadata: CheckpointMetadata) -> BitPlan | None:
    """Reasons and scores of the bit plan; None where there is none, or one that was written in another form."""
    if metadata.decisions is None:
        return None
    layers = (
        LayerReason(name=name, reason=decision.reason, score=decision.score)
        for name, decision in metadata.decisions.items()
    )
    return BitPlan(sensitivity=metadata.sensitivity, layers=tuple(layers))


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
