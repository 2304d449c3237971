"""Evaluations whose result is wanted as JSON, as a user's file holds it."""

from __future__ import annotations

from typing import Any

from daptq.evaluation.request import Evaluation
from daptq.evaluation.run import evaluate, run_evaluation


def evaluate_json(policy: Any, **settings: Any) -> dict[str, Any]:
    """The JSON of `daptq.evaluate`."""
    return evaluate(policy, **settings).to_json()


def evaluated(candidates: Any, *, progress: Any = None, **settings: Any) -> dict[str, Any]:
    """The JSON of an evaluation of several candidates."""
    return run_evaluation(Evaluation(candidates=candidates, **settings), progress).to_json()
