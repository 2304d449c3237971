"""Another distribution on the path adds one file of every kind, and the command line and the library use each.

A second one adds a name of every kind that cannot be imported; it is named in warnings and stops nothing.

The distribution is a folder with `*.dist-info/entry_points.txt`, as pip installs one; a fresh interpreter finds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daptq import catalog

# Module, and what it holds, by catalog.
FILES = {
    "rounding": """
        from dataclasses import dataclass
        from typing import ClassVar
        from daptq.rounding.contract import RoundingMethod
        from daptq.rounding.nearest import NearestConfig

        @dataclass(frozen=True, kw_only=True)
        class Shrunk(RoundingMethod):
            method: ClassVar[str] = "acme-rounding"
            factor: float = 1.0

            def round_weight(self, weight, num_bits, gram=None):
                nearest = NearestConfig(group_size=self.group_size, asymmetric=self.asymmetric)
                return nearest.round_weight(weight * self.factor, num_bits)

        ROUNDING = Shrunk
    """,
    "activation_scaling": """
        from dataclasses import dataclass
        from typing import ClassVar
        from daptq.activation_scaling.contract import ActivationScaling
        from daptq.methods import Needs

        @dataclass(frozen=True, kw_only=True)
        class Largest(ActivationScaling):
            method: ClassVar[str] = "acme-activation-scaling"
            needs = Needs(ranges=True)

            def kept_ranges(self, inputs, *, steps):
                return inputs.percentile(100.0)

            def scales(self, ranges, num_bits):
                return (ranges / 7 / (16 if num_bits == 8 else 1)).clamp(min=1e-6)

        ACTIVATION_SCALING = Largest
    """,
    "allocation": """
        from dataclasses import dataclass
        from typing import ClassVar
        from daptq.allocation.contract import AllocationMethod
        from daptq.allocation.plan import LayerBits
        from daptq.methods import Needs

        @dataclass(frozen=True, kw_only=True)
        class LeastFirst(AllocationMethod):
            method: ClassVar[str] = "acme-allocation"
            needs = Needs(scores=True)
            candidate_bits = (2, 8)
            budget_of_layers: int = 3

            def allocate(self, layers, scores, keep):
                ranked = sorted(layers.scored, key=lambda name: scores[name][2])[: self.budget_of_layers]
                return {
                    name: LayerBits(name=name, num_bits=2 if name in ranked else 8, reason="acme")
                    for name in layers.scored
                }

        ALLOCATION = LeastFirst
    """,
    "sensitivity": """
        from dataclasses import dataclass
        from typing import ClassVar
        from daptq.methods import Needs
        from daptq.sensitivity.contract import SensitivityMethod

        @dataclass(frozen=True, kw_only=True)
        class RoundingError(SensitivityMethod):
            method: ClassVar[str] = "acme-sensitivity"
            needs = Needs(data=True)

            def scores(self, passes):
                scores = {}
                for name, bits in passes.bits.items():
                    exact = passes.weight(name)
                    scores[name] = {b: float((passes.rounded(name, b) - exact).norm()) for b in bits}
                return scores

        SENSITIVITY = RoundingError
    """,
    "compensation": """
        from dataclasses import dataclass
        from typing import ClassVar
        import torch
        from daptq.compensation.contract import CompensationMethod
        from daptq.interfaces.affine import AffineMap

        @dataclass(frozen=True, kw_only=True)
        class Mean(CompensationMethod):
            method: ClassVar[str] = "acme-compensation"

            def solve(self, full, quantized, sensitivity, map_class, heads):
                shift = full.moments.mean - quantized.moments.mean
                return {"mean": AffineMap(matrix=torch.eye(len(shift), dtype=torch.float64), shift=shift)}

        COMPENSATION = Mean
    """,
    "drift_model": """
        from dataclasses import dataclass
        from typing import ClassVar
        import torch
        from daptq.drift.contract import DriftModel

        @dataclass(frozen=True, kw_only=True)
        class Plain(DriftModel):
            method: ClassVar[str] = "acme-drift-model"

            def refuses(self, space):
                return None

            def weights(self, actions, unit=None, *, space):
                return torch.ones(actions.shape[-1], dtype=torch.float64)

            def metric(self, chunks, states, *, space, steps):
                return torch.eye(chunks.shape[1] * chunks.shape[2], dtype=torch.float64)

        DRIFT_MODEL = Plain
    """,
    "policy": """
        from dataclasses import replace
        from daptq.catalog import FOLDS
        from daptq.policies.cogact_small import SmallCogACTPolicy

        class AcmePolicy(SmallCogACTPolicy):
            family = "acme-policy"

            def interfaces(self):
                fold = FOLDS.provided("acme-fold")
                return tuple(
                    replace(one, folds=tuple(fold(old.consumers, old.constants) for old in one.folds))
                    for one in super().interfaces()
                )

        POLICY = AcmePolicy
    """,
    "environment": """
        from daptq.environments.tabletop import TASKS, make
    """,
    "source": """
        from daptq.calibration.contract import CalibrationSource
        from acme.policy import POLICY

        class MadeUp(CalibrationSource):
            licence, description, hash = "CC0-1.0", "made-up states", "acme"

            def __iter__(self):
                policy = POLICY.tiny(seed=0)
                return iter([policy.example_batch(seed) for seed in range(3)])

        def open_source(split, *, limit, seed):
            return MadeUp()
    """,
    "kernel": """
        from daptq.kernels.linear.backends import reference

        unavailable, unsupported, prepare = reference.unavailable, reference.unsupported, reference.prepare
    """,
    "method": """
        from acme.activation_scaling import ACTIVATION_SCALING
        from acme.allocation import ALLOCATION
        from acme.drift_model import DRIFT_MODEL
        from acme.sensitivity import SENSITIVITY
        from daptq.recipes import Recipe

        def acme_method(*, fewest: int = 3) -> Recipe:
            \\"\\"\\"A recipe.

            Args:
                fewest: Layers with the fewest bits.
            \\"\\"\\"
            return Recipe(
                name="acme-method",
                activation_scaling=ACTIVATION_SCALING(),
                drift_model=DRIFT_MODEL(),
                sensitivity=SENSITIVITY(),
                allocation=ALLOCATION(budget_of_layers=fewest),
            )
    """,
    "fold": """
        from daptq.interfaces.into_consumers import IntoConsumers

        class Acme(IntoConsumers):
            method = label = "acme-fold"

        FOLD = Acme
    """,
}

USE = """
import json, sys, torch
from pathlib import Path
from daptq import catalog
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy, save_policy
from daptq.policies.conformance import check_policy
from daptq.quantization.recipe import Recipe
from daptq.artifacts import read_artifact
from daptq.cli import main
from daptq.cli.recipe_choice import chosen_recipe
from daptq.errors import DaptqError

folder = Path(sys.argv[1])
shelves = [shelf for shelf in vars(catalog).values() if isinstance(shelf, catalog.Catalog)]
listed = {shelf.kind: [name for name in shelf.names() if name.startswith("acme")] for shelf in shelves}
policy = catalog.POLICIES.provided("acme-policy").tiny(seed=0)
check_policy(policy)
save_policy(policy, folder / "policy")
assert load_policy(folder / "policy").family == "acme-policy"
arguments = ["quantize", f"{folder}/policy", "--output", f"{folder}/out", "--data", "acme-source:all"]
arguments += ["--method", "acme-method", "--fewest", "2", "--rounding", "acme-rounding"]
arguments += ["--compensation", "acme-compensation", "--set", "rounding.factor=0.5"]
arguments += ["--set", "compensation.selection=always"]
main(arguments, standalone_mode=False)
metadata = read_artifact(folder / "out", kind="quantized-policy").metadata
recipe = Recipe.from_json(metadata["recipe"])
quantized = load_policy(folder / "out")
layer = next(module for module in quantized.modules() if isinstance(module, QuantizedLinear))
x = torch.randn(3, layer.in_features)
layer.use_backend("reference")
expected = layer(x)
layer.use_backend("acme-kernel")
multiplied = bool(torch.equal(layer(x), expected)) and layer.backend == "acme-kernel"
main(["list", "roundings", "--settings"], standalone_mode=False)
(folder / "empty").mkdir()
try:
    load_policy(folder / "empty")
except DaptqError:
    pass
try:
    chosen_recipe("lost-method", {})
except DaptqError as error:
    refused = str(error)
env = catalog.ENVIRONMENTS.load("acme-environment").make()
env.reset(seed=0)
env.close()
print(json.dumps({
    "listed": listed,
    "recipe": recipe.to_json(),
    "bits": sorted(entry["num_bits"] for entry in metadata["plan"]["layers"] if entry["reason"] == "acme"),
    "folding": [(entry["map"], entry["kind"].removesuffix("-rounded")) for entry in metadata["folding"]],
    "scaled": layer.activation_scale is not None,
    "refused": refused,
    "multiplied": multiplied,
}))
"""


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `acme` and its entry points."""
    import textwrap

    folder = tmp_path_factory.mktemp("site")
    (folder / "acme").mkdir()
    (folder / "acme" / "__init__.py").write_text("")
    lines = []
    for kind, text in FILES.items():
        (folder / "acme" / f"{kind}.py").write_text(textwrap.dedent(text).replace('\\"', '"'))
        lines += [f"[daptq.{kind}]", f"acme-{kind.replace('_', '-')} = acme.{kind}", ""]
    info = folder / "acme-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def broken_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a package `lost` that needs something that is not installed."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "lost.py").write_text("import not_installed_anywhere\n")
    info = folder / "lost-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lost\nVersion: 1.0\n")
    lines = [f"[daptq.{kind}]\nlost-{kind.replace('_', '-')} = lost\n" for kind in FILES]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def test_every_kind_is_tried() -> None:
    kinds = {shelf.kind.replace(" ", "_") for shelf in vars(catalog).values() if isinstance(shelf, catalog.Catalog)}
    assert kinds == set(FILES)


def test_one_file_of_every_kind_is_listed_and_used(
    distribution: Path, broken_distribution: Path, tmp_path: Path
) -> None:
    paths = os.pathsep.join([str(distribution), str(broken_distribution), *[path for path in sys.path if path]])
    script = tmp_path / "use.py"
    script.write_text(USE)
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert all(names == [f"acme-{kind.replace(' ', '-')}"] for kind, names in told["listed"].items())
    recipe = told["recipe"]
    for stage in ("rounding", "activation_scaling", "drift", "sensitivity", "allocation", "compensation"):
        assert recipe[stage]["method"].startswith("acme-")
    assert recipe["rounding"]["factor"] == 0.5
    assert told["bits"].count(2) == 2
    assert set(told["bits"]) == {2, 8}
    assert told["folding"] == [["mean", "acme-fold"]]
    assert told["scaled"]
    assert told["multiplied"]
    assert "method 'lost-method' must be a module that can be imported" in told["refused"]
    assert "No module named 'not_installed_anywhere'. Install what it needs" in told["refused"]
    # What is looked through as a whole: each broken name once.
    for kind in ("method", "rounding", "policy"):
        assert result.stderr.count(f"{kind} 'lost-{kind}' of another distribution is left out") == 1
