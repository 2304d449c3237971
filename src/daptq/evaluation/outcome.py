"""What came of an evaluation in one condition, and the result that it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from daptq._provenance import Provenance
from daptq.artifacts import provenance
from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import BranchRecord, EpisodeRecord
from daptq.evaluation.comparison import Comparison, Stopping
from daptq.evaluation.description import PolicyDescription
from daptq.evaluation.journal import Journal
from daptq.evaluation.request import Evaluation
from daptq.evaluation.result import EvaluationResult, PolicyResult
from daptq.evaluation.schedule import Schedule
from daptq.metrics.deviation import Drift
from daptq.metrics.drift import HORIZONS, branch_drift, episode_drift
from daptq.metrics.motion_change import motion_summary
from daptq.metrics.motion_metric import Control
from daptq.metrics.pairs import paired_summary
from daptq.metrics.success import success_summary
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.summary import monitor_summary
from daptq.statistics.interval import CONFIDENCE

__all__ = ["Outcome"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What came of an evaluation in one condition.

    Attributes:
        schedule: What was to be run at most.
        done: The episodes that every policy has run.
        records: What the policies did in them.
        descriptions: What each policy is made of, by label.
        horizon: Control steps of the longest task.
        controls: How each policy controlled the robot, by label.
        references: What is normal for the policy that was watched, by its label.
    """

    schedule: Schedule
    done: Sequence[Episode]
    records: Journal
    descriptions: Mapping[str, PolicyDescription]
    horizon: int
    controls: Mapping[str, Control]
    references: Mapping[str, InterfaceReference]

    def result(self) -> EvaluationResult:
        """The result of the evaluation in this condition."""
        request = self._request
        comparisons = tuple(
            self._comparison(request.baseline, label) for label in request.compared if request.baseline is not None
        )
        monitors = [
            monitor_summary(
                label, reference, self._episodes[label], horizon=len(self.schedule.episodes), seed=request.seed
            )
            for label, reference in self.references.items()
        ]
        return EvaluationResult(
            environment=request.environment,
            variant=request.variant,
            tasks=request.asked,
            horizon=self.horizon,
            episodes=len(self.done),
            seed=request.seed,
            batch=request.batch,
            confidence=CONFIDENCE,
            policies=tuple(self._policy(label) for label in self.descriptions),
            comparisons=comparisons,
            paired=comparisons[0].paired if comparisons else None,
            drift=comparisons[0].drift if comparisons else None,
            monitor=monitors[0] if monitors else None,
            provenance=Provenance(**provenance(seed=request.seed)),
        )

    @property
    def _request(self) -> Evaluation:
        return self.schedule.request

    @cached_property
    def _episodes(self) -> Mapping[str, Sequence[EpisodeRecord]]:
        """The episodes of each policy in their order; none of one that ran no whole episodes."""
        request = self._request
        return {
            label: [
                record
                for episode in self.done
                if isinstance(record := self.records.records.get((label, episode.index, None)), EpisodeRecord)
            ]
            if request.closed_loop or label == request.baseline
            else []
            for label in self.descriptions
        }

    @cached_property
    def _branches(self) -> Mapping[str, Sequence[BranchRecord]]:
        """The branches of each policy in their order."""
        return {
            label: [
                record
                for episode in self.done
                for step in episode.branch_steps
                if isinstance(record := self.records.records.get((label, episode.index, step)), BranchRecord)
            ]
            for label in self.descriptions
        }

    def _policy(self, label: str) -> PolicyResult:
        records = self._episodes[label]
        return PolicyResult(
            name=label,
            role="baseline" if label == self._request.baseline else "candidate",
            **(dict(success_summary(records)) if records else {}),
            **dict(self.descriptions[label]),
        )

    def _comparison(self, baseline: str, label: str) -> Comparison:
        seed = self._request.seed
        before, after = self._episodes[baseline], self._episodes[label]
        controls = (self.controls[baseline], self.controls[label])
        identical = branch_drift(self._branches[baseline], self._branches[label], horizons=HORIZONS, seed=seed)
        return Comparison(
            policy=label,
            against=baseline,
            stopping=self._stopping(label) if self._request.early_stop else None,
            paired=paired_summary(before, after) if after else None,
            motion=motion_summary(before, after, controls=controls, seed=seed) if after else None,
            drift=Drift(
                whole_episode=episode_drift(before, after, seed=seed) if after else None, identical_states=identical
            ),
        )

    def _stopping(self, label: str) -> Stopping:
        """The decision about one candidate, and how many pairs there would have been at most."""
        decision = self.schedule.decision(label, self.records, len(self.done))
        return Stopping(
            verdict=decision.verdict,
            margin=decision.margin,
            pairs=decision.pairs,
            low=100.0 * decision.low,
            high=100.0 * decision.high,
            planned=len(self.schedule.episodes),
        )
