"""What a policy is made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from daptq.evaluation.describe import describe_policy
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import replace_module, save_policy, save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy


def described(policy: Any, directory: Path | None = None) -> dict[str, Any]:
    return describe_policy(policy, directory).to_json()


def test_every_linear_layer_is_described_in_execution_order() -> None:
    policy = SmallCogACTPolicy.tiny()
    layers = described(policy)["layers"]
    assert [layer["name"] for layer in layers] == list(policy.linear_layers())
    assert {layer["num_bits"] for layer in layers} == {32}
    for layer in layers:
        module: Any = policy.get_submodule(layer["name"])
        assert layer["parameters"] == module.weight.numel()
        assert layer["role"] == policy.linear_layers()[layer["name"]]


def quantized(linear: Any) -> QuantizedLinear:
    integers = torch.randint(-7, 8, linear.weight.shape, dtype=torch.int8)
    return QuantizedLinear.from_integers(integers, torch.full((len(integers), 1), 0.01), linear.bias)


def test_bits_follow_the_layer() -> None:
    policy = SmallCogACTPolicy.tiny()
    builders: tuple[Callable[[Any], torch.nn.Module], ...] = (BFloat16Linear.from_linear, quantized)
    for name, build in zip(policy.linear_layers(), builders, strict=False):
        replace_module(policy, name, build(policy.get_submodule(name)))
    layers = described(policy)["layers"]
    assert [layer["num_bits"] for layer in layers[:3]] == [16, 4, 32]
    assert [layer["activation_bits"] for layer in layers[:3]] == [None, 8, None]


def test_bytes_are_those_of_the_form_that_runs(tmp_path: Path) -> None:
    save_policy(SmallCogACTPolicy.tiny(), tmp_path / "tiny")
    weights = described(SmallCogACTPolicy.tiny(), tmp_path / "tiny")["weights"]
    parameters = sum(parameter.numel() for parameter in SmallCogACTPolicy.tiny().parameters())
    # bfloat16 on disk plus safetensors' header, float32 in memory plus a few small buffers.
    assert 2 * parameters < weights["bytes_on_disk"] < 2.2 * parameters
    assert 4 * parameters <= weights["bytes_in_memory"] < 4 * parameters + 1000
    assert described(SmallCogACTPolicy.tiny())["weights"]["bytes_on_disk"] is None
    layer = quantized(torch.nn.Linear(48, 48))
    policy = SmallCogACTPolicy.tiny()
    replace_module(policy, "llm_backbone.layers.0.self_attn.q_proj", layer)
    after = described(policy)["weights"]["bytes_in_memory"]
    assert layer.backend is not None  # a kernel was chosen before the bytes were counted
    assert after == weights["bytes_in_memory"] - 4 * 48 * 48 + layer.resident_bytes()


def test_the_plan_says_why_a_layer_has_its_bits(tmp_path: Path) -> None:
    policy = SmallCogACTPolicy.tiny()
    name, *others = policy.linear_layers()
    layer = quantized(policy.get_submodule(name))
    replace_module(policy, name, layer)
    layers = [{"name": name, "num_bits": 4, "reason": "knapsack", "score": 0.25}]
    layers += [{"name": other, "num_bits": 16, "reason": "role", "score": None} for other in others]
    recipe = {"sensitivity": {"method": "rounding"}}
    about: dict[str, Any] = {"layers": {name: layer}, "folding": [], "recipe": recipe, "provenance": {}}
    save_quantized(policy, tmp_path / "scored", plan={"layers": layers}, **about)
    plan = described(policy, tmp_path / "scored")["plan"]
    assert plan["sensitivity"] == "rounding"
    assert plan["layers"][:2] == [
        {"name": name, "reason": "knapsack", "score": 0.25},
        {"name": others[0], "reason": "role", "score": None},
    ]
    save_quantized(policy, tmp_path / "unscored", plan={"layers": layers[1:]}, **about)
    assert described(policy, tmp_path / "unscored")["plan"]["sensitivity"] is None
    forms: tuple[Any, ...] = (None, [], {"layers": {}})
    for form in forms:
        folder = tmp_path / f"other form {form}"
        save_quantized(policy, folder, plan=form, **about)
        assert described(policy, folder)["plan"] is None
    save_policy(SmallCogACTPolicy.tiny(), tmp_path / "float")
    assert described(SmallCogACTPolicy.tiny(), tmp_path / "float")["plan"] is None


def test_the_hash_tells_weights_apart() -> None:
    first, again, other = (described(SmallCogACTPolicy.tiny(seed))["weights"]["sha256"] for seed in (0, 0, 1))
    assert first == again != other
