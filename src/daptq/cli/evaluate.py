"""`daptq evaluate`: drives an environment with a policy, paired with a baseline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daptq.cli.console import json_option, reported_progress
from daptq.cli.request_options import request_options
from daptq.evaluation.request import Evaluation

if TYPE_CHECKING:
    from daptq.evaluation.comparison import Comparison
    from daptq.evaluation.gate import Gate
    from daptq.monitoring.interface_reference import InterfaceReference
    from daptq.progress import Progress

# How often only one of two policies succeeds: 5 to 10 % for W4A8 policies that drive well, more at fewer bits.
DISCORDANT = (0.05, 0.1, 0.15, 0.2, 0.3)

# The fields of a request that are options, and what stands for their values in the help.
METAVARS = {
    "against": "POLICY",
    "environment": "NAME",
    "variants": "NAME",
    "tasks": "NAME",
    "episodes": "N",
    "seed": "S",
    "workers": "W",
    "ray": "ADDRESS",
    "batch": "B",
}


@click.command()
@click.argument("policy", required=False)
@request_options(Evaluation, METAVARS)
@click.option(
    "--gate",
    metavar="LIMITS",
    help="Exit 1 unless every limit holds against the baseline, for example margin=0.05,drift=1.5,jerk=1.1.",
)
@click.option(
    "--monitor",
    "normal",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Watch POLICY's perception and flag a shift from what is normal in DIR, which is made first if missing.",
)
@click.option("--stop-early", is_flag=True, help="End as soon as the gate's margin is settled, either way.")
@click.option(
    "--resume", is_flag=True, help="Continue from the episodes that a run with this --json FILE has finished."
)
@click.option("--plan", is_flag=True, help="Run nothing; say how many pairs --margin needs.")
@click.option("--margin", metavar="M", type=float, help="With --plan: loss of success that is accepted, as 0.05.")
@json_option
def evaluate(
    policy: str | None,
    gate: str | None,
    normal: Path | None,
    stop_early: bool,
    resume: bool,
    plan: bool,
    margin: float | None,
    json_path: Path | None,
    **settings: Any,
) -> None:
    """Runs closed-loop episodes with POLICY and prints success rates with intervals, and drift against a baseline.

    With --gate, prints what passed and exits with 1 when a limit fails. With --json, finished episodes stream into a
    file beside FILE that ends in .episodes.jsonl, and --resume continues from them. With --variant, the same episodes
    run on variants of the environment, too, each into a file of a folder that ends in .episodes, and the robustness
    gap says how much more POLICY loses there than in the nominal scene. With --monitor, what passes POLICY's
    perception-to-action interface is compared with nominal episodes, and a flag says from which episode on it differs;
    nothing is corrected.
    """
    from rich.console import Console

    from daptq.artifacts import write_json
    from daptq.evaluation.run import run_evaluation
    from daptq.report.table import monitor_rows, result_table, variant_table

    if plan:
        _print_pairs_needed(margin, policy)
        return
    if policy is None:
        raise click.UsageError("POLICY must be a name or a folder, got none. See `daptq list policies`.")
    if margin is not None:
        raise click.UsageError("--margin must come with --plan. To judge by a margin, write --gate margin=0.05.")
    limits = _limits(gate, settings["against"])
    if stop_early and (limits is None or limits.margin is None or settings["variants"]):
        raise click.UsageError("--stop-early must come with --gate margin=0.05 and without --variant.")
    request = Evaluation(
        candidates=[policy],
        stop_margin=limits.margin if limits is not None and stop_early else None,
        journal=_kept_episodes(json_path, resume, conditions=bool(settings["variants"])),
        **{**settings, "tasks": settings["tasks"] or None},
    )
    with reported_progress() as progress:
        if normal is not None:
            request = replace(request, monitor=_reference(normal, policy, request, progress))
        result = run_evaluation(request, progress)
    if limits is not None:
        result = result.judged(limits)
    Console().print(result_table(result))
    if result.variants is not None:
        Console().print(variant_table(result))
    for condition, said in monitor_rows(result):
        click.echo(f"monitor, {condition}: {said}")
    if json_path is not None:
        write_json(json_path, result.to_json())
    if limits is not None:
        _print_verdict(result.comparisons[0])


def _limits(gate: str | None, against: str | None) -> Gate | None:
    """The limits of --gate, or None."""
    from daptq.evaluation.gate import Gate

    limits = None if gate is None else Gate.parse(gate)
    if limits is not None and against is None:
        raise click.UsageError("--gate must come with --against, got no baseline. Name the full-precision policy.")
    return limits


def _reference(directory: Path, policy: str, request: Evaluation, progress: Progress) -> InterfaceReference:
    """What is normal for the policy: what the folder holds, or what nominal episodes show, which are kept there."""
    from daptq.evaluation.watched_drive import REFERENCE_SEED, take_reference
    from daptq.evaluation.worker_context import open_policy
    from daptq.monitoring.interface_reference import InterfaceReference

    if directory.exists():
        return InterfaceReference.load(directory)
    reference = take_reference(
        open_policy(policy),
        environment=request.environment,
        tasks=request.asked,
        batch=request.batch,
        progress=progress,
    )
    reference.save(directory, seed=REFERENCE_SEED)
    return reference


def _kept_episodes(json_path: Path | None, resume: bool, *, conditions: bool) -> Path | None:
    """Where finished episodes go: a file, or a folder of files where there are several conditions.

    One that is there already is continued only when that is asked for.
    """
    from daptq.errors import OutputExistsError

    if json_path is None:
        if resume:
            raise click.UsageError(
                "--resume must come with --json, got none. Name the file of the run that was killed."
            )
        return None
    path = json_path.with_name(f"{json_path.stem}.episodes{'' if conditions else '.jsonl'}")
    if path.exists() and not resume:
        message = f"episodes must go to a new {'folder' if conditions else 'file'}, got {path} of another run."
        raise OutputExistsError(message + " Continue from it with --resume, or remove it.")
    return path


def _print_verdict(comparison: Comparison) -> None:
    """Prints how an early end came about and what passed the gate; exits with 1 where something did not."""
    stopping, verdict = comparison.stopping, comparison.gate
    assert verdict is not None
    if stopping is not None:
        click.echo(
            f"{stopping.verdict} at a margin of {100.0 * stopping.margin:g} points after {stopping.pairs} of "
            f"{stopping.planned} pairs, by an interval that holds at every look"
        )
    for check in verdict.checks:
        click.echo(f"{'pass' if check.passed else 'FAIL'}  {check.name}: {check.reason}")
    if not verdict.passed:
        raise click.exceptions.Exit(1)


def _print_pairs_needed(margin: float | None, policy: str | None) -> None:
    """Prints the pairs that a margin needs, by how often the two policies disagree."""
    from daptq.statistics.sequential import POWER, pairs_needed

    if margin is None or policy is not None:
        raise click.UsageError("--plan must come with --margin and without POLICY. Write --plan --margin 0.05.")
    click.echo(f"Pairs that show non-inferiority at a margin of {100 * margin:g} points with probability {POWER:.0%},")
    click.echo("if both policies are equally good:\n\n  discordant pairs    pairs needed")
    for discordant in DISCORDANT:
        click.echo(f"  {discordant:16.0%}    {pairs_needed(margin, discordant):12d}")
