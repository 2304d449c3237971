"""Both recipes on a tiny CogACT, from the policy to a checkpoint that loads and predicts."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.allocation.top_fraction import TopFractionConfig
from daptq.compensation.csrc import CsrcConfig
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy
from daptq.recipes import Recipe, da_ptq, quantize, round_to_nearest
from daptq.rounding.nearest import round_weight

CONSUMER = "action_model.net.z_embedder.linear"


def metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["metadata"]


def reasons(folder: Path) -> dict[str, tuple[int, str]]:
    return {layer["name"]: (layer["num_bits"], layer["reason"]) for layer in metadata(folder)["plan"]["layers"]}


def predicted(policy: Policy, seed: int = 77) -> Tensor:
    with torch.no_grad():
        return policy.predict_target(policy.example_batch(seed), torch.Generator().manual_seed(0)).predicted


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_round_to_nearest_rounds_language_and_action_head(
    cogact: SmallCogACTPolicy, tmp_path: Path, num_bits: int
) -> None:
    out = quantize(cogact, round_to_nearest(weight_bits=num_bits), output=tmp_path / "out")
    loaded = load_policy(out)
    for name, role in cogact.linear_layers().items():
        layer, original = loaded.get_submodule(name), cogact.get_submodule(name)
        weight = original.weight
        assert isinstance(weight, Tensor)
        if role in ("language", "action_head"):
            assert isinstance(layer, QuantizedLinear)
            rounded = round_weight(weight, num_bits)
            integers, scale = rounded.integers, rounded.scale
            assert torch.equal(layer.integers(), integers)
            assert torch.equal(layer.weight_scale, scale)
        else:
            assert isinstance(layer, BFloat16Linear)
            assert torch.equal(layer.resident_weight, weight.bfloat16())
    assert list(tmp_path.iterdir()) == [out], "the working folder is gone"


def test_more_bits_are_closer(cogact: SmallCogACTPolicy, tmp_path: Path) -> None:
    full = predicted(cogact)
    errors = []
    for bits in (2, 3, 4, 8):
        out = quantize(cogact, round_to_nearest(weight_bits=bits), output=tmp_path / str(bits))
        errors.append(float((predicted(load_policy(out)) - full).norm() / full.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_da_ptq_follows_algorithm_1(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    out = quantize(cogact, da_ptq(), data=held(cogact, 8), output=tmp_path / "out")
    plan, decided = metadata(out)["plan"], reasons(out)
    head = [name for name, role in cogact.linear_layers().items() if role == "action_head"]
    scores = {layer["name"]: layer["score"] for layer in plan["layers"] if layer["name"] in head}
    top = sorted(head, key=lambda name: -scores[name])[: int(0.3 * len(head))]
    last = [name for name in head if ".blocks.2." in name or ".blocks.3." in name]
    kept = {name for name in head if decided[name][0] == 16}
    assert kept == {*top, *last, CONSUMER}
    assert decided[CONSUMER] == (16, "folding")
    assert all(decided[name] == (4, "role") for name, role in cogact.linear_layers().items() if role == "language")
    assert all(decided[name] == (16, "role") for name, role in cogact.linear_layers().items() if role == "vision")
    assert sum(plan["drift_weights"]) / 7 == pytest.approx(1.0, abs=1e-15)
    assert plan["calibration_steps"] == 8
    (folding,) = metadata(out)["folding"]
    assert folding["kind"] == "consumer"
    assert folding["layers"] == [CONSUMER]
    assert folding["fitted_rows"] == 12
    assert folding["judged_rows"] == 4
    assert folding["errors"][folding["map"]] <= folding["errors"]["none"]
    assert Recipe.from_json(metadata(out)["recipe"]) == da_ptq()
    assert {layer for layer, module in load_policy(out).named_modules() if isinstance(module, QuantizedLinear)} == {
        name for name, (bits, _) in decided.items() if bits == 4
    }


def test_allocation_first_folds_where_the_plan_allows(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = replace(da_ptq(order="allocation-first"), allocation=TopFractionConfig(fraction=0.0, keep_last_blocks=0))
    out = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out")
    (folding,) = metadata(out)["folding"]
    assert folding["kind"] == "consumer-rounded"
    assert 0 < folding["rounding_errors"][CONSUMER] < 0.3
    assert reasons(out)[CONSUMER] == (4, "rest")


def test_explicit_consumer_is_kept_in_either_order(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = da_ptq(order="allocation-first", folding="consumer", keep_fraction=0.0)
    out = quantize(cogact, recipe, data=held(cogact, 4), output=tmp_path / "out")
    assert reasons(out)[CONSUMER] == (16, "folding")
    assert metadata(out)["folding"][0]["kind"] == "consumer"


def test_compensation_alone_keeps_the_consumer_only(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    out = quantize(cogact, replace(da_ptq(), allocation=None), data=held(cogact, 4), output=tmp_path / "out")
    kept = [name for name, (bits, reason) in reasons(out).items() if bits == 16 and reason != "role"]
    assert kept == [CONSUMER]


def test_scope_all_ranks_the_language_model_too(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    recipe = replace(
        da_ptq(compensation="none"), allocation=TopFractionConfig(fraction=0.5, scope="all", keep_last_blocks=0)
    )
    out = quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out")
    ranked = [layer for layer in metadata(out)["plan"]["layers"] if layer["score"] is not None]
    assert any(layer["name"].startswith("llm_backbone") for layer in ranked)
    assert sum(layer["num_bits"] == 16 for layer in ranked) == len(ranked) // 2


class OperatorCount(TorchDispatchMode):
    """Counts the operators that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operators(policy: Policy) -> Counter[str]:
    batch = policy.example_batch(0)
    with torch.no_grad():
        policy.predict_chunk(batch, torch.Generator().manual_seed(0))  # every layer chooses its kernel first
        count = OperatorCount()
        with count:
            policy.predict_chunk(batch, torch.Generator().manual_seed(0))
    return count.seen


def test_compensation_adds_no_operator(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    # With the whole action head kept, both plans are the same but for the folded weights.
    with_map, without = (
        load_policy(
            quantize(
                cogact,
                da_ptq(keep_fraction=1.0, compensation=compensation),
                data=held(cogact, 4),
                output=tmp_path / compensation,
            )
        )
        for compensation in ("cross-channel", "none")
    )
    (folding,) = metadata(tmp_path / "cross-channel")["folding"]
    assert folding["map"] == "cross-channel"
    assert [type(module) for module in with_map.modules()] == [type(module) for module in without.modules()]
    assert operators(with_map) == operators(without)


def test_operators_can_differ(cogact: SmallCogACTPolicy) -> None:
    before = operators(cogact)
    with_relu = cogact.action_model.net.z_embedder.register_forward_hook(lambda _, __, output: torch.relu(output))
    try:
        assert operators(cogact) != before
    finally:
        with_relu.remove()


def test_one_batch_is_fitted_and_judged_and_the_plan_says_so(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any
) -> None:
    out = quantize(cogact, da_ptq(), data=held(cogact, 1), output=tmp_path / "out")
    (folding,) = metadata(out)["folding"]
    assert folding["judged_on_fit"] is True
    assert folding["fitted_rows"] == folding["judged_rows"] == 2


def test_a_useless_map_is_skipped_aloud(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # Gains that may only shrink, and a huge floor under the deviation: every channel is halved.
    harmful = CsrcConfig(cross_channel=False, gain_min=0.5, gain_max=1.0, epsilon=1e9)
    with caplog.at_level(logging.WARNING):
        out = quantize(
            cogact,
            replace(da_ptq(weight_bits=8), compensation=harmful),
            data=held(cogact, 4),
            output=tmp_path / "out",
        )
    (folding,) = metadata(out)["folding"]
    assert folding["map"] == folding["kind"] == "none"
    assert folding["errors"]["per-channel"] > folding["errors"]["none"]
    assert "no map is applied" in caplog.text
    assert reasons(out)[CONSUMER][1] != "folding", "nothing has to be kept for a map that is not applied"


def test_the_policy_is_left_as_it_was(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    state = {name: tensor.clone() for name, tensor in cogact.state_dict().items()}
    required = [parameter.requires_grad for parameter in cogact.parameters()]
    cogact.train()
    quantize(cogact, da_ptq(), data=held(cogact, 2), output=tmp_path / "out")
    assert cogact.training
    cogact.eval()
    assert [parameter.requires_grad for parameter in cogact.parameters()] == required
    assert all(torch.equal(tensor, state[name]) for name, tensor in cogact.state_dict().items())
    assert not any(isinstance(module, QuantizedLinear) for module in cogact.modules())
    assert all(isinstance(cogact.get_submodule(name), nn.Linear) for name in cogact.linear_layers())


def test_progress_is_reported_for_every_stage(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    steps: list[tuple[str, int, int]] = []
    quantize(
        cogact,
        da_ptq(calibration_states=7),
        data=held(cogact, 5),
        output=tmp_path / "out",
        progress=lambda done, total, stage: steps.append((stage, done, total)),
    )
    assert list(dict.fromkeys(stage for stage, _, _ in steps)) == ["check", "profile", "round", "measure", "write"]
    for stage in ("check", "profile", "round", "measure", "write"):
        done, total = [step[1:] for step in steps if step[0] == stage][-1]
        assert done == total
    assert ("check", 7, 7) in steps
    assert ("profile", 4, 4) in steps
