"""The audit passes an honest policy with every kernel, and finds everything that is planted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daptq.audit.audit import AuditReport, audit, audit_checkpoint
from daptq.errors import BackendUnavailableError, ForeignArtifactError, UnknownNameError
from daptq.layers import choices, picker
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy, replace_module
from daptq.policies.contract import Policy
from tests.integration.audit.conftest import (
    BITS,
    FLOAT_INPUT,
    FOUR_BIT_INPUT,
    GROUPED,
    KEPT,
    LAYERS,
    ROTATED,
    STEPWISE,
    TIMESTEP,
    quantized,
    write,
)

PARENT = "action_model.net.blocks.0.mlp"
LAYER = f"{PARENT}.fc1"
Plant = Callable[[Policy], None]


def layer_of(policy: Policy, name: str = LAYER) -> Any:
    """A layer of the policy."""
    return policy.get_submodule(name)


def found(policy: Policy, checkpoint: Path, name: str = LAYER) -> set[str]:
    """The kinds of differences of one layer, after asserting that no other layer has any."""
    report = audit(policy, checkpoint)
    assert {difference.layer for difference in report.differences} <= {name}, report.differences
    return {difference.kind for difference in report.differences}


def planned(report: AuditReport, name: str) -> Any:
    """What the report says of a layer."""
    return next(layer for layer in report.layers if layer.name == name)


def test_the_planted_layer_is_quantized() -> None:
    assert LAYER in BITS
    assert not {LAYER, ROTATED, STEPWISE, FOUR_BIT_INPUT, GROUPED, FLOAT_INPUT, TIMESTEP} & set(KEPT)


@pytest.mark.parametrize("backend", ["auto", "reference", "float32-carried", "fbgemm"])
def test_an_honest_policy_passes_with_every_kernel(checkpoint: Path, backend: str) -> None:
    policy = load_policy(checkpoint)
    taken = set()
    for name in LAYERS:
        layer = layer_of(policy, name)
        if isinstance(layer, QuantizedLinear):
            try:
                layer.use_backend(backend)
            except BackendUnavailableError:  # fbgemm takes no 8-bit weights, no groups, no float activations
                continue
            taken.add(name)
    assert taken
    report = audit(policy, checkpoint)
    assert report.differences == ()
    assert report.outcome == "as planned"
    assert [layer.name for layer in report.layers] == list(LAYERS)
    for layer in report.layers:
        assert layer.role == LAYERS[layer.name]
        # The policy has a layer with a scale for each denoising step, so its action head is not fused.
        assert layer.calls == (10 if layer.role == "action_head" else 1)
        if layer.name in KEPT:
            assert (layer.planned_bits, layer.input_precision, layer.backend) == (16, ("float32",), None)
            continue
        assert layer.planned_bits == BITS[layer.name]
        usual = {FOUR_BIT_INPUT: ("int4",), FLOAT_INPUT: ("float32",), TIMESTEP: ("float32", "int4")}
        assert layer.input_precision == usual.get(layer.name, ("int8",))
        assert backend in ("auto", layer.backend) or layer.name not in taken
        assert len(layer.operations) == 1


def test_bytes_are_those_of_the_packed_form(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    layer = layer_of(policy)
    layer.use_backend("reference")
    entry = planned(audit(policy, checkpoint), LAYER)
    read = layer.weight_packed.nbytes + layer.weight_scale.nbytes + layer.bias.nbytes
    assert entry.bytes_read_per_call == read
    assert entry.resident_bytes == read + layer.weight_shape.nbytes == layer.resident_bytes()
    # The weight is copied to float32 in each call, and the copy is read as well.
    layer.use_backend("float32-carried")
    entry = planned(audit(policy, checkpoint), LAYER)
    values = layer.in_features * layer.out_features
    assert entry.bytes_read_per_call == 5 * values + layer.weight_scale.nbytes + layer.bias.nbytes


def test_a_float_layer_in_place_of_a_quantized_one_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    packed = layer_of(policy)
    linear = nn.Linear(packed.in_features, packed.out_features)
    linear.weight = nn.Parameter(packed.dequantize())
    linear.bias = nn.Parameter(packed.bias.clone())
    replace_module(policy, LAYER, linear)
    report = audit(policy, checkpoint)
    assert {(difference.layer, difference.kind) for difference in report.differences} == {
        (LAYER, kind) for kind in ("arithmetic", "input", "result", "weight", "float copy")
    }
    entry = planned(report, LAYER)
    assert (entry.module, entry.backend, entry.input_precision) == ("Linear", None, ("float32",))
    assert entry.operations[0].startswith("aten.")


class FloatInside(QuantizedLinear):
    """Holds packed integers and multiplies in floating point."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


class FakeQuantized(QuantizedLinear):
    """Rounds weights and activations and multiplies the rounded values in floating point."""

    def forward(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(dim=-1, keepdim=True) / 127
        return nn.functional.linear((x / scale).round() * scale, self.dequantize(), self.bias)


@pytest.mark.parametrize(
    ("dishonest", "kinds"),
    [(FloatInside, {"arithmetic", "input", "result"}), (FakeQuantized, {"arithmetic", "input", "result"})],
)
def test_a_quantized_layer_that_computes_in_float_is_found(
    checkpoint: Path, dishonest: type[QuantizedLinear], kinds: set[str]
) -> None:
    policy = load_policy(checkpoint)
    layer_of(policy).__class__ = dishonest
    assert found(policy, checkpoint) == kinds


def test_a_fallback_in_one_denoising_step_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)

    class SometimesFloat(QuantizedLinear):
        def forward(self, x: Tensor) -> Tensor:
            if policy.denoising_step.index == 7:
                return nn.functional.linear(x, self.dequantize(), self.bias)
            return super().forward(x)

    layer_of(policy).__class__ = SometimesFloat
    assert found(policy, checkpoint) == {"arithmetic", "input", "result"}


def test_a_product_outside_of_torch_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)

    class Elsewhere(QuantizedLinear):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = self.dequantize().numpy(), self.bias
            assert bias is not None
            return torch.from_numpy(x.numpy() @ weight.T + bias.numpy())

    layer_of(policy).__class__ = Elsewhere
    report = audit(policy, checkpoint)
    assert any("that torch dispatched" in difference.reason for difference in report.differences)
    assert planned(report, LAYER).operations == ()


def around(parent: nn.Module, call: Callable[[Any, Tensor], Tensor]) -> None:
    """Gives a parent another forward."""
    parent.forward = MethodType(call, parent)


def test_a_layer_whose_hooks_are_gone_around_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    around(
        policy.get_submodule(PARENT),
        lambda self, x: self.fc2(nn.functional.gelu(self.fc1.forward(x), approximate="tanh")),
    )
    assert found(policy, checkpoint) == {"bypassed", "not called"}


def test_a_layer_that_is_replaced_during_the_step_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    parent: Any = policy.get_submodule(PARENT)

    def swap(self: Any, x: Tensor) -> Tensor:
        if getattr(self, "steps", 0) == 10:
            self.fc1 = quantized(LAYER)
        self.steps = getattr(self, "steps", 0) + 1
        return self.fc2(nn.functional.gelu(self.fc1(x), approximate="tanh"))

    around(parent, swap)
    assert found(policy, checkpoint) == {"replaced", "not called"}


def test_a_layer_that_is_never_called_is_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    around(policy.get_submodule(PARENT), lambda self, x: self.fc2(nn.functional.pad(x, (0, 96))))
    assert found(policy, checkpoint) == {"not called"}
    assert planned(audit(policy, checkpoint), LAYER).calls == 0


@pytest.mark.parametrize("num_bits", sorted({2, 3, 4, 8} - {BITS[LAYER]}))
def test_wrong_bits_in_memory_are_found(checkpoint: Path, num_bits: int) -> None:
    policy = load_policy(checkpoint)
    replace_module(policy, LAYER, quantized(LAYER, num_bits=num_bits))
    assert "weight" in found(policy, checkpoint)


def test_other_integers_and_other_scales_are_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    layer = layer_of(policy)
    integers = layer.integers()
    integers[0, 0] = 1 if integers[0, 0] == 0 else 0
    other = QuantizedLinear.from_integers(integers, layer.weight_scale, layer.bias, num_bits=layer.num_bits)
    replace_module(policy, LAYER, other)
    assert "weight" in found(policy, checkpoint)

    policy = load_policy(checkpoint)
    layer_of(policy).weight_scale.mul_(1.01)
    assert found(policy, checkpoint) == {"weight", "result"}


def test_activations_of_other_bits_are_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    layer_of(policy).activation_bits = 4
    assert found(policy, checkpoint) == {"result"}

    policy = load_policy(checkpoint)
    layer_of(policy, FOUR_BIT_INPUT).activation_bits = 8
    assert "input" in found(policy, checkpoint, FOUR_BIT_INPUT)


def test_float_activations_must_stay_what_they_are(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    layer_of(policy, FLOAT_INPUT).activation_bits = 8
    assert found(policy, checkpoint, FLOAT_INPUT) == {"input", "result"}

    policy = load_policy(checkpoint)
    layer_of(policy, FLOAT_INPUT).__class__ = FakeQuantized
    assert found(policy, checkpoint, FLOAT_INPUT) == {"result"}


def test_other_zero_points_are_found(checkpoint: Path) -> None:
    policy = load_policy(checkpoint)
    layer = layer_of(policy, GROUPED)
    zero_points = layer.packed_weight().zero_points()
    zero_points[3, 1] += 1 if zero_points[3, 1] < 7 else -1
    other = QuantizedLinear.from_integers(
        layer.integers(),
        layer.weight_scale,
        layer.bias,
        num_bits=layer.num_bits,
        group_size=layer.group_size,
        zero_point=zero_points,
    )
    replace_module(policy, GROUPED, other)
    assert "weight" in found(policy, checkpoint, GROUPED)


def hold_in_list(policy: Policy) -> None:
    layer_of(policy).cache = [layer_of(policy).dequantize()]


def hold_in_closure(policy: Policy) -> None:
    layer_of(policy).cache = partial(torch.add, layer_of(policy).dequantize().half())


def hold_as_buffer(policy: Policy) -> None:
    layer_of(policy).register_buffer("copy", layer_of(policy).dequantize().bfloat16(), persistent=False)


def hold_in_parent(policy: Policy) -> None:
    copy = layer_of(policy).dequantize().t().contiguous()
    parent: Any = policy.get_submodule(PARENT)
    parent.answer = lambda x: x @ copy


def hold_in_policy(policy: Policy) -> None:
    policy.cache = {"weights": {LAYER: layer_of(policy).dequantize().flatten()}}  # type: ignore[assignment]


@pytest.mark.parametrize("plant", [hold_in_list, hold_in_closure, hold_as_buffer, hold_in_parent, hold_in_policy])
def test_a_float_copy_beside_the_packed_weight_is_found(checkpoint: Path, plant: Plant) -> None:
    policy = load_policy(checkpoint)
    plant(policy)
    report = audit(policy, checkpoint)
    assert [(difference.layer, difference.kind) for difference in report.differences] == [(LAYER, "float copy")]
    if plant in (hold_in_list, hold_as_buffer):
        layer = layer_of(policy)
        assert planned(report, LAYER).resident_bytes > layer.resident_bytes() + layer.in_features * layer.out_features


def test_a_kept_layer_must_be_bfloat16_and_the_checkpoints(checkpoint: Path) -> None:
    kept = next(name for name in KEPT if LAYERS[name] == "action_head")
    policy = load_policy(checkpoint)
    layer = layer_of(policy, kept)
    layer.weight = nn.Parameter(layer.resident_weight.float())
    assert found(policy, checkpoint, kept) == {"weight"}

    policy = load_policy(checkpoint)
    layer = layer_of(policy, kept)
    replace_module(policy, kept, BFloat16Linear(1.01 * layer.weight.float(), layer.bias))
    assert found(policy, checkpoint, kept) == {"weight", "result"}

    policy = load_policy(checkpoint)
    replace_module(policy, kept, quantized(kept))
    assert {"weight", "arithmetic", "result"} <= found(policy, checkpoint, kept)


def test_a_checkpoint_that_contradicts_itself_is_found(tmp_path: Path) -> None:
    plan = {"layers": [{"name": LAYER, "num_bits": 16}, {"name": ROTATED, "num_bits": 4}]}
    report = audit_checkpoint(write(tmp_path / "other", plan))
    assert [(difference.layer, difference.kind) for difference in report.differences] == [(LAYER, "plan")]


def test_bad_checkpoints_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="must hold an artifact of kind 'quantized-policy'"):
        audit_checkpoint("reference")
    with pytest.raises(UnknownNameError, match="policy must be"):
        audit_checkpoint("refrence")


def test_the_report_is_json(checkpoint: Path) -> None:
    written = audit_checkpoint(checkpoint, seed=3).to_json()
    assert (written["schema_version"], written["verdict"], written["observation"]) == (1, "as planned", "tabletop")
    assert written["differences"] == ()
    assert [layer["name"] for layer in written["layers"]] == list(LAYERS)


@pytest.mark.parametrize(("bfloat16", "slower"), [(1e-9, True), (1e9, False)])
def test_layers_that_are_slower_than_in_bfloat16_are_listed(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bfloat16: float, slower: bool
) -> None:
    monkeypatch.setattr(picker, "_choices", {})
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path)
    monkeypatch.setattr(picker, "_float_time", lambda *_: bfloat16)
    first = audit_checkpoint(checkpoint)
    ratios = {layer.name: layer.ratio_to_bfloat16 for layer in first.layers}
    assert {name for name, ratio in ratios.items() if ratio is None} == set(KEPT)
    assert first.slower_than_bfloat16 == ({name: ratios[name] for name in ratios if name not in KEPT} if slower else {})
    assert first.to_json()["slower_than_bfloat16"] == first.slower_than_bfloat16
    assert first.outcome == "as planned"
    # A later process recalls what was measured, and measures nothing itself.
    monkeypatch.setattr(picker, "_choices", {})
    monkeypatch.setattr(picker, "_float_time", None)
    later = audit_checkpoint(checkpoint)
    assert {layer.name: layer.ratio_to_bfloat16 for layer in later.layers} == ratios
