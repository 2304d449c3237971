"""What a metric of motion is: a function of an episode's record, with its unit, its definition and how it is compared.

`daptq.metrics.motion` lists the metrics. A new one takes an entry there: results, the JSON Schema and the report follow
from it, and a test says what its row in docs/reference/metrics.md is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from daptq.closed_loop.rollout import EpisodeRecord

__all__ = ["Control", "MotionMetric"]


@dataclass(frozen=True, kw_only=True)
class Control:
    """How a policy controlled the robot in an episode.

    Attributes:
        frequency: Control steps per second [Hz].
        chunk_steps: Control steps that it executes of every chunk.
    """

    frequency: float
    chunk_steps: int


@dataclass(frozen=True, kw_only=True)
class MotionMetric:
    """A metric of one episode.

    Attributes:
        title: What it is called on a page.
        unit: Its unit.
        definition: What it is, in words.
        measure: The metric of a record; None where it is not defined.
        change: Whether candidate and baseline are compared by their ratio, or by their difference since they may be 0.
        average: What is taken over episodes.
    """

    title: str
    unit: str
    definition: str
    measure: Callable[[EpisodeRecord, Control], float | None]
    change: Literal["ratio", "difference"] = "ratio"
    average: Literal["median", "mean"] = "median"
