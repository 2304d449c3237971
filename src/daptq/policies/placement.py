"""Gives an empty policy the values of its tensors, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from daptq.errors import ForeignArtifactError
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.policies.contract import Policy
from daptq.policies.stored_weights import StoredWeights
from daptq.policies.streaming import stream as stream_weights
from daptq.policies.streaming import streamed_modules
from daptq.tensor_files import StoredTensor

__all__ = ["place_tensors"]


def place_tensors(policy: Policy, stored: Mapping[str, StoredTensor], directory: Path, *, stream: bool) -> None:
    """Gives every empty parameter its values in its own dtype, and every persistent buffer its own.

    Args:
        policy: Its quantized and bfloat16 layers are in place and stay as they are.
        stored: Where every tensor lies.
        directory: What holds them, for messages.
        stream: Leave large weights where they are, and let their modules read them.

    Raises:
        ForeignArtifactError: The tensors are not those of the policy.
    """
    trainable = not any(isinstance(module, QuantizedLinear | BFloat16Linear) for module in policy.modules())
    streamed = frozenset(f"{path}.weight" for path in streamed_modules(policy)) if stream else frozenset[str]()
    expected = set(policy.state_dict())
    if expected != set(stored):
        missing, extra = sorted(expected - set(stored)), sorted(set(stored) - expected)
        raise ForeignArtifactError(
            f"{directory} must hold the tensors of a {policy.family!r} policy, got {len(missing)} missing "
            f"{missing[:3]} and {len(extra)} unknown {extra[:3]}. Load it with the version of daptq that wrote it."
        )
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    buffers = dict(policy.named_buffers(remove_duplicate=False))
    for key in sorted(expected):
        owner, _, leaf = key.rpartition(".")
        module = policy.get_submodule(owner)
        if isinstance(module, QuantizedLinear | BFloat16Linear):
            continue
        present = parameters[key] if key in parameters else buffers[key]
        if (shape := stored[key].shape) != present.shape:
            raise ForeignArtifactError(
                f"{key} in {directory} must have shape {tuple(present.shape)}, got {shape}. "
                "Load it with the version of daptq that wrote it."
            )
        if key in streamed:
            continue
        values = stored[key].read()
        if key in parameters:
            setattr(module, leaf, nn.Parameter(values.to(present.dtype), requires_grad=trainable))
        else:
            setattr(module, leaf, values)
    if stream:
        stream_weights(policy, StoredWeights(stored))
