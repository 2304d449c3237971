"""`daptq install`: what an environment needs and pip cannot install."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("what", type=click.Choice(["simpler-driver"]))
@click.option(
    "--library",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Library libvk_swiftshader.so of an installed Chromium or Chrome; by default that of Debian's package.",
)
def install(what: str, library: Path | None) -> None:  # noqa: ARG001  (one name so far)
    """Installs WHAT into the user's cache and prints where.

    simpler-driver is SwiftShader, the Vulkan driver that draws the pictures of the environment simpler without a GPU.
    """
    from daptq.environments.simpler import driver

    click.echo(driver.install(library))
