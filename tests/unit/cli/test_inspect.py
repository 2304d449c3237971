"""`daptq inspect` shows the decision about every layer, and shows less where a folder says less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from daptq.cli import main
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import save_quantized
from daptq.packing.description import PolicyDescription
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.rounding.nearest import round_weight

PATHS = list(SmallCogACTPolicy.tiny().linear_layers())
FOLDED, ROUNDED, KEPT = PATHS[-1], PATHS[0], PATHS[1]
PLAN: dict[str, Any] = {
    "layers": [
        {"name": ROUNDED, "num_bits": 4, "reason": "knapsack", "score": 1.25e-7},
        {"name": KEPT, "num_bits": 16, "reason": "last block", "score": None},
    ]
}
FOLDING: list[dict[str, Any]] = [
    {"interface": "interface", "kind": "consumer", "layers": [FOLDED]},
    {"interface": "other", "kind": "none", "layers": []},
]


def inspected(folder: Path, plan: Any, folding: Any) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The lines that are printed, and the layers of the JSON by name, of a policy with one layer of 4 bits."""
    policy = SmallCogACTPolicy.tiny()
    linear: Any = policy.get_submodule(ROUNDED)
    rounded = round_weight(linear.weight.detach(), 4)
    layers = {ROUNDED: QuantizedLinear.from_integers(rounded.integers, rounded.scale, linear.bias)}
    save_quantized(policy, folder / "out", layers=layers, plan=plan, folding=folding, recipe={}, provenance={})
    result = CliRunner().invoke(main, ["inspect", str(folder / "out"), "--json", str(folder / "out.json")])
    assert result.exit_code == 0, result.output
    written = json.loads((folder / "out.json").read_text())
    assert (written["plan"], written["folding"]) == (plan, folding)
    assert PolicyDescription.read(folder / "out.json").to_json() == written
    return result.stdout.splitlines(), {layer["name"]: layer for layer in written["layers"]}


def test_every_layer_has_one_line_with_its_decision(tmp_path: Path) -> None:
    lines, layers = inspected(tmp_path, PLAN, FOLDING)
    assert list(layers) == PATHS
    assert {key: layers[ROUNDED][key] for key in ("num_bits", "score", "reason", "folding")} == {
        "num_bits": 4,
        "score": 1.25e-7,
        "reason": "knapsack",
        "folding": None,
    }
    assert (layers[KEPT]["reason"], layers[KEPT]["score"]) == ("last block", None)
    assert (layers[FOLDED]["reason"], layers[FOLDED]["folding"]) == (None, "consumer")

    shown = {name: [line for line in lines if line.split()[:1] == [name]] for name in PATHS}
    assert all(len(found) == 1 for found in shown.values())
    size = f"{layers[ROUNDED]['bytes'] / 1024:.1f}"
    role, parameters = layers[ROUNDED]["role"], str(layers[ROUNDED]["parameters"])
    assert shown[ROUNDED][0].split() == [ROUNDED, role, "4", parameters, size, "1.25e-07", "knapsack", "-"]
    assert shown[KEPT][0].split()[-4:] == ["-", "last", "block", "-"]
    assert shown[FOLDED][0].split()[-1] == "consumer"
    (titles,) = [line for line in lines if line.startswith("layer ")]
    assert titles.index("folding") == shown[FOLDED][0].index("consumer")


@pytest.mark.parametrize(
    ("plan", "folding"), [({}, {}), (None, None), ([{"name": ROUNDED}], {"order": 1}), ({"layers": 3}, [1])]
)
def test_plans_of_another_form_are_shown_as_they_are(tmp_path: Path, plan: Any, folding: Any) -> None:
    lines, layers = inspected(tmp_path, plan, folding)
    assert all((layer["score"], layer["reason"], layer["folding"]) == (None, None, None) for layer in layers.values())
    assert any(line.split()[:1] == [ROUNDED] and line.split()[-3:] == ["-", "-", "-"] for line in lines)
