"""A small quantized policy on disk in which every form of a layer occurs: 2, 3, 4, 8, 16 bits, transforms, scales."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.rounding.nearest import round_weight

LAYERS = SmallCogACTPolicy.tiny().linear_layers()
KEPT = tuple(name for index, name in enumerate(LAYERS) if index % 5 == 4)
ROTATED = "llm_backbone.layers.0.self_attn.q_proj"
STEPWISE = "action_model.net.blocks.1.mlp.fc1"
FOUR_BIT_INPUT = "action_model.net.blocks.2.attn.qkv"
GROUPED = "llm_backbone.layers.1.mlp.up_proj"
FLOAT_INPUT = "action_model.net.blocks.1.attn.qkv"
# At timestep 0 its input is cosines and sines of zero.
TIMESTEP = "action_model.net.t_embedder.mlp.0"
SPECIAL: dict[str, dict[str, Any]] = {
    ROTATED: {"rotation_block": 16, "input_scale": torch.linspace(0.5, 2.0, 48)},
    STEPWISE: {"activation_scale": torch.linspace(0.05, 0.02, 10)},
    FOUR_BIT_INPUT: {"activation_bits": 4, "activation_scale": torch.tensor([0.5])},
    GROUPED: {"group_size": 32, "asymmetric": True},
    FLOAT_INPUT: {"group_size": 32, "activation_bits": 16},
    TIMESTEP: {"activation_bits": 16},
}
BITS = {name: (4, 3, 2, 8)[index % 4] for index, name in enumerate(LAYERS)} | dict.fromkeys(SPECIAL, 4)


def quantized(name: str, **settings: Any) -> QuantizedLinear:
    """The layer of the small policy at `name`, rounded to nearest."""
    linear: Any = SmallCogACTPolicy.tiny().get_submodule(name)
    num_bits = settings.pop("num_bits", BITS[name])
    group_size, asymmetric = settings.pop("group_size", 0), settings.pop("asymmetric", False)
    rounded = round_weight(linear.weight.detach(), num_bits, group_size=group_size, asymmetric=asymmetric)
    return QuantizedLinear.from_integers(
        rounded.integers,
        rounded.scale,
        linear.bias,
        num_bits=num_bits,
        group_size=group_size,
        zero_point=rounded.zero_point,
        **settings,
    )


def write(folder: Path, plan: Any = None, special: Mapping[str, dict[str, Any]] = SPECIAL) -> Path:
    """Writes the small quantized policy."""
    layers = {name: quantized(name, **special.get(name, {})) for name in LAYERS if name not in KEPT}
    return save_quantized(
        SmallCogACTPolicy.tiny(), folder, layers=layers, plan=plan, folding=[], recipe={}, provenance={}
    )


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small quantized policy."""
    return write(tmp_path_factory.mktemp("audited") / "quantized")
