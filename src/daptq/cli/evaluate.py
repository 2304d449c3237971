"""`daptq evaluate`: drives an environment with a policy, paired with a baseline."""

from __future__ import annotations

from pathlib import Path

import click

from daptq.cli._console import json_option, reported_progress


@click.command()
@click.argument("policy")
@click.option("--against", metavar="POLICY", help="Full-precision baseline, run on the same episodes.")
@click.option("--environment", metavar="NAME", default="tabletop", help="Benchmark; see `daptq list environments`.")
@click.option("--task", "tasks", metavar="NAME", multiple=True, help="Task to ask, may be repeated.  [default: all]")
@click.option("--episodes", metavar="N", type=int, default=100, help="Episodes over all tasks together.")
@click.option("--seed", metavar="S", type=int, default=0, help="Seed of initial states and diffusion noise.")
@click.option("--workers", metavar="W", type=int, default=1, help="Processes; the result does not depend on it.")
@json_option
def evaluate(
    policy: str,
    against: str | None,
    environment: str,
    tasks: tuple[str, ...],
    episodes: int,
    seed: int,
    workers: int,
    json_path: Path | None,
) -> None:
    """Runs closed-loop episodes with POLICY and prints success rates with intervals, and drift against a baseline.

    With --json, finished episodes are kept beside FILE until the end, and a killed run continues from them.
    """
    from rich.console import Console

    from daptq.artifacts import write_json
    from daptq.evaluation.paired import evaluate as run
    from daptq.evaluation.table import result_table

    journal = None if json_path is None else json_path.with_name(f".{json_path.name}.episodes.jsonl")
    with reported_progress() as progress:
        result = run(
            policy,
            against=against,
            environment=environment,
            tasks=tasks or None,
            episodes=episodes,
            seed=seed,
            workers=workers,
            progress=progress,
            journal=journal,
        )
    Console().print(result_table(result))
    if json_path is not None and journal is not None:
        write_json(json_path, result)
        journal.unlink(missing_ok=True)
