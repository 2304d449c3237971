"""A policy whose weights stay in files computes, and is quantized to, exactly what the policy in memory is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from daptq.allocation.top_fraction import TopFractionConfig
from daptq.calibration.contract import CalibrationSource
from daptq.errors import InvalidInputError, RecipeError
from daptq.methods import Needs
from daptq.packing.checkpoint import load_policy, save_policy
from daptq.policies import cogact_public as cogact_prismatic
from daptq.policies import cogact_small as cogact
from daptq.policies.contract import Batch, Policy
from daptq.policies.stored_weights import StoredWeights
from daptq.quantization.recipe import Recipe
from daptq.recipes import da_ptq, quantize, round_to_nearest
from daptq.rounding.gptq import GptqConfig
from daptq.sensitivity.contract import Passes, SensitivityMethod
from daptq.sensitivity.phi import SensitivityConfig

FAMILIES = [cogact, cogact_prismatic]


class MadeUp(CalibrationSource):
    """Two example batches."""

    hash, licence, description = "made-up", "CC0-1.0", "made-up states"

    def __init__(self, policy: Policy) -> None:
        self.batches = [policy.example_batch(seed) for seed in range(2)]

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda module: module.POLICY.family)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small policy in bfloat16."""
    family: ModuleType = request.param
    return save_policy(family.POLICY.tiny(), tmp_path_factory.mktemp("policy") / "policy")


def content(folder: Path) -> dict[str, bytes]:
    """Every byte of a checkpoint, except when it was made and the checksum over that."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["sha256"], manifest["metadata"]["provenance"]["time"]
    return {**files, "manifest": json.dumps(manifest).encode()}


def chunk(policy: Policy) -> Tensor:
    with torch.inference_mode():
        return policy.predict_chunk(policy.example_batch(0), torch.Generator().manual_seed(0))


def test_a_streamed_policy_predicts_the_same_chunk(folder: Path) -> None:
    whole, streamed = load_policy(folder), load_policy(folder, stream=True)
    assert torch.equal(chunk(whole), chunk(streamed))
    in_files = {name for name, parameter in streamed.named_parameters() if parameter.is_meta}
    assert len(in_files) > 10
    # The public DiT carries one layer that never runs and belongs to no block.
    assert {name for name in in_files if name.startswith("action_model")} == {
        "action_model.net.history_embedder.linear.weight"
    }
    tensors = streamed.tensors()
    assert list(tensors) == list(whole.state_dict())
    assert all(torch.equal(tensors[name], values) for name, values in whole.state_dict().items())


@pytest.mark.parametrize(
    "recipe",
    [
        round_to_nearest(),
        da_ptq(),
        replace(da_ptq(), order="allocation-first", folding="consumer"),
        replace(da_ptq(), rounding=GptqConfig(drift_weighted=False), allocation=None),
    ],
    ids=["nearest", "da-ptq", "allocation-first", "gptq"],
)
def test_a_streamed_policy_is_quantized_to_the_same_bytes(folder: Path, tmp_path: Path, recipe: Recipe) -> None:
    results = []
    for stream in (False, True):
        policy = load_policy(folder, stream=stream)
        data = MadeUp(policy) if recipe.needs.data else None
        results.append(content(quantize(policy, recipe, data=data, output=tmp_path / str(stream))))
    assert results[0] == results[1]


def test_gradients_of_weights_in_files_are_refused(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder, stream=True)
    recipe = replace(da_ptq(), rounding=GptqConfig(drift_weighted=True))
    with pytest.raises(RecipeError, match="must take gradients of layers in memory alone"):
        quantize(policy, recipe, data=MadeUp(policy), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@dataclass(frozen=True, kw_only=True)
class RoundingError(SensitivityMethod):
    """How much of a weight rounding loses; it reads weights alone."""

    method: ClassVar[str] = "rounding-error"
    needs: ClassVar[Needs] = Needs(data=True)

    asks_for_gradients: bool = False

    def scores(self, passes: Passes) -> dict[str, dict[int, float]]:
        if self.asks_for_gradients:
            with passes.gradients(tuple(passes.bits)):
                pass
        found = {}
        for name, bits in passes.bits.items():
            weight = passes.weight(name)
            assert weight.dtype == torch.float32
            assert not weight.requires_grad
            found[name] = {b: float((passes.rounded(name, b) - weight).norm()) for b in bits}
        return found


def test_a_sensitivity_that_reads_weights_alone_scores_layers_in_files(folder: Path, tmp_path: Path) -> None:
    everywhere = TopFractionConfig(scope="all", keep_last_blocks=0)
    recipe = replace(da_ptq(), allocation=everywhere, sensitivity=RoundingError(), order="allocation-first")
    results = []
    for stream in (False, True):
        policy = load_policy(folder, stream=stream)
        results.append(content(quantize(policy, recipe, data=MadeUp(policy), output=tmp_path / str(stream))))
    assert results[0] == results[1]
    plan = json.loads(results[0]["manifest"])["metadata"]["plan"]["layers"]
    policy = load_policy(folder, stream=True)
    in_files = {f"{entry['name']}.weight" for entry in plan if entry["score"] is not None} & {
        name for name, parameter in policy.named_parameters() if parameter.is_meta
    }
    assert in_files
    phi = replace(recipe, sensitivity=SensitivityConfig())
    with pytest.raises(RecipeError, match="must take gradients of layers in memory alone"):
        quantize(policy, phi, data=MadeUp(policy), output=tmp_path / "phi")


def test_gradients_that_were_not_asked_for_are_refused(folder: Path, tmp_path: Path) -> None:
    policy = load_policy(folder)
    recipe = replace(da_ptq(), sensitivity=RoundingError(asks_for_gradients=True))
    with pytest.raises(InvalidInputError, match="needs of the sensitivity rounding-error must include gradients"):
        quantize(policy, recipe, data=MadeUp(policy), output=tmp_path / "out")


def test_never_more_than_a_few_layers_are_in_memory(tmp_path: Path, live_weights: Any) -> None:
    config = cogact_prismatic.POLICY.tiny().config()
    config |= {"language_width": 128, "language_depth": 12, "language_heads": 4, "language_mlp": 384}
    policy = cogact_prismatic.POLICY.from_config(config, cogact_prismatic.POLICY.tiny().files())
    save_policy(policy, tmp_path / "policy")
    weights = sum(parameter.nbytes for parameter in policy.parameters())
    del policy
    streamed = load_policy(tmp_path / "policy", stream=True)
    quantize(streamed, da_ptq(), data=MadeUp(streamed), output=tmp_path / "out")
    # Every pass reads every weight, and at no time are more than a few of them alive.
    assert live_weights.total > 3 * weights
    assert live_weights.peak < 0.1 * weights


def test_the_count_of_living_weights_can_fail(folder: Path, live_weights: Any) -> None:
    streamed = load_policy(folder, stream=True)
    kept = dict(streamed.tensors())
    assert live_weights.peak == sum(kept[n].nbytes for n, p in streamed.named_parameters() if p.is_meta) > 0


class LiveWeights:
    """Bytes of weights that were read from files and are still alive."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self.alive: list[tuple[StorageWeakRef, int]] = []
        self.total = self.peak = 0

    def add(self, values: Tensor) -> None:
        self.alive = [entry for entry in self.alive if not entry[0].expired()]
        self.alive.append((StorageWeakRef(values.untyped_storage()), values.nbytes))
        self.total += values.nbytes
        self.peak = max(self.peak, sum(size for _, size in self.alive))


@pytest.fixture
def live_weights(monkeypatch: pytest.MonkeyPatch) -> LiveWeights:
    """Watches every weight that is read."""
    live = LiveWeights()
    original = StoredWeights.tensor

    def tensor(self: StoredWeights, name: str) -> Tensor:
        values = original(self, name)
        live.add(values)
        return values

    monkeypatch.setattr(StoredWeights, "tensor", tensor)
    return live


KILLED_RUN = textwrap.dedent(
    """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    from daptq.calibration.contract import CalibrationSource
    from daptq.packing.checkpoint import load_policy
    from daptq.recipes import da_ptq, quantize

    policy = load_policy(sys.argv[1], stream=True)

    class Source(CalibrationSource):
        hash, licence, description = "made-up", "CC0-1.0", "made-up states"
        def __iter__(self):
            return iter([policy.example_batch(seed) for seed in range(2)])

    def progress(done, total, stage):
        if [stage, str(done)] == sys.argv[3:]:
            os.kill(os.getpid(), signal.SIGKILL)

    quantize(policy, da_ptq(), data=Source(), output=sys.argv[2], progress=progress)
    """
)


@pytest.mark.parametrize(("stage", "done"), [("round", 12), ("measure", 1), ("write", 0)])
def test_a_killed_streamed_run_continues_to_the_same_bytes(tmp_path: Path, stage: str, done: int) -> None:
    torch.set_num_threads(1)
    try:
        save_policy(cogact_prismatic.POLICY.tiny(), tmp_path / "policy")
        policy = load_policy(tmp_path / "policy", stream=True)
        straight = content(quantize(policy, da_ptq(), data=MadeUp(policy), output=tmp_path / "straight"))
        command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "policy"), str(tmp_path / "out"), stage, str(done)]
        killed = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        assert killed.returncode == -signal.SIGKILL
        rounded: list[int] = []
        quantize(
            policy,
            da_ptq(),
            data=MadeUp(policy),
            output=tmp_path / "out",
            progress=lambda done, _, name: rounded.append(done) if name == "round" else None,
        )
    finally:
        torch.set_num_threads(2)
    assert content(tmp_path / "out") == straight
    # Blocks that were finished before the kill are not rounded again.
    assert (rounded[0] > 1) if stage == "round" else rounded == []
