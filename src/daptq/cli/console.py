"""What the commands share with the terminal: the `--json` option and progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

__all__ = ["json_option", "reported_progress"]

json_option = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the result to this file as JSON.",
)


@contextmanager
def reported_progress() -> Iterator[Callable[[int, int, str], None]]:
    """Shows long work on standard error: a bar on a terminal, one line per step otherwise.

    Yields:
        A function to call after every step with how many are done, how many there are, and what was done.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total, what: click.echo(f"[{done}/{total}] {what}", err=True)
        return
    columns = (
        progress.MofNCompleteColumn(),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.description}"),
    )
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
