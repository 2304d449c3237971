"""The extra `benchmark` on the small policy: runtimes say what torch says, other libraries multiply 4-bit weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.benchmarking.benchmark import benchmark
from daptq.benchmarking.control_step import control_step
from daptq.benchmarking.float_paths import (
    BITSANDBYTES_INPUTS,
    BITSANDBYTES_OUTPUTS,
    FLOAT_PATHS,
    TORCHAO_INPUTS,
    TORCHAO_OUTPUTS,
    fitting,
    float_paths,
)
from daptq.packing.checkpoint import load_policy, save_policy
from daptq.policies import cogact_small as cogact

pytestmark = pytest.mark.benchmark

RUNTIMES = ["torch-compile", "openvino-float32", "onnxruntime-float32"]
# What each library multiplies 4-bit weights with; bitsandbytes has a product for AVX512_BF16 and unpacks elsewhere.
PRODUCTS = {
    "torchao-int4": {"aten::_weight_int4pack_mm_for_cpu"},
    "bitsandbytes-nf4": {"bitsandbytes::gemv_4bit", "bitsandbytes::dequantize_4bit"},
}


class Operations(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


# Exporters and compilers warn of their own affairs.
@pytest.mark.filterwarnings("ignore")
def test_every_float32_runtime_says_what_torch_says() -> None:
    policy = cogact.POLICY.tiny()
    built, skipped = float_paths(policy, control_step(policy), RUNTIMES, lambda name: None)
    assert skipped == []
    assert [path.name for path in built] == RUNTIMES
    # float32 sums in another order, through ten denoising steps of a policy whose actions are below 1.
    assert all(path.max_abs_difference < 1e-4 for path in built)


@pytest.mark.filterwarnings("ignore")
def test_bfloat16_compiles_and_rounds_as_it_does_in_eager_mode(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "torch-compile-bfloat16"
    monkeypatch.setitem(FLOAT_PATHS, name, replace(FLOAT_PATHS[name], devices=("cpu", "cuda")))
    policy = cogact.POLICY.tiny().to(device)
    (compiled, eager), skipped = float_paths(policy, control_step(policy), [name, "torch-bfloat16"], lambda name: None)
    assert skipped == []
    assert compiled.captured == (device.type == "cuda")
    # Compiled code rounds fewer intermediate results; actions are below 0.2, the gripper opens or closes at random.
    assert (compiled.run() - eager.run())[:, :-1].abs().mean() < 0.01
    assert torch.equal(compiled.run(), compiled.run())


@pytest.mark.parametrize("name", sorted(PRODUCTS))
@pytest.mark.filterwarnings("ignore")
def test_layers_of_other_libraries_multiply_4_bit_weights(name: str) -> None:
    policy = cogact.POLICY.tiny()
    step = control_step(policy)
    (path,), skipped = float_paths(policy, step, [name], lambda name: None)
    assert skipped == []
    assert path.kind == "4-bit"
    # 4-bit weights move the actions of a random policy, which are below 0.2; its gripper opens or closes at random.
    moved = (path.run() - step.run(policy))[:, :-1].abs()
    (rounded,), _ = float_paths(policy, step, ["torch-bfloat16"], lambda name: None)
    assert (rounded.run() - step.run(policy))[:, :-1].abs().mean() < moved.mean() < 0.05
    with Operations() as operations:
        path.run()
    assert sum(operations.seen[product] for product in PRODUCTS[name]) >= 10
    # The float policy that it was built from is left as it was.
    assert all(type(policy.get_submodule(layer)) is nn.Linear for layer in policy.linear_layers())


@pytest.mark.filterwarnings("ignore")
def test_three_layers_of_the_reference_policy_stay_in_bfloat16_beside_either_library() -> None:
    policy = load_policy("reference")
    layers = set(policy.linear_layers())
    assert len(layers) == 87
    for inputs, outputs in ((TORCHAO_INPUTS, TORCHAO_OUTPUTS), (BITSANDBYTES_INPUTS, BITSANDBYTES_OUTPUTS)):
        assert layers - set(fitting(policy, inputs=inputs, outputs=outputs)) == {
            "state_projector",
            "action_model.net.x_embedder.linear",
            "action_model.net.final_layer.linear",
        }


@pytest.mark.parametrize("name", sorted(PRODUCTS))
@pytest.mark.filterwarnings("ignore")
def test_a_library_that_can_take_no_layer_is_left_out_with_a_reason(name: str) -> None:
    policy = cogact.POLICY.tiny()
    for path in policy.linear_layers():
        layer: Any = policy.get_submodule(path)
        layer.out_features = 7  # What the adapter goes by; no weight is touched.
    built, (skipped,) = float_paths(policy, control_step(policy), [name], lambda name: None)
    assert built == []
    assert "must have a linear layer whose inputs are divisible by" in skipped.reason


@pytest.mark.filterwarnings("ignore")
def test_every_candidate_is_measured_or_has_a_reason(tmp_path: Path) -> None:
    first, second = (str(save_policy(cogact.POLICY.tiny(seed), tmp_path / f"tiny-{seed}")) for seed in (0, 1))
    result = benchmark([second], against=first, repeats=2, warmup=1).to_json()
    measured = [path["name"] for path in result["float_paths"]]
    left_out = {skipped["name"]: skipped["reason"] for skipped in result["skipped"]}
    assert sorted([*measured, *left_out]) == sorted(FLOAT_PATHS)
    assert {*RUNTIMES, *PRODUCTS} <= set(measured)
    assert all(left_out.values())
    floats = {path["name"] for path in result["float_paths"] if path["kind"] == "float"}
    assert result["float_path"]["name"] in floats
