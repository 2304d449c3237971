"""The runtimes of the extra `benchmark` on the small policy: each runs, and says what torch says."""

from __future__ import annotations

from pathlib import Path

import pytest

from daptq.evaluation._control_step import control_step
from daptq.evaluation._float_paths import FLOAT_PATHS, float_paths
from daptq.evaluation.benchmark import benchmark
from daptq.packing.checkpoint import save_policy
from daptq.policies import cogact

pytestmark = pytest.mark.benchmark

RUNTIMES = ["torch-compile", "openvino-float32", "onnxruntime-float32"]


# Exporters and compilers warn of their own affairs.
@pytest.mark.filterwarnings("ignore")
def test_every_float32_runtime_says_what_torch_says() -> None:
    policy = cogact.tiny()
    built, skipped = float_paths(policy, control_step(policy), RUNTIMES, lambda name: None)
    assert skipped == []
    assert [path.name for path in built] == RUNTIMES
    # float32 sums in another order, through ten denoising steps of a policy whose actions are below 1.
    assert all(path.max_abs_difference < 1e-4 for path in built)


@pytest.mark.filterwarnings("ignore")
def test_every_candidate_is_measured_or_has_a_reason(tmp_path: Path) -> None:
    first, second = (str(save_policy(cogact.tiny(seed), tmp_path / f"tiny-{seed}")) for seed in (0, 1))
    result = benchmark([second], against=first, repeats=2, warmup=1)
    measured = [path["name"] for path in result["float_paths"]]
    left_out = {skipped["name"]: skipped["reason"] for skipped in result["skipped"]}
    assert sorted([*measured, *left_out]) == sorted(FLOAT_PATHS)
    assert set(RUNTIMES) <= set(measured)
    assert all(left_out.values())
    floats = {path["name"] for path in result["float_paths"] if path["kind"] == "float"}
    assert result["float_path"]["name"] in floats
