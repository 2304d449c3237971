"""Bytes of a policy's weights, on disk and in memory."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from daptq.layers.quantized_linear import QuantizedLinear

__all__ = ["weight_bytes_on_disk", "weight_bytes_resident"]


def weight_bytes_on_disk(directory: Path) -> int:
    """Bytes of all weight shards of a folder that daptq wrote."""
    return sum(shard.stat().st_size for shard in directory.glob("*.safetensors"))


def weight_bytes_resident(model: nn.Module) -> int:
    """Bytes of all parameters and buffers as they lie in memory; what several of them share counts once.

    A quantized layer counts in the form in which it multiplies, padding of its kernel included. With the kernel
    ``"auto"`` that form exists from the first call on: run the policy once before asking.
    """
    packed, storages = 0, {}
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            packed += module.resident_bytes()
            continue
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return packed + sum(storages.values())
