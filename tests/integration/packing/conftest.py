"""Small quantized policies, in memory and in folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.quantized_matrix import quantize_matrix
from daptq.numerics.scales import absmax_scale
from daptq.observations import ACTION
from daptq.packing.checkpoint import save_policy, save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy

KEPT = "action_model.net.blocks.3."
RECIPE = {"method": "round-to-nearest"}
PROVENANCE = {"seed": 7}

Layers = dict[str, QuantizedLinear]


def _quantize_layers(policy: Policy, num_bits: int = 4) -> Layers:
    layers = {}
    for name, role in policy.linear_layers().items():
        if role != "vision" and not name.startswith(KEPT):
            linear = policy.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            scale = absmax_scale(linear.weight, num_bits)
            integers = quantize_matrix(linear.weight.detach(), scale, None, num_bits).integers
            layers[name] = QuantizedLinear.from_integers(integers, scale, linear.bias, num_bits=num_bits)
    return layers


def _write_quantized(policy: Policy, directory: Path, layers: Layers) -> None:
    plan, folding = [{"name": "x"}], {"order": 1}
    written = save_quantized(
        policy, directory, layers=layers, plan=plan, folding=folding, recipe=RECIPE, provenance=PROVENANCE
    )
    assert written == directory


def _predict(policy: Policy, dtype: torch.dtype = torch.float32) -> Tensor:
    batch = {
        key: value.to(dtype) if isinstance(value, Tensor) else value
        for key, value in policy.example_batch(0).items()
        if key != ACTION
    }
    with torch.no_grad():
        return policy.predict_chunk(batch, torch.Generator().manual_seed(0))


@pytest.fixture
def quantize_layers() -> Callable[..., Layers]:
    """Rounds every linear layer outside the vision tower and the last block to nearest."""
    return _quantize_layers


@pytest.fixture
def write_quantized() -> Callable[[Policy, Path, Layers], None]:
    """Writes a policy with the given quantized layers."""
    return _write_quantized


@pytest.fixture
def predict() -> Callable[..., Tensor]:
    """Predicts one chunk for the policy's example batch in a dtype, always with the same noise."""
    return _predict


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A float and a quantized policy, on disk."""
    root = tmp_path_factory.mktemp("policies")
    save_policy(SmallCogACTPolicy.tiny(), root / "float")
    _write_quantized(SmallCogACTPolicy.tiny(), root / "quantized", _quantize_layers(SmallCogACTPolicy.tiny()))
    return {"float": root / "float", "quantized": root / "quantized"}
