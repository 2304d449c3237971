"""Workers on the machines of a Ray cluster; Ray starts them anew, elsewhere if need be, when they or their machine die.

Every machine of the cluster needs daptq, and names or folders of policies mean the same on all of them (a shared file
system); a loaded policy is sent. The records come back to this process, which alone writes files.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from typing_extensions import Self

from daptq.closed_loop.rollout import Record
from daptq.errors import DaptqError, InvalidInputError, MissingDependencyError
from daptq.evaluation.jobs import Job
from daptq.evaluation.process_pool import MOST_DEATHS, died
from daptq.evaluation.worker_context import WorkerContext

_CONNECTION_TIMEOUT = 10.0  # seconds


class RayPool:
    """Workers of a Ray cluster, one CPU each; a context manager.

    Args:
        context: What each worker needs; it has its own copy.
        workers: Number of workers.
        address: Of the cluster, as ``"host:6379"`` or ``"auto"``; ``"local"`` starts one on this machine.

    Raises:
        MissingDependencyError: The extra ``ray`` is not installed.
    """

    def __init__(self, context: WorkerContext, workers: int, address: str) -> None:
        # Ray reports its use over the network unless told not to, when it is first imported.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            message = "ray must be installed to run on a cluster, got no such package."
            raise MissingDependencyError(message + " Install daptq[ray].") from None
        self._ray: Any = ray
        self._context = context
        self._count = workers
        self._address = address
        self._workers: list[Any] = []
        self._stored: Any = None

    def __enter__(self) -> Self:
        try:
            _reach(self._address)
            self._ray.init(address=self._address, log_to_driver=False, logging_level="warning")
        except (OSError, ValueError, RuntimeError) as error:
            message = f"ray must be the address of a Ray cluster, got {self._address!r}: {error}."
            raise InvalidInputError(message + " Start one with `ray start --head`.") from error
        cpus = int(self._ray.cluster_resources().get("CPU", 0))
        if self._count > cpus:
            self._ray.shutdown()
            message = f"workers must be at most {cpus}, the CPUs of the cluster, got {self._count}."
            raise InvalidInputError(message + " Use fewer workers, or start more machines first.")
        kind = self._ray.remote(
            num_cpus=1, max_restarts=-1, max_task_retries=MOST_DEATHS - 1, scheduling_strategy="SPREAD"
        )(_RayWorker)
        # Kept here for as long as the workers live: one that is started anew asks for it again.
        self._stored = self._ray.put(self._context.for_another_process())
        self._workers = [kind.remote() for _ in range(self._count)]
        return self

    def __exit__(self, *exception: object) -> None:
        self._workers, self._stored = [], None
        self._ray.shutdown()  # The workers end with the connection that started them.

    def run(self, jobs: Iterable[Job]) -> Iterator[Record]:
        """Yields the records of each job as it is done, in any order.

        Raises:
            DaptqError: A job failed, or killed several workers; the jobs that had not started are dropped.
        """
        waiting = deque(jobs)
        idle = list(self._workers)
        running: dict[Any, tuple[Any, Job]] = {}
        while waiting or running:
            while waiting and idle:
                worker, job = idle.pop(), waiting.popleft()
                running[worker.answer.remote([self._stored], job)] = (worker, job)
            (done,), _ = self._ray.wait(list(running))
            worker, job = running.pop(done)
            idle.append(worker)
            try:
                answer = self._ray.get(done)
            except self._ray.exceptions.RayActorError as error:
                raise DaptqError(died(job)) from error
            if isinstance(answer, Exception):
                raise answer
            yield from answer


def _reach(address: str) -> None:
    """Connects to ``"host:port"`` and back off; Ray itself would try for minutes before it gave up.

    Raises:
        OSError: Nobody answers there.
    """
    host, separator, port = address.rpartition(":")
    if separator and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=_CONNECTION_TIMEOUT).close()


class _RayWorker:
    """What a worker is on its machine."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self._context: WorkerContext | None = None

    def answer(self, stored: Sequence[Any], job: Job) -> Sequence[Record] | Exception:
        """Does one job.

        Args:
            stored: Reference to the context, in a list so that Ray leaves it to this worker to fetch it, once.
            job: What to do.
        """
        if self._context is None:
            import ray

            context: WorkerContext = ray.get(stored[0])
            self._context = context
        return self._context.answer(job)
