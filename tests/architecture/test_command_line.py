"""The commands and their options are frozen: scripts that people wrote keep working."""

from __future__ import annotations

from typing import Any

import click
import pytest

from daptq.cli import main

FROZEN: dict[str, dict[str, Any]] = {
    "quantize": {
        "POLICY": "required",
        "--output": "required",
        "--method": "da-ptq",
        "--data": "tabletop:train",
        "--seed": 0,
        "--stream": False,
        "--dataset": None,
        "--json": None,
        # Generated from the keywords of the recipes.
        "--weight-bits": None,
        "--activation-bits": None,
        "--keep-fraction": None,
        "--keep-last-blocks": None,
        "--order": None,
        "--folding": None,
        "--scale": None,
        "--group-size": None,
        "--asymmetric": None,
        "--float-where-faster": None,
        "--calibration-states": None,
        "--budget-bits": None,
        "--budget-mib": None,
        "--budget-ms": None,
        "--gate-mm": None,
        # Generated from the kinds of methods.
        "--rounding": None,
        "--activation-scaling": None,
        "--drift-model": None,
        "--sensitivity": None,
        "--allocation": None,
        "--compensation": None,
        "--set": None,
    },
    "evaluate": {
        "POLICY": None,
        "--against": None,
        "--environment": "tabletop",
        "--variant": None,
        "--task": None,
        "--episodes": 100,
        "--seed": 0,
        "--workers": 1,
        "--ray": None,
        "--batch": 1,
        "--gate": None,
        "--monitor": None,
        "--stop-early": False,
        "--resume": False,
        "--plan": False,
        "--margin": None,
        "--json": None,
    },
    "benchmark": {
        "POLICIES": "required",
        "--against": "required",
        "--device": "cpu",
        "--repeats": 30,
        "--threads": None,
        "--float-path": None,
        "--seed": 0,
        "--json": None,
    },
    "inspect": {"DIRECTORY": "required", "--json": None},
    "audit": {"DIRECTORY": "required", "--seed": 0, "--json": None},
    "report": {"FILE": "required", "--output": "required", "--benchmark": None, "--animate": None, "--json": None},
    "list": {"KIND": "required", "--settings": False, "--json": None},
    "install": {"WHAT": "required", "--library": None},
}


def shape(command: click.Command) -> dict[str, Any]:
    """Name and default of every parameter of a command."""
    found: dict[str, Any] = {}
    for parameter in command.to_info_dict(click.Context(command))["params"]:
        name = parameter["opts"][0] if parameter["param_type_name"] == "option" else parameter["name"].upper()
        if "--help" not in parameter["opts"]:
            found[name] = "required" if parameter["required"] else parameter["default"]
    return found


def test_commands_are_frozen() -> None:
    assert {name: shape(command) for name, command in main.commands.items()} == FROZEN


@pytest.mark.parametrize("name", list(FROZEN))
def test_every_option_is_explained(name: str) -> None:
    command = main.commands[name]
    assert command.help
    for parameter in command.get_params(click.Context(command)):
        assert isinstance(parameter, click.Argument) or getattr(parameter, "help", None)


def test_the_freeze_can_fail() -> None:
    @click.command()
    @click.argument("policy")
    @click.option("--colour", default="red")
    def painted(policy: str, colour: str) -> None: ...

    assert shape(painted) == {"POLICY": "required", "--colour": "red"}
