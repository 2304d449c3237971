"""Quantizing a policy with two interfaces of many padded rows: keys and values of an attention's prefix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptq import load_policy
from daptq.allocation.plan import BitPlan, LayerBits
from daptq.artifacts import read_artifact
from daptq.calibration.observers import ROWS_PER_STATE, InterfaceStatistics, chosen_rows, observe_interfaces
from daptq.closed_loop.interface_stream import watch_episodes
from daptq.compensation.csrc import CsrcConfig
from daptq.compensation.paired import PairedConfig
from daptq.errors import InvalidInputError
from daptq.interfaces.affine import AffineMap
from daptq.observations import STATE, TASK
from daptq.policies.conformance import check_policy
from daptq.policies.contract import Policy
from daptq.quantization.assembly import share_tensors
from daptq.quantization.folding import Folder
from daptq.quantization.profile import ProfileStage
from daptq.quantization.profiling import Calibration
from daptq.quantization.rounding import Rounder
from daptq.quantization.stage import Inputs
from daptq.quantization.statistics import StatisticsStage
from daptq.recipes import da_ptq, da_ptq_plus, quantize
from tests.golden.interfaces.fold_cases import map_per_head, rotary_map
from tests.integration.quantization.attention_policy import KV_HEADS, SIZE, TOKENS, AttentionPolicy


@pytest.fixture
def policy(in_catalog: Callable[[type[Policy]], None]) -> AttentionPolicy:
    in_catalog(AttentionPolicy)
    return AttentionPolicy.tiny()


def silent(*_: Any) -> None:
    """Progress that nobody hears of."""


def test_it_keeps_the_contract(policy: AttentionPolicy) -> None:
    check_policy(policy)


def test_folded_weights_equal_the_explicit_maps(policy: AttentionPolicy) -> None:
    maps = {"keys": rotary_map(KV_HEADS, SIZE), "values": map_per_head(KV_HEADS, SIZE)}
    plan = BitPlan(tuple(LayerBits(name=name, num_bits=16, reason="test") for name in policy.linear_layers()))
    folder = Folder(policy, plan, "auto", Rounder(policy, da_ptq(), None, None))
    target = share_tensors(policy)
    entries = folder.put(maps, policy.interfaces(), target, {})
    assert [entry.kind for entry in entries] == ["attention-keys", "attention-values"]
    batch = policy.example_batch(3)
    with torch.no_grad():
        keys, values = policy.condition(batch)
        noise = policy.noise(len(keys), torch.Generator().manual_seed(0))
        expected = policy.denoise((maps["keys"](keys).float(), maps["values"](values).float()), noise)
        answer, before = target.denoise((keys, values), noise), policy.denoise((keys, values), noise)
    assert float((before - expected).norm() / expected.norm()) > 0.1
    assert float((answer - expected).norm() / expected.norm()) < 3e-6


@pytest.mark.parametrize("compensation", [CsrcConfig(), CsrcConfig(selection="always"), PairedConfig()])
@pytest.mark.parametrize("order", ["compensation-first", "allocation-first"])
def test_both_interfaces_are_compensated(
    policy: AttentionPolicy, held: Any, tmp_path: Path, compensation: Any, order: Any
) -> None:
    recipe = replace(da_ptq(order=order, keep_last_blocks=0), compensation=compensation)
    out = quantize(policy, recipe, data=held(policy, 8), output=tmp_path / "out")
    folding = read_artifact(out, kind="quantized-policy").metadata["folding"]
    assert [entry["interface"] for entry in folding] == ["keys", "values"]
    for entry in folding:
        rounded = order == "allocation-first" and entry["kind"].endswith("-rounded")
        looked_at = order == "allocation-first" and compensation.selection != "always"
        assert (entry["rounded_errors"] is not None) == looked_at
        assert entry["kind"].removesuffix("-rounded") in ("none", f"attention-{entry['interface']}")
        assert bool(entry["rounding_errors"]) == rounded
    again = load_policy(out)
    batch = policy.example_batch(5)
    with torch.no_grad():
        chunks = [one.predict_chunk(batch, torch.Generator().manual_seed(1)) for one in (policy, again)]
    assert float((chunks[0] - chunks[1]).norm() / chunks[0].norm()) < 0.3


def test_da_ptq_plus_runs(policy: AttentionPolicy, held: Any, tmp_path: Path) -> None:
    out = quantize(policy, da_ptq_plus(budget_bits=8.0), data=held(policy, 8), output=tmp_path / "out")
    assert load_policy(out).family == "attention"


def test_padding_is_left_out_and_rows_are_limited(policy: AttentionPolicy) -> None:
    batch = policy.example_batch(0)
    seen: dict[str, Tensor] = {}
    with observe_interfaces(policy, policy.interfaces(), batch, seen.__setitem__, seed=4):
        policy.condition(batch)
    keys, _ = policy.condition(batch)
    states = len(batch[STATE])
    assert {name: len(rows) for name, rows in seen.items()} == dict.fromkeys(
        ("keys", "values"), states // 2 * (ROWS_PER_STATE + TOKENS // 2)
    )
    allowed = [keys[state, : TOKENS if state % 2 == 0 else TOKENS // 2] for state in range(states)]
    start = 0
    for rows in allowed:
        count = min(len(rows), ROWS_PER_STATE)
        where = [int((rows == row).all(dim=1).nonzero()) for row in seen["keys"][start : start + count]]
        assert where == sorted(set(where)), "rows of a state are drawn once each and stay in order"
        start += count


def test_a_monitor_sees_every_prediction_without_padding(policy: AttentionPolicy) -> None:
    """Two episodes side by side, the second half padded; the taps are passed before the first denoising step."""
    batches = [{key: value[:2] for key, value in policy.example_batch(seed).items()} for seed in (0, 1, 2)]
    with watch_episodes(policy, batches[0][TASK]) as streams:
        for seed, batch in enumerate(batches):
            policy.predict_chunk(batch, torch.Generator().manual_seed(seed))
    assert policy.observed is None
    keys = [policy.condition(batch)[0].double() for batch in batches]
    for episode, (stream, rows) in enumerate(zip(streams, (TOKENS, TOKENS // 2), strict=True)):
        seen = torch.cat([one[episode, :rows] for one in keys])
        assert stream.moments["keys"].count == len(seen) == 3 * rows
        torch.testing.assert_close(stream.moments["keys"].mean, seen.mean(dim=0))
        torch.testing.assert_close(stream.moments["keys"].covariance(), seen.mT.cov(correction=0))


def test_the_same_rows_are_drawn_for_the_same_batch() -> None:
    rows = torch.arange(60.0).view(2, 30, 1)
    mask = torch.ones(2, 30, dtype=torch.bool)
    first = chosen_rows(rows, mask, limit=8, seed=1)
    assert torch.equal(first, chosen_rows(rows, None, limit=8, seed=1))
    assert not torch.equal(first, chosen_rows(rows, mask, limit=8, seed=2))
    assert torch.equal(chosen_rows(rows[:, :8], None, limit=8, seed=1), rows[:, :8].flatten(0, 1))
    assert len(chosen_rows(rows, torch.zeros_like(mask), limit=8, seed=1)) == 0
    with pytest.raises(InvalidInputError, match=r"interface_mask must be a boolean tensor \(2, 30\)"):
        chosen_rows(rows, mask[:, :29], limit=8, seed=1)


def test_memory_does_not_grow_with_rows() -> None:
    statistics = InterfaceStatistics()
    for count in (8, 800):
        statistics.hold_out("a", chosen_rows(torch.randn(3, count, 2), None, limit=8, seed=0))
    assert len(statistics.held_out("a")) == 2 * 3 * 8


def test_sensitivity_counts_states_and_adds_rows_and_uses(
    policy: AttentionPolicy, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H is the mean over states of g g^T summed over rows without padding, g the gradient through both flow steps."""
    direction = torch.randn(14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def projected(chunk: Tensor, *_: Any) -> Tensor:
        return (chunk.flatten(1).double() @ direction).sum() / len(chunk) ** 0.5

    monkeypatch.setattr("daptq.quantization.statistics.probe", projected)
    recipe = replace(da_ptq_plus(), calibration_states=18)
    calibration = Calibration.checked(held(policy, 3), policy, limit=18, seed=2, progress=silent)
    inputs = Inputs(policy=policy, recipe=recipe, calibration=calibration, progress=silent)
    tensors, _ = StatisticsStage(inputs=inputs, profile=ProfileStage(inputs=inputs).profile()).compute()
    found = dict(tensors)
    expected = {name: torch.zeros(12, 12, dtype=torch.float64) for name in ("keys", "values")}
    for batch, generator in calibration:
        condition = tuple(one.detach().requires_grad_() for one in policy.condition(batch))
        noise = policy.noise(len(batch[STATE]), generator)
        value = (policy.executed(policy.denoise(condition, noise), batch).flatten(1).double() @ direction).sum()
        mask = policy.interface_mask("keys", batch)
        for name, gradient in zip(expected, torch.autograd.grad(value, condition), strict=True):
            rows = gradient.double()[mask]
            expected[name] += rows.mT @ rows / calibration.states
    for name, h in expected.items():
        torch.testing.assert_close(found[f"{name}/sensitivity"], h, rtol=1e-5, atol=1e-9)


def test_a_map_that_rounding_ruins_is_refused(chain: Any) -> None:
    """The map repairs the representation entirely, but a 2-bit consumer with it inside keeps one channel alone."""
    from daptq.compensation.selection import select_map
    from daptq.quantization.rounded_errors import HeldOut, rounded_errors

    gain = torch.ones(10, dtype=torch.float64)
    gain[0] = 40.0
    perfect = AffineMap(matrix=torch.diag(gain), shift=torch.zeros(10).double())
    full = torch.randn(50, 10, generator=torch.Generator().manual_seed(3))
    full[:, 0] *= 0.5
    held_out = HeldOut(
        full=full, quantized=full / gain.float(), inputs={}, mean=full.mean(0).double(), sensitivity=None
    )

    def chosen(bits: int) -> Any:
        plan = BitPlan(
            tuple(
                LayerBits(name=name, num_bits=bits if name == "consumer" else 16, reason="test")
                for name in chain.linear_layers()
            )
        )
        (interface,) = chain.interfaces()
        folder = Folder(chain, plan, "consumer", Rounder(chain, da_ptq(), None, None))
        fold = folder.fold_of(interface)
        return select_map(
            {"perfect": perfect},
            held_out.quantized,
            held_out.full,
            held_out.mean,
            max_condition=1e3,
            always=False,
            rounded_errors=lambda maps: rounded_errors(folder, fold, maps, held_out),
        )

    kept, coarse, fine = chosen(16), chosen(2), chosen(8)
    assert kept.errors == coarse.errors
    assert kept.errors["perfect"] < 1e-12 < kept.errors["none"]
    assert (kept.name, kept.rounded_errors) == ("perfect", None)
    assert fine.name == "perfect"
    assert coarse.name == "none"
    assert coarse.rounded_errors["perfect"] > coarse.rounded_errors["none"]
    assert "worse than none once folded and rounded: perfect" in coarse.reason


def test_a_producer_is_judged_by_its_own_inputs(chain: Any) -> None:
    """A map into the producer's weight, rounded anew, leaves the error of the rounded producer's output."""
    from daptq.interfaces.into_producer import IntoProducer
    from daptq.quantization.rounded_errors import HeldOut, rounded_errors

    plan = BitPlan(tuple(LayerBits(name=name, num_bits=2, reason="test") for name in chain.linear_layers()))
    rounder = Rounder(
        chain, replace(da_ptq(), activation_bits=replace(da_ptq().activation_bits, language=16)), None, None
    )
    folder = Folder(chain, plan, "producer", rounder)
    (interface,) = chain.interfaces()
    fold = folder.fold_of(interface)
    assert fold == IntoProducer("language.2")
    assert folder.recorded(fold) == ("language.2",)
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    full = chain.language[2](x).detach()
    dense = AffineMap(
        matrix=torch.eye(10).double() + 0.2 * torch.randn(10, 10, generator=torch.Generator().manual_seed(2)).double(),
        shift=torch.ones(10).double(),
    )
    held_out = HeldOut(
        full=full, quantized=0.9 * full, inputs={"language.2": x}, mean=full.mean(0).double(), sensitivity=None
    )
    errors = rounded_errors(folder, fold, {"none": AffineMap.identity(10), "dense": dense}, held_out)
    weight = rounder.round("language.2", (dense.matrix @ chain.language[2].weight.double()).float(), 2).dequantize()
    output = x.double() @ weight.double().mT + dense(chain.language[2].bias.detach())
    assert errors is not None
    assert errors["none"] == pytest.approx(held_out.error(held_out.quantized), rel=1e-12)
    assert errors["dense"] == pytest.approx(held_out.error(output), rel=1e-6)
