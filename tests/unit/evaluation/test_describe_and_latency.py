"""What a policy is made of, and how long a prediction takes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.describe import bytes_in_memory, bytes_on_disk, describe_policy
from daptq.evaluation.latency import measure_latency
from daptq.policies.cogact import tiny


def test_every_linear_layer_is_described_in_execution_order() -> None:
    policy = tiny()
    layers = describe_policy(policy)["layers"]
    assert [layer["name"] for layer in layers] == list(policy.linear_layers())
    assert {layer["num_bits"] for layer in layers} == {32}
    for layer in layers:
        module: Any = policy.get_submodule(layer["name"])
        assert layer["parameters"] == module.weight.numel()
        assert layer["role"] == policy.linear_layers()[layer["name"]]


def test_bits_follow_the_layer() -> None:
    policy = tiny()
    names = list(policy.linear_layers())
    half: Any = policy.get_submodule(names[0])
    half.to(torch.bfloat16)
    quantized: Any = policy.get_submodule(names[1])
    quantized.num_bits, quantized.activation_bits = 4, 8
    layers = describe_policy(policy)["layers"]
    assert [layer["num_bits"] for layer in layers[:3]] == [16, 4, 32]
    assert [layer["activation_bits"] for layer in layers[:3]] == [None, 8, None]


def test_bytes_in_memory_count_shared_storage_once() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(8, 4, bias=False), torch.nn.Linear(8, 4, bias=False))
    assert bytes_in_memory(module) == 2 * 4 * 8 * 4
    module[1].weight = module[0].weight
    assert bytes_in_memory(module) == 4 * 8 * 4
    module.register_buffer("statistics", torch.zeros(3, dtype=torch.float64))
    assert bytes_in_memory(module) == 4 * 8 * 4 + 24


def test_bytes_on_disk_count_every_shard_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "tensors-00001.safetensors").write_bytes(b"1" * 100)
    (tmp_path / "tensors-00002.safetensors").write_bytes(b"1" * 23)
    (tmp_path / "tokenizer.json").write_bytes(b"1" * 1000)
    assert bytes_on_disk(tmp_path) == 123


def test_the_hash_tells_weights_apart() -> None:
    first, again, other = (describe_policy(tiny(seed))["weights"]["sha256"] for seed in (0, 0, 1))
    assert first == again != other


class Slow(torch.nn.Module):
    """A tiny policy that sleeps before it answers."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds, self.calls = tiny(), seconds, 0
        self.device, self.example_batch = self.inner.device, self.inner.example_batch

    def predict_chunk(self, batch: Any, generator: Any) -> torch.Tensor:
        self.calls += 1
        assert len(batch["task"]) == 1
        assert "action" not in batch
        time.sleep(self.seconds)
        return torch.zeros(1, 16, 7)


def test_latency_of_sleepers_is_their_sleep() -> None:
    policies: dict[str, Any] = {"short": Slow(0.01), "long": Slow(0.03)}
    latency = measure_latency(policies, against="long", repeats=7, warmup=2)
    short, long = latency["policies"]
    assert (latency["repeats"], policies["short"].calls, policies["long"].calls) == (7, 9, 9)
    # sleep() never returns early; a busy machine may return late, which the median of seven forgives up to a point.
    assert short["median_ms"] >= 10.0
    assert long["median_ms"] >= 30.0
    assert short["p5_ms"] <= short["median_ms"] <= short["p95_ms"]
    assert long["ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert short["ratio"]["low"] <= short["ratio"]["value"] <= short["ratio"]["high"]
    assert short["median_ms"] < long["median_ms"]


def test_latency_refuses_nothing_to_measure() -> None:
    with pytest.raises(InvalidInputError, match="at least one policy"):
        measure_latency({})
    with pytest.raises(InvalidInputError, match="at least one policy"):
        measure_latency({"a": tiny()}, repeats=0)
    with pytest.raises(UnknownNameError, match="Did you mean 'reference'"):
        measure_latency({"reference": tiny()}, against="refrence")
