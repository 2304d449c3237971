"""The workers of an evaluation: this process, several processes of this machine, or those of a Ray cluster.

A worker that dies is replaced and the job that it had is done again; nothing else is lost. What is done does not depend
on who does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from typing_extensions import Self

from daptq.closed_loop.rollout import Record
from daptq.errors import InvalidInputError
from daptq.evaluation.jobs import Job
from daptq.evaluation.process_pool import ProcessPool
from daptq.evaluation.ray_pool import RayPool
from daptq.evaluation.worker_context import WorkerContext, one_thread


class Workers(Protocol):
    """Workers that are ready while the context is open."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...

    def run(self, jobs: Iterable[Job]) -> Iterator[Record]:
        """Yields the records of each job as it is done, in any order.

        Raises:
            DaptqError: A job failed, or killed one worker after another; the jobs that had not started are dropped.
        """
        ...


def start_workers(context: WorkerContext, workers: int, *, ray: str | None = None) -> Workers:
    """Chooses the workers.

    Args:
        context: What each worker needs. In this process it is used as it is, other workers have their own copy.
        workers: Number of workers, at least 1; with 1, and without a cluster, the jobs run in this process.
        ray: Address of a Ray cluster that the workers live on; None for this machine.

    Raises:
        InvalidInputError: `workers` is less than 1.
        MissingDependencyError: A cluster is asked for and the extra ``ray`` is not installed.
    """
    if workers < 1:
        raise InvalidInputError(f"workers must be at least 1, got {workers}. Use 1 to run in this process.")
    if ray is not None:
        return RayPool(context, workers, ray)
    return ProcessPool(context, workers) if workers > 1 else _ThisProcess(context)


class _ThisProcess:
    """The only worker, this process."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Leaves the context open, which belongs to the caller."""

    def run(self, jobs: Iterable[Job]) -> Iterator[Record]:
        """Does one job after another."""
        with one_thread():
            for job in jobs:
                yield from self._context.run(job)
