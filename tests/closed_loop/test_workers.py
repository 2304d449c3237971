"""Workers that die at the wrong moment, a cluster of two machines, and a driver that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daptq.closed_loop.episodes import schedule_episodes
from daptq.errors import DaptqError, InvalidInputError, UnknownNameError
from daptq.evaluation.jobs import EpisodeJob
from daptq.evaluation.worker_context import WorkerContext
from daptq.evaluation.workers import start_workers
from tests.closed_loop.conftest import ROOT
from tests.closed_loop.json_results import evaluate_json
from tests.closed_loop.point_world import TASKS, Deadly, Pusher

SETTINGS: dict[str, Any] = {"environment": "point", "episodes": 6, "seed": 1, "drift_states": 3}
ERRORS: dict[str, float] = {"error": -0.01, "noise": 0.003}


def result(policy: Any, **settings: Any) -> dict[str, Any]:
    """What an evaluation says, but for where and when it was made."""
    found = evaluate_json(policy, against=Pusher(noise=0.003), **{**SETTINGS, **settings})
    del found["provenance"]
    return found


@pytest.fixture
def marks(tmp_path: Path) -> Path:
    (tmp_path / "marks").mkdir()
    return tmp_path / "marks"


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_episode_redone(plugged_in: Path, marks: Path) -> None:
    journal = marks.parent / "episodes.jsonl"
    found = result(Deadly("q", marks=marks, deaths=2, **ERRORS), workers=2, journal=journal)
    assert len(os.listdir(marks)) == 2
    assert found == result(Pusher("q", **ERRORS))
    # Nothing but the job at hand was done twice: every record came once.
    records = [line for line in journal.read_text().splitlines() if line.startswith(('{"episode"', '{"branch"'))]
    assert len(records) == 2 * 6 + 2 * 3


@pytest.mark.slow
def test_an_episode_that_kills_every_worker_is_named(plugged_in: Path, marks: Path) -> None:
    with pytest.raises(DaptqError, match=r"episode \d \(\w+\) of q must run to its end, got 3 workers that died"):
        result(Deadly("q", marks=marks, deaths=100, **ERRORS), workers=2, episodes=2, drift_states=0)


@pytest.mark.slow
def test_an_error_in_a_worker_arrives_as_it_was_raised(plugged_in: Path) -> None:
    jobs = [EpisodeJob(policy="p", episodes=(one,)) for one in schedule_episodes(TASKS, episodes=4, seed=0)]
    context = WorkerContext(environment_name="point", image_size={}, sources={"p": "refrence"})
    with start_workers(context, 2) as workers, pytest.raises(UnknownNameError, match="'refrence'"):
        list(workers.run(jobs))


@pytest.mark.slow
def test_a_cluster_of_two_machines(plugged_in: Path, marks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker dies there, too; Ray starts it anew."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(plugged_in), str(ROOT), *sys.path]))
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        found = result(Deadly("q", marks=marks, deaths=1, **ERRORS), workers=2, ray=cluster.address)
        with pytest.raises(InvalidInputError, match="workers must be at most 2, the CPUs of the cluster, got 3"):
            result(Pusher("q"), workers=3, ray=cluster.address)
    finally:
        cluster.shutdown()
    assert len(os.listdir(marks)) == 1
    assert found == result(Pusher("q", **ERRORS))


DRIVER = """
import sys
from pathlib import Path

from daptq.evaluation.run import evaluate
from tests.closed_loop.point_world import Pusher

if __name__ == "__main__":
    evaluate(
        Pusher("q", error=-0.01, noise=0.003, pause=0.05), against=Pusher(noise=0.003, pause=0.05), workers=2,
        journal=Path(sys.argv[1]), progress=lambda *done: print(*done, flush=True),
        environment="point", episodes=6, seed=1, drift_states=3,
    )
"""


def children(pid: int) -> set[int]:
    """Process ids of the workers that `pid` has spawned."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            after_name = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(after_name[1]) == pid and after_name[0] != "Z":
            found.add(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_driver_takes_its_workers_with_it_and_continues(
    plugged_in: Path, tmp_path: Path, make_pusher: Callable[..., Any]
) -> None:
    script, journal = tmp_path / "driver.py", tmp_path / "episodes.jsonl"
    script.write_text(DRIVER)
    paths = os.pathsep.join([str(plugged_in), str(ROOT), *sys.path])
    command = [sys.executable, str(script), str(journal)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as driver:
        assert driver.stdout is not None
        for _ in range(4):
            assert b" 18 " in driver.stdout.readline()
        workers = children(driver.pid)
        assert len(workers) >= 2
        driver.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    kept = [json.loads(line) for line in journal.read_text().splitlines()[3:]]
    assert 4 <= len(kept) < 18
    counts: list[int] = []
    found = result(Pusher("q", **ERRORS), journal=journal, progress=lambda done, *_: counts.append(done))
    assert counts == list(range(len(kept) + 1, 19))
    assert found == result(Pusher("q", **ERRORS))
