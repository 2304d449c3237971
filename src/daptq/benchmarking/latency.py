"""Latency of one control step's prediction, several policies side by side.

The policies take turns within each round: a machine that slows down meanwhile slows all of them down, and the ratio of
two policies is taken within rounds. What is measured is one `predict_chunk` for one observation, on the threads that
torch is set to use; rendering, physics and the robot are not part of it. Full precision runs in torch's eager mode; on
a CUDA device the denoising loop of every policy is a CUDA graph.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.describe import single_observation
from daptq.policies.captured import captured_denoising
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator
from daptq.statistics.intervals import bootstrap_estimate, median


def measure_latency(
    policies: Mapping[str, Policy],
    *,
    against: str | None = None,
    repeats: int = 30,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures the time of one prediction of each policy.

    Args:
        policies: Loaded policies by label.
        against: Label of the policy that ratios are taken against; None for no ratios.
        repeats: Number of measured rounds, at least 1.
        warmup: Number of rounds before the measured ones.
        seed: Seed of the observation, the noise and the bootstrap.

    Returns:
        JSON object: `threads`, `repeats`, and `policies`, a list with `name`, `device`, `median_ms`, `p5_ms`, `p95_ms`
        and, with a baseline, `ratio`: median over rounds of the time divided by the baseline's (`value`, `low`, `high`:
        bootstrap over rounds, 95 %).

    Raises:
        InvalidInputError: There is no policy or no round.
        UnknownNameError: `against` is none of the labels.
    """
    if not policies or repeats < 1:
        message = f"latency needs at least one policy and one round, got {len(policies)} and {repeats}."
        raise InvalidInputError(message + " Name a policy and ask for more repeats.")
    if against is not None and against not in policies:
        raise UnknownNameError("baseline", against, policies)
    batches = {label: single_observation(policy, seed) for label, policy in policies.items()}
    times: NDArray[np.float64] = np.zeros((repeats, len(policies)))
    with ExitStack() as captured:
        for policy in policies.values():
            captured.enter_context(captured_denoising(policy))
        for turn in range(-warmup, repeats):
            for column, (label, policy) in enumerate(policies.items()):
                elapsed = _time_once(policy, batches[label], seed)
                if turn >= 0:
                    times[turn, column] = elapsed
    listed = []
    for column, (label, policy) in enumerate(policies.items()):
        low, median, high = np.percentile(times[:, column], [5.0, 50.0, 95.0])
        entry: dict[str, Any] = {"name": label, "device": str(policy.device)}
        entry |= {"median_ms": float(median), "p5_ms": float(low), "p95_ms": float(high)}
        if against is not None:
            entry["ratio"] = _ratio(times[:, column] / times[:, list(policies).index(against)], seed)
        listed.append(entry)
    return {"threads": torch.get_num_threads(), "repeats": repeats, "policies": listed}


def _time_once(policy: Policy, batch: Batch, seed: int) -> float:
    """Milliseconds of one prediction."""
    generator = noise_generator(seed, 0)
    start = time.perf_counter()
    with torch.inference_mode():
        # Bringing the answer to the CPU waits for the device.
        policy.predict_chunk(batch, generator).cpu()
    return 1000.0 * (time.perf_counter() - start)


def _ratio(values: Float[np.ndarray, " repeats"], seed: int) -> dict[str, float]:
    return bootstrap_estimate(values, np.arange(len(values)), median, seed=seed)
