"""`daptq quantize`: turns a policy into a low-bit one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import click

from daptq.cli.console import json_option, reported_progress
from daptq.errors import RecipeError


@click.command()
@click.argument("policy")
@click.option("--output", required=True, metavar="DIR", type=click.Path(path_type=Path), help="New folder to write.")
@click.option("--method", metavar="NAME", default="da-ptq", help="Recipe; see `daptq list methods`.")
@click.option("--data", metavar="SOURCE", default="tabletop:train", help="Calibration data, as source:split.")
@click.option("--weight-bits", metavar="BITS", type=int, help="Bits of a quantized weight.  [default: the method's]")
@click.option(
    "--activation-bits", metavar="BITS", type=int, help="Likewise, 16: not quantized.  [default: the method's]"
)
@click.option("--group-size", metavar="N", type=int, help="Weights that share a scale: 32, 64, 128; 0: a whole row.")
@click.option("--asymmetric", is_flag=True, default=None, help="Give every scale of a weight a zero point.")
@click.option("--float-where-faster", is_flag=True, default=None, help="Keep layers that low bits slow down here.")
@click.option("--keep-fraction", metavar="F", type=float, help="Action-head layers kept.  [default: the method's]")
@click.option("--budget-mib", metavar="N", type=float, help="Size of the linear layers, for a method with a budget.")
@click.option("--budget-ms", metavar="N", type=float, help="Measured time of the linear layers, likewise.")
@click.option("--budget-bits", metavar="N", type=float, help="Mean bits per weight, scales included, likewise.")
@click.option("--drift-model", metavar="NAME", help="See `daptq list drift-models`.  [default: the method's]")
@click.option("--gate-mm", metavar="N", type=float, help="Promote layers until a chunk drifts at most so far.")
@click.option("--calibration-states", metavar="N", type=int, help="States to calibrate on.  [default: the method's]")
@click.option("--seed", metavar="S", type=int, default=0, help="Seed of the calibration states and their noise.")
@click.option("--stream", is_flag=True, help="Leave large weights on the disk, for a policy larger than memory.")
@click.option("--dataset", metavar="NAME", help="Statistics of a public CogACT checkpoint to un-normalise by.")
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
    **settings: float | str | bool | None,
) -> None:
    """Quantizes POLICY into the new folder DIR, which loads without the original policy.

    A killed run continues where it stopped when the same command is given again.
    """
    from daptq.artifacts import require_new_output, write_json
    from daptq.packing.checkpoint import load_policy
    from daptq.quantization.pipeline import quantize as run

    recipe = _recipe(method, {name: value for name, value in settings.items() if value is not None})
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
        from daptq.cli.policy_folder import describe

        write_json(json_path, describe(output))


def _recipe(method: str, settings: dict[str, Any]) -> Any:
    """Builds the recipe of a method with the settings that were given.

    Raises:
        UnknownNameError: No method has this name.
        RecipeError: The method has no such setting, or refuses its value.
    """
    from daptq.catalog import METHODS

    factory = getattr(METHODS.load(method), method.replace("-", "_"))
    known = inspect.signature(factory).parameters
    for name in settings:
        if name not in known:
            option = "--" + name.replace("_", "-")
            listed = ", ".join("--" + setting.replace("_", "-") for setting in known)
            raise RecipeError(f"settings of {method} must be among {listed}, got {option}. Leave it out.")
    return factory(**settings)
