"""Loading and running a quantized policy never makes a float copy of it, and its bytes are counted honestly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.layers.quantized_linear import QuantizedLinear
from daptq.observations import ACTION
from daptq.packing.checkpoint import load_policy
from daptq.packing.size import weight_bytes_on_disk, weight_bytes_resident
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy

Layers = dict[str, QuantizedLinear]
Quantize = Callable[..., Layers]
Write = Callable[[Policy, Path, Layers], None]


class LiveFloats(TorchDispatchMode):
    """Records the largest number of bytes of float32 and float64 storages that were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.dtype in (torch.float32, torch.float64) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def wide_policy() -> SmallCogACTPolicy:
    """A random policy of which 95 % are linear layers: 6 M weights, the largest of them 0.2 M."""
    config = SmallCogACTPolicy.tiny().config()
    config |= {"name": "wide", "language_width": 256, "language_depth": 8, "language_heads": 4, "language_mlp": 768}
    torch.manual_seed(0)
    policy = SmallCogACTPolicy.from_config(config, SmallCogACTPolicy.tiny().files())
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.02)
    return policy


@pytest.mark.parametrize("backend", ["auto", "reference", "float32-carried"])
def test_no_float_copy_of_the_model_ever_exists(
    tmp_path: Path, backend: str, quantize_layers: Quantize, write_quantized: Write
) -> None:
    policy = wide_policy()
    float_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    layers = quantize_layers(policy)
    write_quantized(policy, tmp_path / "out", layers)
    largest = max(layer.in_features * layer.out_features for layer in layers.values())
    outside = sum(
        parameter.nbytes for name, parameter in policy.named_parameters() if name.rpartition(".")[0] not in layers
    )
    batch = {key: value for key, value in policy.example_batch(0).items() if key != ACTION}
    del policy, layers
    with LiveFloats() as loading:
        loaded = load_policy(tmp_path / "out")
    # Parameters outside the layers, scales and biases, and one tensor in two dtypes while it is converted.
    assert loading.peak < outside + 0.05 * float_bytes
    for module in loaded.modules():
        if isinstance(module, QuantizedLinear):
            module.use_backend(backend)
    with LiveFloats() as running, torch.no_grad():
        loaded.predict_chunk(batch, torch.Generator().manual_seed(0))
    # One layer's weight in float32, and activations.
    assert running.peak < 4 * largest + 0.1 * float_bytes
    assert loading.peak + running.peak < 0.3 * float_bytes
    form = {"reference": 0.55}.get(backend, 2.0)  # Bytes per quantized weight; "auto" takes at most bfloat16's 2.
    assert weight_bytes_resident(loaded) < outside + form * float_bytes / 4
    assert weight_bytes_on_disk(tmp_path / "out") < 0.2 * float_bytes


def test_the_memory_guard_sees_a_float_copy(tmp_path: Path, quantize_layers: Quantize, write_quantized: Write) -> None:
    policy = wide_policy()
    float_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    write_quantized(policy, tmp_path / "out", quantize_layers(policy))
    with LiveFloats() as mode:
        loaded = load_policy(tmp_path / "out")
        copies = [module.dequantize() for module in loaded.modules() if isinstance(module, QuantizedLinear)]
    assert len(copies) > 50
    assert mode.peak > 0.9 * float_bytes


def test_resident_bytes_count_shared_memory_once() -> None:
    linear = nn.Linear(10, 10, bias=False)
    twice = nn.ModuleList([linear, nn.Linear(10, 10, bias=False)])
    assert weight_bytes_resident(twice) == 800
    twice[1].weight = linear.weight
    assert weight_bytes_resident(twice) == 400
    quantized = QuantizedLinear.from_integers(torch.ones(10, 10, dtype=torch.int8), torch.ones(10, 1))
    twice.append(quantized)
    assert weight_bytes_resident(twice) == 400 + 50 + 40 + 16
