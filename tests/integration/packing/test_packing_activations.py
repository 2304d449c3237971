"""Checkpoints whose layers transform and quantize their inputs in other ways than the usual one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from daptq.artifacts import read_artifact, write_artifact
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy, replace_module
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy
from daptq.rounding.nearest import round_weight

Layers = dict[str, QuantizedLinear]


def with_settings(layers: Layers, steps: int) -> Layers:
    """The same weights with activations of 4 bits, a transform of the input, and a static scale or one per step."""
    changed = {}
    for name, layer in layers.items():
        size = layer.in_features
        in_loop = name.startswith("action_model.net.blocks.")
        changed[name] = QuantizedLinear(
            layer.packed_weight(),
            layer.weight_scale,
            layer.bias,
            activation_bits=4,
            activation_scale=torch.linspace(0.1, 0.9, steps) if in_loop else torch.tensor([0.2]),
            input_scale=torch.linspace(0.5, 2.0, size),
            rotation_block=16 if size % 16 == 0 else 0,
        )
    return changed


def test_settings_come_back_and_steps_are_followed(
    tmp_path: Path,
    quantize_layers: Callable[..., Layers],
    write_quantized: Callable[[Policy, Path, Layers], None],
    predict: Callable[..., Tensor],
) -> None:
    policy = SmallCogACTPolicy.tiny()
    steps = policy.denoising_steps
    assert steps > 1
    plain = quantize_layers(policy)
    layers = with_settings(plain, steps)
    write_quantized(policy, tmp_path / "quantized", layers)
    loaded = load_policy(tmp_path / "quantized")
    some = next(name for name in layers if name.startswith("action_model.net.blocks."))
    layer = loaded.get_submodule(some)
    assert isinstance(layer, QuantizedLinear)
    assert (layer.activation_bits, layer.rotation_block) == (4, 16 if layer.in_features % 16 == 0 else 0)
    for key, values in layers[some].state_dict().items():
        assert torch.equal(layer.state_dict()[key], values), key

    reference = load_policy(tmp_path / "quantized")
    for name, quantized in layers.items():
        quantized.follow(reference.denoising_step)
        replace_module(reference, name, quantized)
    assert torch.equal(predict(loaded), predict(reference))
    # The steps matter: with the table turned round the prediction is another one.
    for quantized in layers.values():
        assert quantized.activation_scale is not None
        quantized.activation_scale = quantized.activation_scale.flip(0)
    assert not torch.equal(predict(loaded), predict(reference))


def test_a_checkpoint_without_the_settings_means_the_usual_ones(
    tmp_path: Path, folders: dict[str, Path], predict: Callable[..., Tensor]
) -> None:
    artifact = read_artifact(folders["quantized"], kind="quantized-policy")
    metadata = dict(artifact.metadata)
    metadata["layers"] = {
        name: {"role": entry["role"], "num_bits": entry["num_bits"]} for name, entry in metadata["layers"].items()
    }
    write_artifact(
        tmp_path / "old",
        kind="quantized-policy",
        tensors={name: artifact.tensor(name) for name in artifact.tensor_names}.items(),
        metadata=metadata,
        files={name: artifact.file(name) for name in artifact.file_names},
    )
    assert torch.equal(predict(load_policy(tmp_path / "old")), predict(load_policy(folders["quantized"])))


def test_groups_zero_points_and_float_activations_come_back(
    tmp_path: Path,
    quantize_layers: Callable[..., Layers],
    write_quantized: Callable[[Policy, Path, Layers], None],
    predict: Callable[..., Tensor],
) -> None:
    policy = SmallCogACTPolicy.tiny()
    layers = {}
    for index, (name, plain) in enumerate(quantize_layers(policy).items()):
        rounded = round_weight(plain.dequantize(), 3, group_size=32, asymmetric=True)
        layers[name] = QuantizedLinear.from_integers(
            rounded.integers,
            rounded.scale,
            plain.bias,
            num_bits=3,
            group_size=32,
            zero_point=rounded.zero_point,
            activation_bits=(16, 8)[index % 2],
        )
    write_quantized(policy, tmp_path / "quantized", layers)
    loaded = load_policy(tmp_path / "quantized")
    for name, layer in layers.items():
        other = loaded.get_submodule(name)
        assert isinstance(other, QuantizedLinear)
        assert (other.group_size, other.activation_bits) == (32, layer.activation_bits)
        for key, values in layer.state_dict().items():
            assert torch.equal(other.state_dict()[key], values), key
        replace_module(policy, name, layer)
    for module in (*policy.modules(), *loaded.modules()):
        if isinstance(module, QuantizedLinear):
            module.use_backend("float32-carried")
    artifact = read_artifact(tmp_path / "quantized", kind="quantized-policy")
    stored = [name for name in artifact.tensor_names if name.endswith(".weight_zero_point")]
    assert len(stored) == len(layers)
    x = torch.randn(4, layers[name].in_features)
    assert torch.equal(layers[name](x), loaded.get_submodule(name)(x))
    assert predict(loaded).isfinite().all()
