"""`daptq quantize`: turns a policy into a low-bit one."""

from __future__ import annotations

from pathlib import Path

import click

from daptq.cli.console import json_option, reported_progress
from daptq.cli.recipe_options import RecipeCommand


@click.command(cls=RecipeCommand)
@click.argument("policy")
@click.option("--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="New folder to write.")
@click.option(
    "--method", metavar="NAME", default="da-ptq", help="Recipe; `daptq list methods --settings` says what each takes."
)
@click.option("--data", metavar="SOURCE", default="tabletop:train", help="Calibration data, as source:split.")
@click.option("--seed", metavar="S", type=int, default=0, help="Seed of the calibration states and their noise.")
@click.option("--stream", is_flag=True, help="Leave large weights on the disk, for a policy larger than memory.")
@click.option(
    "--dataset",
    metavar="NAME",
    help="Where POLICY has a dataset_statistics.json with several robots' data sets: the key of the one to drive by.",
)
@json_option
def quantize(
    policy: str,
    output: Path,
    method: str,
    data: str,
    seed: int,
    stream: bool,
    dataset: str | None,
    json_path: Path | None,
    assignments: tuple[str, ...],
    **settings: float | str | bool | None,
) -> None:
    """Quantizes POLICY into the new folder DIR, which loads without the original policy.

    A killed run continues where it stopped when the same command is given again. Without options the recipe is the
    method's own; an option that names another method for a part of it keeps the settings that both have.
    """
    from daptq.artifacts import require_new_output, write_json
    from daptq.cli.recipe_choice import chosen_recipe
    from daptq.packing.checkpoint import load_policy
    from daptq.quantization.pipeline import quantize as run

    given = {name: value for name, value in settings.items() if value is not None}
    recipe = chosen_recipe(method, given, assignments)
    require_new_output(output)
    with reported_progress() as progress:
        run(
            load_policy(policy, stream=stream, dataset=dataset),
            recipe,
            data=data,
            output=output,
            seed=seed,
            progress=progress,
        )
    click.echo(output)
    if json_path is not None:
        from daptq.packing.description import PolicyDescription

        write_json(json_path, PolicyDescription.of(output).to_json())
