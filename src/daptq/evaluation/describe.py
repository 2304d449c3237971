"""What a loaded policy is made of: bits of each linear layer, bytes in memory and on disk, a hash of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from daptq.artifacts import hash_tensors
from daptq.policies._base import Policy


def describe_policy(policy: Policy, directory: Path | None = None) -> dict[str, Any]:
    """Describes a policy as a JSON object.

    Args:
        policy: The loaded policy.
        directory: Folder that it was loaded from; None for a policy that is in memory only.

    Returns:
        `family`; `weights` with `bytes_on_disk` (None without a folder), `bytes_in_memory` (parameters and buffers) and
        `sha256` of the state dict; `layers`, one entry per linear layer in execution order with `name`, `role`,
        `num_bits` (of the stored weight), `parameters` (number of weights), `activation_bits` (None: floating point).
    """
    layers = []
    for name, role in policy.linear_layers().items():
        module = policy.get_submodule(name)
        parameters = cast("int", module.in_features) * cast("int", module.out_features)
        entry = {"name": name, "role": role, "num_bits": weight_bits(module), "parameters": parameters}
        layers.append({**entry, "activation_bits": getattr(module, "activation_bits", None)})
    weights = {
        "bytes_on_disk": None if directory is None else bytes_on_disk(directory),
        "bytes_in_memory": bytes_in_memory(policy),
        "sha256": hash_tensors(policy.state_dict()),
    }
    return {"family": policy.family, "weights": weights, "layers": layers}


def weight_bits(module: nn.Module) -> int:
    """Bits of one weight of a linear layer as it lies in memory: `num_bits` when quantized, else those of its dtype."""
    quantized = getattr(module, "num_bits", None)
    if isinstance(quantized, int):
        return quantized
    weight = module.weight
    assert isinstance(weight, Tensor)
    return 8 * weight.element_size()


def bytes_in_memory(policy: nn.Module) -> int:
    """Bytes of all parameters and buffers; storage that several of them share counts once."""
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*policy.parameters(), *policy.buffers())
    }
    return sum(storages.values())


def bytes_on_disk(directory: Path) -> int:
    """Bytes of all weight shards in a folder."""
    return sum(shard.stat().st_size for shard in directory.glob("*.safetensors"))
