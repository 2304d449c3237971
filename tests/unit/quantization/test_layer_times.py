"""Times of layers at their own shapes, and which layers stay in floating point for them."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.allocation.even import EvenConfig
from daptq.artifacts import read_artifact
from daptq.errors import RecipeError
from daptq.layers import choices, picker
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.quantization import layer_times as module
from daptq.quantization.layer_times import faster_in_float, layer_times, rows_of_layers
from daptq.quantization.pipeline import quantize
from daptq.quantization.recipe import RoleActivationBits
from daptq.recipes.round_to_nearest import round_to_nearest

Times = dict[tuple[int, int], dict[int, float]]


def test_rows_are_those_of_one_observation() -> None:
    policy = SmallCogACTPolicy.tiny()
    rows = rows_of_layers(policy)
    assert set(rows) == set(policy.linear_layers())
    # Guidance doubles the chunk of 16 actions and its condition token; the condition itself is one row of each half.
    assert rows["action_model.net.blocks.0.mlp.fc1"] == 2 * (policy.chunk_size + 1)
    assert rows["action_model.net.z_embedder.linear"] == 2
    assert rows["llm_backbone.layers.0.mlp.up_proj"] > 4
    assert not any(module._forward_pre_hooks for module in policy.modules())


def test_layers_that_are_alike_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, asked = SmallCogACTPolicy.tiny(), []

    def measure(shapes: Iterable[tuple[int, int]], bits: Iterable[int], rows: int, **grid: Any) -> Times:
        asked.append((rows, grid["activation_bits"]))
        assert (grid["group_size"], grid["asymmetric"]) == (32, True)
        return {shape: {b: rows + b / 100 for b in bits} for shape in shapes}

    monkeypatch.setattr(module, "measure_layer_times", measure)
    recipe = replace(round_to_nearest(group_size=32, asymmetric=True), activation_bits=RoleActivationBits(language=16))
    options = dict.fromkeys(policy.linear_layers(), (4, 16))
    times = layer_times(policy, recipe, options)
    assert list(times) == list(options)
    assert len(asked) == len(set(asked)) < len(options)
    assert {bits for _, bits in asked} == {8, 16}
    rows = rows_of_layers(policy)
    assert times["action_model.net.final_layer.linear"] == {
        4: rows["action_model.net.final_layer.linear"] + 0.04,
        16: rows["action_model.net.final_layer.linear"] + 0.16,
    }


def test_only_a_clear_loss_of_every_low_bit_keeps_a_layer() -> None:
    times = {
        "slow": {2: 1.2, 4: 1.1, 16: 1.0},
        "noise": {2: 1.2, 4: 1.04, 16: 1.0},
        "one is fast": {2: 0.5, 4: 2.0, 16: 1.0},
    }
    assert faster_in_float(times) == {"slow": "faster"}


def test_layers_that_are_faster_in_float_stay_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = SmallCogACTPolicy.tiny()

    def measure(shapes: Iterable[tuple[int, int]], bits: Iterable[int], rows: int, **_: Any) -> Times:
        # Low bits lose at less than 5 rows.
        return {shape: {b: 1.0 if b == 16 or rows >= 5 else 2.0 for b in bits} for shape in shapes}

    monkeypatch.setattr(module, "measure_layer_times", measure)
    rows = rows_of_layers(policy)
    for asked in (False, True):
        out = quantize(policy, round_to_nearest(float_where_faster=asked), output=tmp_path / f"{asked}")
        plan = read_artifact(out, kind="quantized-policy").metadata["plan"]["layers"]
        kept = {layer["name"] for layer in plan if layer["reason"] == "faster"}
        scope = {name for name, role in policy.linear_layers().items() if role in ("language", "action_head")}
        assert kept == ({name for name in scope if rows[name] < 5} if asked else set())
        assert all(layer["num_bits"] == 16 for layer in plan if layer["name"] in kept)
    assert kept


def test_an_even_spread_keeps_no_layer() -> None:
    with pytest.raises(RecipeError, match="float_where_faster must be false with the allocation even"):
        replace(round_to_nearest(), allocation=EvenConfig(budget_bits=4.5), float_where_faster=True)
    with pytest.raises(RecipeError, match="float_where_faster must be true or false"):
        replace(round_to_nearest(), float_where_faster=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("floats", "level"), [(1e-9, logging.WARNING), (1e9, logging.INFO)])
def test_the_picker_says_where_low_bits_are_slower(
    floats: float, level: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path)
    monkeypatch.setattr(picker, "_float_time", lambda *_: floats)
    caplog.set_level(logging.INFO, logger="daptq.kernels")
    for process in ("first", "later"):
        monkeypatch.setattr(picker, "_choices", {})
        caplog.clear()
        layer = QuantizedLinear.from_integers(torch.ones(64, 512, dtype=torch.int8), torch.ones(64, 1))
        layer(torch.randn(2, 512))
        (record,) = (record for record in caplog.records if "kernel for" in record.getMessage())
        message = record.getMessage()
        assert ("measured by an earlier process" in message) == (process == "later")
        assert record.levelno == level
        assert f"bfloat16 takes {1e3 * floats:.3f} ms" in message
        assert ("low bits are slower here" in message) == (level == logging.WARNING)
        assert layer.backend is not None  # It has no float copy to go back to.
