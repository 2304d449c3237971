"""What the manifest of a policy folder says, and what folders of earlier versions leave out."""

from __future__ import annotations

from typing import Any

import pytest

from daptq.errors import ForeignArtifactError
from daptq.packing.metadata import CheckpointMetadata, LayerDecision, StoredLayer

PLAIN: dict[str, Any] = {"family": "f", "name": "n", "config": {}}


def test_a_float_policy_has_neither_layers_nor_plans() -> None:
    metadata = CheckpointMetadata.from_json(PLAIN)
    assert (metadata.layers, metadata.decisions, metadata.folded, metadata.sensitivity) == ({}, None, {}, None)
    assert (metadata.plan, metadata.folding, metadata.recipe, metadata.provenance) == (None,) * 4


@pytest.mark.parametrize(
    "entry",
    [
        {"role": "vision", "num_bits": 16},
        {"role": "language", "num_bits": 4, "group_size": 32, "activation_bits": 4, "rotation_block": 16},
    ],
)
def test_a_layer_is_written_as_it_was_read(entry: dict[str, Any]) -> None:
    assert StoredLayer.from_json(entry).to_json() == entry


def test_what_an_earlier_version_left_out_is_what_every_layer_had() -> None:
    old = StoredLayer.from_json({"role": "language", "num_bits": 4})
    assert old == StoredLayer(role="language", num_bits=4, activation_bits=8, group_size=0, rotation_block=0)
    assert StoredLayer.from_json({"role": "language", "num_bits": 16}).activation_bits is None


def test_plans_are_read_by_layer() -> None:
    plan = {"layers": [{"name": "a", "num_bits": 4, "reason": "score", "score": 0.5}, {"name": "b"}, {"num_bits": 2}]}
    folding = [{"layers": ["a", "b"], "kind": "consumer"}, {"layer": "c", "kind": "producer"}, {"layers": ["d"]}]
    recipe = {"sensitivity": {"method": "phi"}}
    metadata = CheckpointMetadata.from_json({**PLAIN, "plan": plan, "folding": folding, "recipe": recipe})
    assert metadata.decisions == {"a": LayerDecision(num_bits=4, reason="score", score=0.5), "b": LayerDecision()}
    assert metadata.folded == {"a": "consumer", "b": "consumer", "c": "producer"}
    assert metadata.sensitivity == "phi"


@pytest.mark.parametrize("plan", [None, [], {"layers": {}}, "text"])
def test_a_plan_in_another_form_says_nothing(plan: Any) -> None:
    metadata = CheckpointMetadata.from_json({**PLAIN, "plan": plan, "folding": plan})
    assert (metadata.decisions, metadata.folded, metadata.sensitivity) == (None, {}, None)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        [],
        {},
        {"family": "f", "config": {}},
        {**PLAIN, "layers": []},
        {**PLAIN, "layers": {"a": {"role": "vision"}}},
    ],
)
def test_a_manifest_of_something_else_is_refused(metadata: Any) -> None:
    with pytest.raises(ForeignArtifactError, match="manifest of a policy must name family, name, config and the role"):
        CheckpointMetadata.from_json(metadata)
