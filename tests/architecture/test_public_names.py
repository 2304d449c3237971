"""The public names are pinned, load on demand, and importing the package or the command line stays light."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import daptq

HEAVY = {"torch", "numpy", "mujoco", "gymnasium", "transformers", "scipy", "safetensors", "rich", "pydantic"}


def modules_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded after `code`."""
    script = f"{code}\nimport json, sys\nprint(json.dumps([*sys.modules]))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in json.loads(result.stdout.splitlines()[-1])}


def test_pinned_names() -> None:
    assert daptq.__all__ == [
        "CheckFailedError",
        "DaptqError",
        "check_environment",
        "check_policy",
        "errors",
        "evaluate",
        "load_policy",
        "quantize",
        "recipes",
        "write_report",
    ]
    assert set(daptq.__all__) <= set(dir(daptq))


@pytest.mark.parametrize("name", daptq.__all__)
def test_every_public_name_loads(name: str) -> None:
    assert getattr(daptq, name) is not None


def test_recipes_are_functions_whatever_was_imported_first() -> None:
    code = (
        "import daptq\nfrom daptq.catalog import METHODS\nfor name in METHODS.names(): METHODS.load(name)\n"
        "daptq.recipes.da_ptq(), daptq.recipes.round_to_nearest()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="quantise"):
        _ = daptq.quantise


@pytest.mark.parametrize("code", ["import daptq", "import daptq.cli", "import daptq.catalog", "import daptq.errors"])
def test_importing_is_light(code: str) -> None:
    assert not modules_after(code) & HEAVY


def test_listing_names_is_light() -> None:
    assert not modules_after("from daptq.catalog import *\nENVIRONMENTS.names(); METHODS.names()") & HEAVY


def test_the_guard_can_fail() -> None:
    assert "torch" in modules_after("import daptq\ndaptq.load_policy")
