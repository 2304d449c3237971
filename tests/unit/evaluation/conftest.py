"""A made-up evaluation with every field, so that tables and pages can be checked without running one."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import numpy as np
import pytest

from daptq.evaluation.drift import branch_drift, episode_drift
from daptq.evaluation.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.evaluation.summary import paired_summary, success_summary

TASKS = ("spoon_on_towel", "carrot_on_plate", "stack_green_on_yellow", "eggplant_in_basket")
POLICIES = {
    "reference": (0.9, 0.0, None),
    "round-to-nearest W4A8": (0.45, 0.004, 4),
    "DA-PTQ <W4A8>": (0.86, 0.0015, 4),
}


@pytest.fixture
def result() -> dict[str, Any]:
    return copy.deepcopy(synthetic_result())


@cache
def synthetic_result(episodes: int = 40) -> dict[str, Any]:
    records = {name: _episodes(name, rate, error, episodes) for name, (rate, error, _) in POLICIES.items()}
    branches = {name: _branches(name, error, episodes) for name, (_, error, _) in POLICIES.items()}
    comparisons = [
        {
            "policy": name,
            "against": "reference",
            "paired": paired_summary(records["reference"], records[name]),
            "drift": {
                "whole_episode": episode_drift(records["reference"], records[name], seed=0),
                "identical_states": branch_drift(branches["reference"], branches[name], horizons=(1, 4, 16), seed=0),
            },
        }
        for name in list(POLICIES)[1:]
    ]
    return {
        "schema_version": 1,
        "environment": "tabletop",
        "tasks": list(TASKS),
        "horizon": 60,
        "episodes": episodes,
        "seed": 0,
        "success_rule": "at any step",
        "confidence": 0.95,
        "policies": [
            {
                "name": name,
                "role": "baseline" if bits is None else "candidate",
                **success_summary(records[name]),
                "family": "cogact",
                "weights": {
                    "bytes_on_disk": 40 * 2**20 if bits is None else 14 * 2**20 + 2**18,
                    "bytes_in_memory": 80 * 2**20 if bits is None else 17 * 2**20,
                    "sha256": "0123456789abcdef" * 4,
                },
                "layers": _layers(bits),
            }
            for name, (_, _, bits) in POLICIES.items()
        ],
        "comparisons": comparisons,
        "paired": comparisons[0]["paired"],
        "drift": comparisons[0]["drift"],
        "latency": {
            "threads": 1,
            "repeats": 30,
            "policies": [_latency(name, ms) for name, ms in zip(POLICIES, (102.4, 88.0, 93.2), strict=True)],
        },
        "provenance": {"recipe": None, "seed": 0, "versions": {"daptq": "0.1.0"}, "time": "2026-01-02T03:04:05+00:00"},
    }


def _latency(name: str, milliseconds: float) -> dict[str, Any]:
    ratio = milliseconds / 102.4
    return {
        "name": name,
        "device": "cpu",
        "median_ms": milliseconds,
        "p5_ms": 0.9 * milliseconds,
        "p95_ms": 1.3 * milliseconds,
        "ratio": {"value": ratio, "low": 0.98 * ratio, "high": 1.02 * ratio},
    }


def _motion(error: float, steps: int, seed: int) -> Motion:
    path = np.random.default_rng(seed).standard_normal((steps, 3)) * 0.001
    path[:, 0] += error * np.arange(1, steps + 1) * np.random.default_rng(seed + 1).uniform(0.3, 1.7)
    return Motion(positions=path if error else path * 0, rotations=np.tile(np.eye(3), (steps, 1, 1)))


def _episodes(name: str, rate: float, error: float, count: int) -> list[EpisodeRecord]:
    outcomes = np.random.default_rng(0).uniform(size=count) < rate
    return [
        EpisodeRecord(
            policy=name,
            index=index,
            task=TASKS[index % 4],
            seed=index,
            success_any_step=bool(success),
            success_last_step=bool(success and index % 9),
            first_success=20 if success else None,
            other_tasks=() if success or index % 3 else (TASKS[(index + 1) % 4],),
            gripper_flips=2,
            held=(None,) * 60,
            motion=_motion(error, 60, index),
        )
        for index, success in enumerate(outcomes)
    ]


def _branches(name: str, error: float, count: int) -> list[BranchRecord]:
    return [
        BranchRecord(policy=name, index=index, step=8, motion=_motion(error, 16, 1000 + index))
        for index in range(count)
    ]


def _layers(bits: int | None) -> list[dict[str, Any]]:
    counts = {"vision": 8, "connector": 3, "language": 28, "action_head": 27}
    layers = []
    for role, count in counts.items():
        for index in range(count):
            kept = bits is None or role == "vision" or (role == "action_head" and index % 3 == 0)
            num_bits = 32 if bits is None else 16 if kept else bits
            layers.append({"name": f"{role}.{index}", "role": role, "num_bits": num_bits, "parameters": 4096})
    return layers
