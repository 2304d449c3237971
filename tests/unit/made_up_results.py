"""A made-up evaluation with every field, so that tables and pages can be checked without running one."""

from __future__ import annotations

import copy
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord, Motion
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.robustness import with_variants
from daptq.metrics.drift import branch_drift, episode_drift
from daptq.metrics.motion_change import motion_summary
from daptq.metrics.motion_metric import Control
from daptq.metrics.pairs import paired_summary
from daptq.metrics.success import success_summary
from daptq.report.videos import Video, Videos

CONTROL = Control(frequency=5.0, chunk_steps=8)
TASKS = ("spoon_on_towel", "carrot_on_plate", "stack_green_on_yellow", "eggplant_in_basket")
POLICIES = {
    "reference": (0.9, 0.0, None),
    "round-to-nearest W4A8": (0.45, 0.004, 4),
    "DA-PTQ <W4A8>": (0.86, 0.0015, 4),
}


def typed(result: dict[str, Any]) -> EvaluationResult:
    """The result of an evaluation from its JSON."""
    return EvaluationResult.from_json(result)


def add_monitor(result: dict[str, Any], flagged_at: int | None = None) -> None:
    """Adds what a monitor says of the last candidate."""
    shifted = [flagged_at is not None and index >= flagged_at for index in range(result["episodes"])]
    result["monitor"] = {
        "policy": result["policies"][-1]["name"],
        "observed": "action_head.<condition>",
        "reference_episodes": 80,
        "false_alarm_rate": 0.05,
        "horizon": result["episodes"],
        "threshold": 20.0 * result["episodes"],
        "flagged_at": flagged_at,
        "explanation": "shift at <condition>: channel 3 moved most" if flagged_at else "no shift at <condition>",
        "episodes": [
            {
                "index": index,
                "task": TASKS[index % 4],
                "score": 3.25,
                "p_value": 0.125,
                "statistic": 7.5,
                "shifted": one,
            }
            for index, one in enumerate(shifted)
        ],
    }


@cache
def synthetic_result(episodes: int = 40) -> dict[str, Any]:
    records = {name: _episodes(name, rate, error, episodes) for name, (rate, error, _) in POLICIES.items()}
    branches = {name: _branches(name, error, episodes) for name, (_, error, _) in POLICIES.items()}
    comparisons = [
        {
            "policy": name,
            "against": "reference",
            "paired": paired_summary(records["reference"], records[name]).to_json(),
            "motion": {
                metric: change.to_json()
                for metric, change in motion_summary(
                    records["reference"], records[name], controls=(CONTROL, CONTROL), seed=0
                ).items()
            },
            "drift": {
                "whole_episode": episode_drift(records["reference"], records[name], seed=0).to_json(),
                "identical_states": branch_drift(
                    branches["reference"], branches[name], horizons=(1, 4, 16), seed=0
                ).to_json(),
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
        "batch": 1,
        "success_rule": "at any step",
        "confidence": 0.95,
        "policies": [
            {
                "name": name,
                "role": "baseline" if bits is None else "candidate",
                **success_summary(records[name]).to_json(),
                "family": "cogact-small",
                "weights": {
                    "bytes_on_disk": 40 * 2**20 if bits is None else 14 * 2**20 + 2**18,
                    "bytes_in_memory": 80 * 2**20 if bits is None else 17 * 2**20,
                    "sha256": "0123456789abcdef" * 4,
                },
                "layers": _layers(bits),
                "plan": None if bits is None else _plan(bits, scored=name != "round-to-nearest W4A8"),
            }
            for name, (_, _, bits) in POLICIES.items()
        ],
        "comparisons": comparisons,
        "paired": comparisons[0]["paired"],
        "drift": comparisons[0]["drift"],
        "provenance": {"recipe": None, "seed": 0, "versions": {"daptq": "0.1.0"}, "time": "2026-01-02T03:04:05+00:00"},
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


def add_variants(result: dict[str, Any]) -> dict[str, Any]:
    """The result with two variants, in one of which round-to-nearest loses everything."""
    worse = copy.deepcopy(result)
    paired, last = worse["comparisons"][0]["paired"], worse["policies"][1]
    paired["only_baseline_episodes"] = sorted({*range(paired["n"])} - {*paired["only_candidate_episodes"]})
    last.update(successes=0, success_rate=0.0, low=0.0, high=0.09)
    descriptions = {"dark_room": "half as bright", "other_camera": "seen from 3 cm further left"}
    results = {"dark_room": typed(worse), "other_camera": typed(result)}
    return with_variants(typed(result), results, descriptions).to_json()


@cache
def synthetic_benchmark() -> dict[str, Any]:
    """What `daptq benchmark` would have written of the same policies."""
    times = dict(zip(("float", *POLICIES), (80.0, 102.4, 88.0, 93.2), strict=True))
    ratios = {name: {"value": times[name] / 80, "low": times[name] / 82, "high": times[name] / 78} for name in POLICIES}
    return {
        "schema_version": 1,
        "device": "cpu",
        "device_name": "a processor",
        "policies": [
            {
                "name": name,
                "captured": False,
                "weight_bytes": 17 * 2**20,
                "peak_bytes": 133 * 2**20,
                "control_step_ms": {"p50": times[name], "p95": 1.1 * times[name], "p99": 1.2 * times[name], "n": 30},
                "stages_ms": {"preprocessing": 1.0, "vision": 20.0, "language": 15.0, "action_head": 50.0},
            }
            for name in POLICIES
        ],
        "float_path": {"name": "openvino-float32", "p50": times["float"]},
        "ratio_to_float_path": ratios,
        "ratio_to_eager": ratios,
        "float_paths": [
            {
                "name": name,
                "kind": "float",
                "control_step_ms": {"p50": 80.0, "p95": 88.0, "p99": 96.0, "n": 30},
                "max_abs_difference": 0.0,
            }
            for name in ("torch-float32", "openvino-float32")
        ],
        "skipped": [],
        "provenance": {
            "seed": 0,
            "versions": {"daptq": "0.1.0"},
            "time": "2026-01-02T03:04:05+00:00",
            "threads": 2,
            "repeats": 30,
            "warmup": 3,
            "observation": "tabletop",
        },
    }


def video(result: dict[str, Any]) -> Videos:
    """A video of the first discordant episode of the first comparison: a square that crosses both halves."""
    comparison = result["comparisons"][0]
    entry = comparison["paired"]["discordant"][0]
    strip = np.full((8, 48, 96, 3), 200, dtype=np.uint8)
    for frame, picture in enumerate(strip):
        picture[20:28, 5 * frame : 5 * frame + 8] = picture[20:28, 48 + 5 * frame : 56 + 5 * frame] = (200, 60, 0)
    stream = BytesIO()
    Image.fromarray(strip.reshape(-1, 96, 3)).save(stream, "WEBP")
    about = {name: entry[name] for name in ("index", "task", "succeeds", "first_success")}
    shown = Video(
        policy=comparison["policy"],
        against=comparison["against"],
        **about,
        picture=stream.getvalue(),
        frames=8,
        width=96,
        height=48,
        seconds=12.0,
        poster=5,
    )
    return Videos(videos=(shown,), note="")


def _plan(bits: int, *, scored: bool) -> dict[str, Any]:
    """Scores of the layers that are not of the vision tower, over six decades."""
    layers = []
    for number, layer in enumerate(_layers(bits)):
        score = 10.0 ** -(number % 7) if scored and layer["role"] != "vision" else None
        layers.append({"name": layer["name"], "reason": "role" if score is None else "score", "score": score})
    return {"sensitivity": "rounding" if scored else None, "layers": layers}


def _layers(bits: int | None) -> list[dict[str, Any]]:
    counts = {"vision": 8, "connector": 3, "language": 28, "action_head": 27}
    layers = []
    for role, count in counts.items():
        for index in range(count):
            kept = bits is None or role == "vision" or (role == "action_head" and index % 3 == 0)
            num_bits = 32 if bits is None else 16 if kept else bits
            layers.append({"name": f"{role}.{index}", "role": role, "num_bits": num_bits, "parameters": 4096})
    return layers
