"""The published schema fits every kind of result, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from daptq.artifacts import write_json
from daptq.errors import ArtifactError, ForeignArtifactError, SchemaVersionError
from daptq.evaluation.gate import Gate
from daptq.evaluation.result import EvaluationResult
from daptq.evaluation.run import evaluate
from daptq.evaluation.watched_drive import take_reference
from tests.closed_loop.json_results import evaluate_json, evaluated
from tests.closed_loop.point_world import Reader

pytestmark = pytest.mark.usefixtures("point_world")
SETTINGS: dict[str, Any] = {"environment": "point", "episodes": 4}


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    found = EvaluationResult.json_schema()
    Draft202012Validator.check_schema(found)
    return Draft202012Validator(found)


@pytest.fixture
def result(make_pusher: Callable[..., Any]) -> Any:
    """Everything at once: stopped early, judged by a gate."""
    policies = make_pusher("q", error=-0.01), make_pusher(noise=0.001)
    found = evaluate(policies[0], against=policies[1], stop_margin=0.1, **SETTINGS)
    return json.loads(json.dumps(found.judged(Gate(margin=0.1, drift=1.0, jerk=2.0)).to_json()))


def test_a_result_with_everything(schema: Draft202012Validator, result: Any) -> None:
    schema.validate(result)
    assert result["comparisons"][0]["paired"]["discordant"]


def test_a_result_with_little(schema: Draft202012Validator, make_pusher: Callable[..., Any]) -> None:
    schema.validate(json.loads(json.dumps(evaluate_json(make_pusher(), **SETTINGS))))
    still = make_pusher("still", stop_at=0.0, error=-0.001)
    schema.validate(
        json.loads(json.dumps(evaluate_json(still, against=still, drift_states=0, tasks=["left"], **SETTINGS)))
    )
    branches = evaluated({"q": make_pusher()}, against=make_pusher(), closed_loop=False, **SETTINGS)
    schema.validate(json.loads(json.dumps(branches)))


def test_a_result_on_variants(schema: Draft202012Validator, make_pusher: Callable[..., Any]) -> None:
    found = evaluated([make_pusher("q")], variants=["all"], against=make_pusher(), **SETTINGS)
    schema.validate(json.loads(json.dumps(found)))
    assert len(found["variants"]) == 3


def test_a_result_with_a_monitor(schema: Draft202012Validator) -> None:
    reader = Reader()
    normal = take_reference(reader, environment="point", episodes=8)
    found = evaluated([reader], variants=["gust"], monitor=normal, **SETTINGS)
    schema.validate(json.loads(json.dumps(found)))
    assert {"monitor"} <= found.keys() & found["variants"][0].keys()
    found["monitor"]["episodes"][0]["p_value"] = 2.0
    with pytest.raises(ValidationError):
        schema.validate(json.loads(json.dumps(found)))


SPOILT: dict[str, Callable[[Any], Any]] = {
    "another version": lambda result: result.update(schema_version=2),
    "a field more": lambda result: result.update(colour="red"),
    "a field less": lambda result: result.pop("seed"),
    "a rate in percent": lambda result: result["policies"][0].update(success_rate=88.0),
    "a field more, deep": lambda result: result["comparisons"][0]["motion"]["rms_jerk"].update(unit="m"),
    "a limit less": lambda result: result["comparisons"][0]["drift"]["whole_episode"]["position_mm"]["rms"].pop("low"),
    "another verdict": lambda result: result["comparisons"][0]["stopping"].update(verdict="good"),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_spoilt_result_is_refused(schema: Draft202012Validator, result: Any, spoil: Callable[[Any], Any]) -> None:
    spoilt = copy.deepcopy(result)
    spoil(spoilt)
    with pytest.raises(ValidationError):
        schema.validate(spoilt)
    with pytest.raises(ArtifactError):
        EvaluationResult.from_json(spoilt)


def test_what_is_read_is_what_was_written(result: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "written.json", result)
    read = EvaluationResult.read(tmp_path / "written.json")
    assert json.dumps(read.to_json()) == json.dumps(result)  # the order of the keys, too


def test_another_version_is_refused_by_name(result: Any) -> None:
    with pytest.raises(SchemaVersionError, match="schema_version of the evaluation must be 1, got 2"):
        EvaluationResult.from_json({**result, "schema_version": 2})
    with pytest.raises(ForeignArtifactError, match="JSON must be the evaluation result"):
        EvaluationResult.from_json({"schema_version": 1})
    result["policies"][0]["success_rate"] = 88.0
    with pytest.raises(ForeignArtifactError, match=r"policies\.0\.success_rate.* must fit the schema .*, got 88"):
        EvaluationResult.from_json(result)


def test_the_page_names_every_field(schema: Draft202012Validator) -> None:
    described = set(schema.schema["properties"])
    page = (Path(__file__).parents[2] / "docs" / "reference" / "evaluation.md").read_text(encoding="utf-8")
    assert {name for name in described if f"`{name}`" not in page} == set()
