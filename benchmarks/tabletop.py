"""The embedded benchmark itself: success of the scripted expert and the time of a control step.

    python benchmarks/tabletop.py --seeds 100 --output benchmarks/results/tabletop.json

Run it while nothing else runs; times are medians over the steps of one process, with the 5 % and 95 % quantiles.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click
import numpy as np

from daptq.artifacts import provenance, write_json
from daptq.calibration.demonstrations import Disturbance, record_episode
from daptq.calibration.tabletop import DEMONSTRATIONS
from daptq.environments.tabletop import TabletopEnvironment
from daptq.environments.tabletop.expert import TabletopExpert
from daptq.statistics.proportion import wilson_interval

FIRST_SEED = 20_000_000
IMAGES: dict[str, dict[str, int]] = {
    "no image": {},
    "front 128 px": {"front": 128},
    "two cameras": {"front": 96, "wrist": 64},
}


def expert_success(seeds: int, disturbance: Disturbance | None) -> dict[str, Any]:
    """Success at the last recorded step per task, with Wilson's 95 % interval."""
    environment = TabletopEnvironment(image_size={})
    table = {}
    for task in environment.tasks:
        episodes = [
            record_episode(environment, DEMONSTRATIONS, task=task, seed=FIRST_SEED + i, disturbance=disturbance)
            for i in range(seeds)
        ]
        successes = sum(episode.success for episode in episodes)
        low, high = wilson_interval(successes, seeds)
        table[task] = {"successes": successes, "n": seeds, "low": low, "high": high}
    environment.close()
    return table


def step_times(sizes: dict[str, int], steps: int = 300) -> dict[str, float]:
    """Milliseconds of one control step under the expert, images included."""
    environment, expert = TabletopEnvironment(image_size=sizes), TabletopExpert()
    times = []
    for step in range(steps + 10):
        if step % 30 == 0:
            environment.reset(seed=step, options={"task": environment.tasks[step // 30 % 4]})
        action = expert.action(environment)
        started = time.perf_counter()
        environment.step(action)
        times.append(1e3 * (time.perf_counter() - started))
    environment.close()
    low, median, high = np.quantile(times[10:], [0.05, 0.5, 0.95])
    return {"median": float(median), "p5": float(low), "p95": float(high), "n": steps}


@click.command()
@click.option("--seeds", default=100, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), required=True)
def main(seeds: int, output: Path) -> None:
    """Measures the expert and the control step."""
    result: dict[str, Any] = {
        "schema_version": 1,
        "expert": expert_success(seeds, None),
        "expert_disturbed": expert_success(seeds, Disturbance()),
        "control_step_ms": {name: step_times(sizes) for name, sizes in IMAGES.items()},
        "provenance": provenance(seed=FIRST_SEED),
    }
    write_json(output, result)
    for key in ("expert", "expert_disturbed"):
        click.echo(f"{key}: " + ", ".join(f"{t} {r['successes']}/{r['n']}" for t, r in result[key].items()))
    for name, row in result["control_step_ms"].items():
        click.echo(f"{name}: median {row['median']:.1f} ms (p5 {row['p5']:.1f}, p95 {row['p95']:.1f})")


if __name__ == "__main__":
    main()
