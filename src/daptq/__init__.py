"""daptq turns a Vision-Language-Action robot policy into a low-bit one and proves in closed loop that it still drives.

    policy = daptq.load_policy("reference")
    recipe = daptq.recipes.da_ptq(weight_bits=4, activation_bits=8, keep_fraction=0.3)
    daptq.quantize(policy, recipe, data="tabletop:train", output="out/")
    daptq.evaluate("out/", against="reference", environment="tabletop", episodes=100, seed=0)

Every public name is loaded when it is first used, so importing the package imports neither torch nor mujoco.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from daptq import errors
from daptq.errors import CheckFailedError, DaptqError

if TYPE_CHECKING:
    from daptq import recipes
    from daptq.environments.conformance import check_environment
    from daptq.evaluation.run import evaluate
    from daptq.packing.checkpoint import load_policy
    from daptq.policies.conformance import check_policy
    from daptq.quantization.pipeline import quantize
    from daptq.report import write_report

__version__ = "0.1.0"

__all__ = [
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

_HOME = {
    "check_environment": "daptq.environments.conformance",
    "check_policy": "daptq.policies.conformance",
    "evaluate": "daptq.evaluation.run",
    "load_policy": "daptq.packing.checkpoint",
    "quantize": "daptq.quantization.pipeline",
    "write_report": "daptq.report",
}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module."""
    if name == "recipes":
        return importlib.import_module("daptq.recipes")
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'daptq' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return [*__all__, "__version__"]
