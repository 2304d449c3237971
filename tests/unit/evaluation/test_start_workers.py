"""The workers: what is refused before any process starts."""

from __future__ import annotations

import os
import socket
import sys

import pytest

from daptq.errors import InvalidInputError, MissingDependencyError
from daptq.evaluation.worker_context import WorkerContext
from daptq.evaluation.workers import start_workers

CONTEXT = WorkerContext(environment_name="tabletop", image_size={}, sources={})


@pytest.mark.parametrize("workers", [0, -1])
def test_no_worker_at_all_is_refused(workers: int) -> None:
    with pytest.raises(InvalidInputError, match=f"workers must be at least 1, got {workers}"):
        start_workers(CONTEXT, workers)


def test_a_cluster_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependencyError, match=r"Install daptq\[ray\]"):
        start_workers(CONTEXT, 2, ray="auto")


def test_usage_statistics_are_off_unless_somebody_turned_them_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    start_workers(CONTEXT, 2, ray="auto")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_an_address_where_nobody_answers_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # free once the server is gone
    with pytest.raises(InvalidInputError, match=f"ray must be the address of a Ray cluster, got '127.0.0.1:{port}'"):
        start_workers(CONTEXT, 2, ray=f"127.0.0.1:{port}").__enter__()
