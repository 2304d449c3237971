"""The group of all commands, and how an exception becomes an exit code."""

from __future__ import annotations

from typing import Any

import click

import daptq
from daptq.cli.audit import audit
from daptq.cli.benchmark import benchmark
from daptq.cli.evaluate import evaluate
from daptq.cli.inspect import inspect
from daptq.cli.install import install
from daptq.cli.list import list_names
from daptq.cli.quantize import quantize
from daptq.cli.report import report
from daptq.errors import CheckFailedError, DaptqError


class _Group(click.Group):
    """A group that turns every DaptqError into one line on standard error and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Runs the chosen command; exits with 1 for CheckFailedError, with 2 for any other DaptqError."""
        try:
            return super().invoke(ctx)
        except DaptqError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            ctx.exit(1 if isinstance(error, CheckFailedError) else 2)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(daptq.__version__, prog_name="daptq")
def main() -> None:
    """Quantizes Vision-Language-Action robot policies and proves in closed loop that they still drive.

    A POLICY is a packaged name such as "reference" or a folder that `daptq quantize` wrote.
    """


for command in (quantize, evaluate, benchmark, inspect, audit, report, list_names, install):
    main.add_command(command)
