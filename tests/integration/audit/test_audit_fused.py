"""The audit sees into fused stacks: honest ones pass with every layer's calls, and what is planted is found."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.audit import recorder
from daptq.audit.audit import audit
from daptq.kernels.transformer import op
from daptq.layers import transformer_stack
from daptq.packing.checkpoint import load_policy
from tests.integration.audit.conftest import FOUR_BIT_INPUT, KEPT, LAYERS, ROTATED, SPECIAL, write

pytestmark = pytest.mark.skipif(op.unavailable() is not None, reason=str(op.unavailable()))

LAYER = "action_model.net.blocks.0.mlp.fc1"
EMBEDDERS = ("t_embedder", "z_embedder")


@pytest.fixture(scope="session")
def fusable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small quantized policy with those special layers only that can be fused."""
    special = {name: SPECIAL[name] for name in (ROTATED, FOUR_BIT_INPUT)}
    return write(tmp_path_factory.mktemp("fusable") / "quantized", special=special)


def kinds(checkpoint: Path) -> dict[str, set[str]]:
    """The kinds of differences by layer."""
    found: dict[str, set[str]] = {}
    policy = load_policy(checkpoint)
    for name in LAYERS:
        layer: Any = policy.get_submodule(name)
        if name not in KEPT:
            layer.use_backend("avx2")
    for difference in audit(policy, checkpoint).differences:
        found.setdefault(difference.layer, set()).add(difference.kind)
    return found


def test_an_honest_policy_passes_with_every_call_inside_the_fused_operations(
    fusable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: Counter[str] = Counter()
    taken_apart = recorder._Recorder._taken_apart

    def counting(self: Any, func: Any, args: Any, kwargs: Any) -> Any:
        seen[func.name()] += 1
        return taken_apart(self, func, args, kwargs)

    monkeypatch.setattr(recorder._Recorder, "_taken_apart", counting)
    policy = load_policy(fusable)
    for name in LAYERS:
        layer: Any = policy.get_submodule(name)
        if name not in KEPT:
            layer.use_backend("avx2")
    report = audit(policy, fusable)
    assert report.differences == ()
    assert (seen["daptq::denoise"], seen["daptq::transformer"]) == (1, 2)
    inside = [name for name, role in LAYERS.items() if role == "action_head" and not any(e in name for e in EMBEDDERS)]
    stacks = [name for name in LAYERS if ".encoder.layers." in name or "llm_backbone.layers." in name]
    assert seen["daptq::layer"] == 10 * len(inside) + len(stacks)
    for layer in report.layers:
        assert layer.calls == (10 if layer.name in inside else 1), layer.name
        expected = "daptq.linear_bfloat16.default" if layer.name in KEPT else "daptq.linear_w4a8_avx2.default"
        assert layer.operations == (expected,)
        assert layer.bytes_read_per_call > 0


def test_another_weight_in_place_of_the_layers_own_is_found(fusable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of_layer = transformer_stack._of_layer

    policy = load_policy(fusable)
    swapped_layer = policy.get_submodule(LAYER)

    def swapped(layer: Any) -> Any:
        found = of_layer(layer)
        if found is not None and layer is swapped_layer:
            return found._replace(tensors=found.tensors._replace(weight=found.tensors.weight.clone()))
        return found

    monkeypatch.setattr(transformer_stack, "_of_layer", swapped)
    found = audit(policy, fusable).differences
    assert {(difference.layer, difference.kind) for difference in found} >= {(LAYER, "not called")}


def test_a_block_that_is_left_out_is_found(fusable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = transformer_stack.Stack._low_bit_blocks
    monkeypatch.setattr(transformer_stack.Stack, "_low_bit_blocks", lambda self: blocks(self)[1:])
    found = kinds(fusable)
    assert found[LAYER] == {"not called"}
    assert "action_model.net.blocks.1.mlp.fc1" not in found


def test_memory_that_is_read_beside_the_layers_call_is_found(fusable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = transformer_stack._parts

    def reading(*args: Any) -> Any:
        found = parts(*args)
        if found is not None:
            tiles = next(tensor for tensor in found[0] if tensor is not None and tensor.dtype == torch.uint8)
            torch.add(tiles, 0)
        return found

    monkeypatch.setattr(transformer_stack, "_parts", reading)
    assert {"bypassed"} in kinds(fusable).values()
