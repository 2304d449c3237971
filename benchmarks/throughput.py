"""Episodes per minute of one process, of two, and of two machines of a Ray cluster on this one.

    python benchmarks/throughput.py [--policy reference] [--episodes 8] [--rounds 5] [--batches 1 4]

All arrangements are kept ready and take turns, so that what else the machine does hits all of them; starting them does
not count. Writes results/<date>-throughput.json and .md beside this file. Needs the extra `ray`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from _page import add_results_argument, run_benchmark, write_table

from daptq.artifacts import provenance
from daptq.catalog import ENVIRONMENTS
from daptq.closed_loop.episodes import Episode, schedule_episodes
from daptq.errors import InvalidInputError
from daptq.evaluation.jobs import EpisodeJob
from daptq.evaluation.worker_context import WorkerContext, open_policy
from daptq.evaluation.workers import Workers, start_workers

ALONE, WORKERS, CLUSTER = "one process", "two processes", "Ray, two machines of one CPU"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Episodes per minute.")
    parser.add_argument("--policy", default="reference", help="name or folder")
    parser.add_argument("--environment", default="tabletop")
    parser.add_argument("--episodes", type=int, default=8, help="episodes of every measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of every arrangement")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4], help="episodes that share a call")
    add_results_argument(parser)
    options = parser.parse_args(arguments)
    if options.episodes < 2 * max(options.batches):
        message = f"episodes must be at least {2 * max(options.batches)}, a call for each of two workers,"
        raise InvalidInputError(f"{message} got {options.episodes}. Measure more episodes.")
    policy = open_policy(options.policy)
    cameras = dict(policy.cameras)
    scheduled = schedule_episodes(
        tuple(ENVIRONMENTS.load(options.environment).TASKS), episodes=options.episodes, seed=0
    )
    with ExitStack() as stack:
        workers_by_name: dict[str, Workers] = {}
        for name, count in ((ALONE, 1), (WORKERS, 2), (CLUSTER, 2)):
            context = WorkerContext(
                environment_name=options.environment, image_size=cameras, sources={"policy": str(options.policy)}
            )
            stack.callback(context.close)
            if count == 1:  # all arrangements run the same
                context.environment_of({str(options.policy): policy})
            address = stack.enter_context(local_cluster(machines=2)) if name == CLUSTER else None
            workers_by_name[name] = stack.enter_context(start_workers(context, count, ray=address))
        rates = measure(workers_by_name, scheduled, options.batches, options.rounds)
    result = {
        "schema_version": 1,
        "policy": str(options.policy),
        "environment": options.environment,
        "episodes": options.episodes,
        "arrangements": summarised(rates),
        "load": os.getloadavg()[2],
        "provenance": provenance(seed=0),
    }
    stem = f"{result['provenance']['time'][:10]}-throughput"
    write_table(options.results, stem, result, page(result, stem))


@contextmanager
def local_cluster(machines: int) -> Iterator[str]:
    """A Ray cluster of machines with one CPU each that all are this one; yields its address."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        for _ in range(machines - 1):
            cluster.add_node(num_cpus=1)
        yield str(cluster.address)
    finally:
        cluster.shutdown()


def measure(
    workers_by_name: Mapping[str, Workers], scheduled: tuple[Episode, ...], batches: list[int], rounds: int
) -> dict[tuple[str, int], list[float]]:
    """Episodes per minute, by arrangement and episodes that share a call, of every round."""
    rates: dict[tuple[str, int], list[float]] = {(name, batch): [] for batch in batches for name in workers_by_name}
    for turn in range(-1, rounds):  # The first one loads policies and draws first pictures.
        for (name, batch), found in rates.items():
            groups = [scheduled[start : start + batch] for start in range(0, len(scheduled), batch)]
            begin = time.perf_counter()
            done = list(workers_by_name[name].run([EpisodeJob(policy="policy", episodes=group) for group in groups]))
            minutes = (time.perf_counter() - begin) / 60.0
            assert len(done) == len(scheduled)
            if turn >= 0:
                found.append(len(done) / minutes)
            print(f"[{turn + 1}/{rounds}] {name}, {batch} per call: {len(done) / minutes:.2f} per minute", flush=True)
    return rates


def summarised(rates: Mapping[tuple[str, int], list[float]]) -> list[dict[str, Any]]:
    """Median, least and most of the rates, and of their ratios to the first arrangement round by round."""
    first = next(iter(rates.values()))
    return [
        {
            "name": name,
            "batch": batch,
            "per_minute": spread(found),
            "ratio": spread([one / other for one, other in zip(found, first, strict=True)]),
        }
        for (name, batch), found in rates.items()
    ]


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most of some values."""
    return {"n": len(values), "median": statistics.median(values), "least": min(values), "most": max(values)}


def page(result: Mapping[str, Any], stem: str) -> str:
    """The Markdown page."""
    about = result["provenance"]
    rows = "\n".join(
        f"| {one['name']} | {one['batch']} | {cell(one['per_minute'])} | {cell(one['ratio'])} |"
        for one in result["arrangements"]
    )
    rounds = result["arrangements"][0]["per_minute"]["n"]
    return f"""# Throughput

Episodes per minute of `{result["policy"]}` on `{result["environment"]}`, {about["time"][:10]}, {about["cpu"]}
({about["cpu_count"]} CPUs, load {result["load"]:.1f} over the last quarter of an hour). Written by
`benchmarks/throughput.py`; the numbers are in [{stem}.json]({stem}.json).

| arrangement | episodes per call | episodes per minute [least, most] | ratio to the first row [least, most] |
| --- | ---: | ---: | ---: |
{rows}

n = {rounds} rounds of {result["episodes"]} episodes, in which the arrangements take turns; medians. A ratio compares
measurements of the same round. Starting processes and loading policies is not counted. Every process computes with one
thread. With a load above the number of CPUs the ratios say more than the rates, and less than on an idle machine.
"""


def cell(values: Mapping[str, float]) -> str:
    """A median with least and most."""
    return f"{values['median']:.2f} [{values['least']:.2f}, {values['most']:.2f}]"


if __name__ == "__main__":
    run_benchmark(main)
