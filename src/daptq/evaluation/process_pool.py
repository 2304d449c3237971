"""Worker processes on this machine, of which any may die at any time.

Each process has a pipe of its own to this one and gets one job at a time, so it is known what a dead one was at. The
operating system closes a dead process's end of the pipe; that is how its death is noticed, whatever killed it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch
from typing_extensions import Self

from daptq.closed_loop.rollout import Record
from daptq.errors import DaptqError
from daptq.evaluation.jobs import Job
from daptq.evaluation.worker_context import WorkerContext

# A job is given up after this many workers died in it.
MOST_DEATHS = 3


@dataclass(kw_only=True, eq=False)
class _Worker:
    """One process, the pipe to it, and the number of the job that it does, or None."""

    process: BaseProcess
    pipe: Connection
    job: int | None = None


class ProcessPool:
    """Processes that run jobs; a context manager.

    Args:
        context: What each process needs; it has its own copy.
        workers: Number of processes.
    """

    def __init__(self, context: WorkerContext, workers: int) -> None:
        self._context = context
        self._count = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self._workers:
            # What an idle process waits for is the next job or the end of the pipe; a busy one is of no use any more.
            worker.pipe.close()
            if worker.job is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join()
        self._workers = []

    def run(self, jobs: Iterable[Job]) -> Iterator[Record]:
        """Yields the records of each job as it is done, in any order.

        Raises:
            DaptqError: A job failed, or killed several processes; the jobs that had not started are dropped.
        """
        listed = list(jobs)
        waiting = deque(range(len(listed)))
        deaths: Counter[int] = Counter()
        self._hand_out(listed, waiting)
        while busy := {worker.pipe: worker for worker in self._workers if worker.job is not None}:
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                number = worker.job
                assert number is not None
                try:
                    answer = worker.pipe.recv()
                except (EOFError, OSError):
                    deaths[number] += 1
                    if deaths[number] == MOST_DEATHS:
                        raise DaptqError(died(listed[number])) from None
                    waiting.appendleft(number)
                    self._replace(worker)
                else:
                    worker.job = None
                    if isinstance(answer, Exception):
                        raise answer
                    self._hand_out(listed, waiting)
                    yield from answer
            self._hand_out(listed, waiting)

    def _hand_out(self, jobs: Sequence[Job], waiting: deque[int]) -> None:
        """Gives every idle process a job, as long as there are any."""
        for worker in self._workers:
            if worker.job is None and waiting:
                worker.job = waiting.popleft()
                with suppress(OSError):  # One that died while idle is noticed when its answer is read.
                    worker.pipe.send(jobs[worker.job])

    def _start(self) -> _Worker:
        # A forked child would inherit the state of torch's thread pools and of the graphics driver.
        spawning = multiprocessing.get_context("spawn")
        here, there = spawning.Pipe()
        process = spawning.Process(target=_work, args=(there, self._context.for_another_process()), daemon=True)
        process.start()
        there.close()  # Only the child holds its end now, so its death ends the pipe.
        return _Worker(process=process, pipe=here)

    def _replace(self, worker: _Worker) -> None:
        worker.pipe.close()
        worker.process.kill()  # A closed pipe is the end of it, even if the process is not.
        worker.process.join()
        self._workers[self._workers.index(worker)] = self._start()


def died(job: Job) -> str:
    """Says that a job is given up because every worker that tried it died."""
    return f"{job} must run to its end, got {MOST_DEATHS} workers that died in it (out of memory?). Use fewer workers."


def _work(pipe: Connection, context: WorkerContext) -> None:
    """What a worker process does."""
    torch.set_num_threads(1)
    # Ctrl-C reaches the whole process group: the parent answers it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            break
        pipe.send(context.answer(job))
    context.close()


def _end_with_parent() -> None:
    """Ends this process when its parent is gone; a killed parent cannot tell its workers to stop."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
