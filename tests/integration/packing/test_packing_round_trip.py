"""Policies written to folders and loaded back: values, dtypes, bytes and what the manifest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from daptq.artifacts import read_artifact
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy, replace_module, save_policy
from daptq.packing.size import weight_bytes_on_disk
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy

KEPT = "action_model.net.blocks.3."

Layers = dict[str, QuantizedLinear]
Quantize = Callable[..., Layers]
Write = Callable[[Policy, Path, Layers], None]
Predict = Callable[..., Tensor]


def test_float_policy_comes_back_rounded_to_bfloat16(folders: dict[str, Path], predict: Predict) -> None:
    policy = SmallCogACTPolicy.tiny()
    loaded = load_policy(folders["float"])
    assert type(loaded) is type(policy)
    assert not loaded.training
    assert loaded.name == "tiny"
    parameters = dict(loaded.named_parameters())
    assert set(parameters) == {name for name, _ in policy.named_parameters()}
    for name, expected in policy.named_parameters():
        assert parameters[name].dtype == torch.float32
        assert parameters[name].requires_grad
        assert torch.equal(parameters[name], expected.bfloat16().float()), name
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(parameter.bfloat16())
    assert torch.equal(predict(loaded), predict(policy))
    assert load_policy(folders["float"], name="another").name == "another"


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_quantized_policy_comes_back_with_the_same_integers_and_actions(
    tmp_path: Path, num_bits: int, quantize_layers: Quantize, write_quantized: Write, predict: Predict
) -> None:
    policy = SmallCogACTPolicy.tiny()
    layers = quantize_layers(policy, num_bits)
    write_quantized(policy, tmp_path / "out", layers)
    loaded = load_policy(str(tmp_path / "out"))
    for name, layer in layers.items():
        module = loaded.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert module.num_bits == num_bits
        assert torch.equal(module.integers(), layer.integers())
        assert torch.equal(module.weight_scale, layer.weight_scale)
        assert (module.bias is None) == (layer.bias is None)
        assert module.bias is None or torch.equal(module.bias, policy.get_submodule(name).bias)  # type: ignore[arg-type]
    for name, layer in layers.items():
        replace_module(policy, name, layer)
    others = [(name, module) for name, module in policy.named_modules() if type(module) is nn.Linear]
    assert any(name.startswith(KEPT) for name, _ in others)
    for name, module in others:
        assert isinstance(loaded.get_submodule(name), BFloat16Linear)
        replace_module(policy, name, BFloat16Linear.from_linear(module))
    replaced = tuple(
        name for name, module in policy.named_modules() if isinstance(module, QuantizedLinear | BFloat16Linear)
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not name.startswith(replaced):
                parameter.copy_(parameter.bfloat16())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {name: module.dtype for name, module in loaded.named_parameters()} == {
        name: parameter.dtype for name, parameter in policy.named_parameters()
    }
    assert torch.equal(predict(loaded), predict(policy))


def test_metadata_says_what_was_done(folders: dict[str, Path]) -> None:
    metadata = read_artifact(folders["quantized"], kind="quantized-policy").metadata
    assert (metadata["family"], metadata["name"]) == ("cogact-small", "tiny")
    assert metadata["plan"] == [{"name": "x"}]
    assert metadata["folding"] == {"order": 1}
    assert metadata["recipe"] == {"method": "round-to-nearest"}
    assert metadata["provenance"] == {"seed": 7}
    roles = SmallCogACTPolicy.tiny().linear_layers()
    assert {name: entry["role"] for name, entry in metadata["layers"].items()} == roles
    bits = {entry["num_bits"] for name, entry in metadata["layers"].items() if name.startswith(("vision", KEPT))}
    assert bits == {16}
    assert metadata["layers"]["llm_backbone.layers.0.mlp.up_proj"] == {
        "role": "language",
        "num_bits": 4,
        "group_size": 0,
        "activation_bits": 8,
        "rotation_block": 0,
    }
    assert "versions" in read_artifact(folders["float"], kind="policy").metadata["provenance"]


def test_two_weights_share_a_byte_on_disk(folders: dict[str, Path]) -> None:
    artifact = read_artifact(folders["quantized"], kind="quantized-policy")
    name = "llm_backbone.layers.0.mlp.up_proj"
    out_features, in_features = artifact.tensor(f"{name}.weight_shape").tolist()
    packed = artifact.tensor(f"{name}.weight_packed")
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (out_features, in_features // 2))
    assert artifact.tensor(f"{name}.weight_scale").shape == (out_features, 1)
    assert f"{name}.weight" not in artifact.tensor_names
    kept = artifact.tensor(f"{KEPT}mlp.fc1.weight")
    assert kept.dtype == torch.bfloat16
    sizes = {key: folder for key, folder in folders.items() if weight_bytes_on_disk(folder) > 0}
    assert weight_bytes_on_disk(sizes["quantized"]) < 0.7 * weight_bytes_on_disk(sizes["float"])


def test_a_policy_with_layers_in_place_is_written_identically(
    tmp_path: Path, folders: dict[str, Path], quantize_layers: Quantize, write_quantized: Write, predict: Predict
) -> None:
    policy = SmallCogACTPolicy.tiny()
    layers = quantize_layers(policy)
    for name, layer in layers.items():
        replace_module(policy, name, layer)
    predict(policy)  # The layers now keep the form of their kernels.
    write_quantized(policy, tmp_path / "out", layers)
    for shard in folders["quantized"].glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def test_saving_a_loaded_policy_changes_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    save_policy(load_policy(folders["float"]), tmp_path / "again")
    for shard in folders["float"].glob("*.safetensors"):
        assert (tmp_path / "again" / shard.name).read_bytes() == shard.read_bytes()
