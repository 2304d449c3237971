"""A request is checked when it is built; the function and the command line offer its fields."""

from __future__ import annotations

import inspect
from dataclasses import MISSING, fields
from typing import Any

import click
import pytest

from daptq.cli.evaluate import METAVARS
from daptq.cli.evaluate import evaluate as command
from daptq.cli.request_options import request_options
from daptq.errors import InvalidInputError, UnknownNameError
from daptq.evaluation.request import Evaluation
from daptq.evaluation.run import evaluate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidates": []}, "candidates must hold at least one policy"),
        ({"episodes": 3}, "one per task"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"tasks": []}, "tasks must name at least one task"),
        ({"stop_margin": 0.1}, "stop_margin must come with a baseline"),
        ({"stop_margin": 0.1, "against": "reference", "closed_loop": False}, "stop_margin must come with"),
        ({"stop_margin": 0.1, "against": "reference", "variants": ["all"]}, "stop_margin must come with"),
        ({"stop_margin": 1.5, "against": "reference"}, "margin must be between 0 and 1"),
        ({"stop_margin": 0.1, "against": "reference", "episodes": 41}, "multiple of the number of tasks"),
        ({"variants": ["all"], "variant": "dim-light"}, "variant must be one of"),
        ({"variants": ["all"], "closed_loop": False}, "variants must be run as well as the nominal scene"),
        ({"variants": ["all"], "episodes": 1, "tasks": ["spoon_on_towel"]}, "episodes must be at least 2"),
    ],
)
def test_what_cannot_be_run_is_refused_when_it_is_built(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Evaluation(**{"candidates": ["reference"], "episodes": 40, **change})


@pytest.mark.parametrize("change", [{"environment": "tabeltop"}, {"tasks": ["spoon"]}, {"variants": ["dark"]}])
def test_unknown_names_are_refused_when_it_is_built(change: dict[str, Any]) -> None:
    with pytest.raises(UnknownNameError):
        Evaluation(candidates=["reference"], **change)


def test_each_condition_is_a_request_of_its_own() -> None:
    request = Evaluation(candidates={"q": "reference"}, variants=["all"], against="reference", drift_states=7)
    conditions = request.conditions()
    assert list(conditions) == [None, *request.described_variants]
    for variant, one in conditions.items():
        assert (one.variant, one.variants, one.drift_states) == (variant, (), 7 if variant is None else 0)
        assert list(one.sources) == ["reference", "q"]


def test_the_function_has_the_fields_of_the_request_with_their_defaults() -> None:
    parameters = dict(inspect.signature(evaluate).parameters)
    assert [*parameters][:: len(parameters) - 1] == ["policy", "progress"]
    offered = {name: one.default for name, one in parameters.items() if name not in ("policy", "progress")}
    assert offered == {one.name: one.default for one in fields(Evaluation) if one.default is not MISSING}


def test_an_unknown_setting_of_the_function_is_refused_by_name() -> None:
    with pytest.raises(UnknownNameError, match="setting of an evaluation must be .*'episode'. Did you mean 'episodes'"):
        evaluate("reference", episode=8)
    with pytest.raises(UnknownNameError, match="got 'candidates'"):
        evaluate("reference", candidates=["reference"])


def test_options_are_made_of_the_fields() -> None:
    options = {option.name: option for option in command.params if isinstance(option, click.Option)}
    for name in METAVARS:
        assert options[name].help
    assert (options["tasks"].opts, options["tasks"].multiple) == (["--task"], True)
    assert (options["episodes"].type, options["episodes"].default) == (click.INT, 100)


def test_a_field_that_does_not_exist_is_no_option() -> None:
    with pytest.raises(KeyError):
        request_options(Evaluation, {"colour": "NAME"})(lambda: None)
