"""Evaluation in the real environment, in one process and in several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from daptq.closed_loop.episodes import schedule_episodes
from daptq.closed_loop.rollout import Branch, run_branches, run_episode
from daptq.environments import tabletop
from daptq.evaluation.worker_context import PolicySource
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.rounding.nearest import round_weight
from tests.closed_loop.json_results import evaluated

TASKS = ("spoon_on_towel", "eggplant_in_basket")
SETTINGS: dict[str, Any] = {"tasks": TASKS, "episodes": 2, "seed": 3, "drift_states": 2}


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A folder with the tiny policy, its language model and action head rounded to 4 bits."""
    policy = SmallCogACTPolicy.tiny()
    layers = {}
    for name, role in policy.linear_layers().items():
        if role in ("language", "action_head"):
            linear: Any = policy.get_submodule(name)
            rounded = round_weight(linear.weight.detach(), 4)
            layers[name] = QuantizedLinear.from_integers(rounded.integers, rounded.scale, linear.bias)
    folder = tmp_path / "quantized"
    return save_quantized(policy, folder, layers=layers, plan={}, folding={}, recipe={}, provenance={})


@pytest.mark.slow
def test_workers_change_nothing_and_a_policy_equals_itself(quantized: Path) -> None:
    def run(workers: int) -> dict[str, Any]:
        candidates: dict[str, PolicySource] = {"same": SmallCogACTPolicy.tiny(), "quantized": quantized}
        result = evaluated(candidates, against=SmallCogACTPolicy.tiny(0), workers=workers, **SETTINGS)
        del result["provenance"]
        return result

    alone, together = run(1), run(2)
    assert together == alone
    same, other = alone["comparisons"]
    assert same["paired"]["difference"] == 0.0
    assert same["drift"]["whole_episode"]["position_mm"]["rms"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    for entry in same["drift"]["identical_states"]["after_steps"]:
        assert entry["position_mm"]["rms"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        assert entry["rotation_deg"]["rms"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    # The comparison can tell policies apart.
    assert other["drift"]["identical_states"]["after_steps"][-1]["position_mm"]["rms"]["value"] > 1e-3
    described = alone["policies"][2]
    assert {layer["num_bits"] for layer in described["layers"] if layer["role"] == "language"} == {4}
    assert described["weights"]["bytes_on_disk"] < 1.5 * sum(layer["parameters"] for layer in described["layers"])


def test_a_branch_continues_the_episode_bit_for_bit() -> None:
    policy = SmallCogACTPolicy.tiny()
    (episode,) = schedule_episodes(TASKS[:1], episodes=1, seed=0, drift_states=3, possible_steps=range(0, 12, 4))
    environment = tabletop.make(image_size=policy.cameras)
    environment.horizon = 14
    try:
        record = run_episode(environment, policy, episode, label="p")
        for step, state in record.states.items():
            start = Branch(episode=episode, step=step, state=state)
            (branch,) = run_branches([environment], policy, [start], steps=6, label="p")
            assert np.array_equal(branch.motion.positions, record.motion.positions[step : step + 6])
            assert np.array_equal(branch.motion.rotations, record.motion.rotations[step : step + 6])
    finally:
        environment.close()
