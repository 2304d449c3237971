"""Which jobs an evaluation runs, in which order, and when it has run enough.

Episodes come before branches, which start from states that the baseline's episodes saved. What the journal holds is not
run again. The module does not know who does a job, nor what the records mean beyond who succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from daptq.closed_loop.episodes import Episode
from daptq.closed_loop.rollout import Branch, EpisodeRecord
from daptq.evaluation.jobs import BranchJob, EpisodeJob, Job
from daptq.evaluation.journal import Journal
from daptq.evaluation.request import Evaluation
from daptq.evaluation.workers import Workers
from daptq.metrics.drift import HORIZONS
from daptq.progress import Progress
from daptq.statistics.stopping import Decision

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, eq=False)
class Schedule:
    """What an evaluation runs at most, in one condition.

    Attributes:
        request: What was asked.
        episodes: The episodes, in order.
    """

    request: Evaluation
    episodes: Sequence[Episode]

    def run(self, workers: Workers, records: Journal, progress: Progress | None) -> Sequence[Episode]:
        """Runs what the journal does not hold yet.

        Args:
            workers: Who runs it.
            records: What has been run, and where to keep what is run.
            progress: Called after every episode or branch with how many are done, how many there are at most, and what
                was done.

        Returns:
            The episodes that every policy has run, the first ones.
        """
        request = self.request
        driving = [label for label in request.sources if request.closed_loop or label == request.baseline]
        done: Sequence[Episode] = ()
        for part in self._parts():
            jobs = [job for label in driving for job in self._episodes(label, part, records)]
            self._do(jobs, self.episodes, workers, records, progress)
            done = self.episodes[: len(done) + len(part)]
            if request.early_stop and all(
                self.decision(label, records, len(done)).settled for label in request.compared
            ):
                break
        if request.baseline is not None:
            self._do(self._branches(request.baseline, done, records), done, workers, records, progress)
        return done

    def decision(self, candidate: str, records: Journal, pairs: int) -> Decision:
        """What the looks at the first `pairs` pairs say of a candidate."""
        stop, baseline = self.request.early_stop, self.request.baseline
        assert stop is not None
        assert baseline is not None
        before, after = (
            [_episode(label, one, records).success_any_step for one in self.episodes[:pairs]]
            for label in (baseline, candidate)
        )
        return stop.decide(list(zip(before, after, strict=True)))

    def _parts(self) -> list[Sequence[Episode]]:
        """The episodes, cut at the looks."""
        stop = self.request.early_stop
        ends = [*stop.looks, len(self.episodes)] if stop else [len(self.episodes)]
        return [self.episodes[start:end] for start, end in zip([0, *ends], ends, strict=False) if end > start]

    def _episodes(self, label: str, part: Sequence[Episode], records: Journal) -> list[Job]:
        # Groups are the same in a run that continues: who shares a call decides the rounding.
        return [
            EpisodeJob(policy=label, episodes=group)
            for group in _groups(part, self.request.batch)
            if any((label, episode.index, None) not in records.records for episode in group)
        ]

    def _branches(self, baseline: str, episodes: Sequence[Episode], records: Journal) -> list[Job]:
        branches = [
            Branch(episode=episode, step=step, state=state)
            for episode in episodes
            for step, state in _episode(baseline, episode, records).states.items()
        ]
        return [
            BranchJob(policy=label, branches=group, steps=max(HORIZONS))
            for group in _groups(branches, self.request.batch)
            for label in self.request.sources
            if any((label, branch.episode.index, branch.step) not in records.records for branch in group)
        ]

    def _do(
        self,
        jobs: Sequence[Job],
        episodes: Sequence[Episode],
        workers: Workers,
        records: Journal,
        progress: Progress | None,
    ) -> None:
        """Runs jobs of an evaluation of `episodes`, as far as is known."""
        policies = len(self.request.sources)
        driving = policies if self.request.closed_loop else 1
        total = driving * len(episodes) + policies * sum(len(one.branch_steps) for one in episodes)
        for record in workers.run(jobs):
            records.add(record)
            if progress is not None:
                what = f"{record.policy}: {'episode' if isinstance(record, EpisodeRecord) else 'drift'} {record.index}"
                progress(len(records.records), total, what)


def _episode(label: str, episode: Episode, records: Journal) -> EpisodeRecord:
    record = records.records[label, episode.index, None]
    assert isinstance(record, EpisodeRecord)
    return record


def _groups(items: Sequence[T], size: int) -> list[tuple[T, ...]]:
    """The items in order, `size` at a time."""
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]
