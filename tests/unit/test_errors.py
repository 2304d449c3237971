from __future__ import annotations

import inspect
import pickle

import pytest

from daptq import errors
from daptq.errors import (
    CheckFailedError,
    DaptqError,
    InvalidInputError,
    RecipeError,
    UnknownNameError,
    require_check,
    require_one_of,
)

CLASSES = [value for _, value in inspect.getmembers(errors, inspect.isclass) if issubclass(value, DaptqError)]


def test_every_class_is_public_and_drawn_in_the_tree() -> None:
    names = sorted(cls.__name__ for cls in CLASSES)
    assert sorted(errors.__all__) == sorted([*names, "require_check", "require_one_of"])
    assert errors.__doc__ is not None
    drawn = [line.lstrip(" │├└─").split(" ")[0] for line in errors.__doc__.splitlines() if "Error" in line[:40]]
    assert sorted(drawn) == names


def test_a_suite_refuses_what_does_not_hold() -> None:
    require_check(True, "never said")
    with pytest.raises(CheckFailedError, match=r"^one must be 2, got 1\.$"):
        require_check(False, "one must be 2, got 1")


def test_a_value_must_be_one_of_a_few() -> None:
    require_one_of("colour", "red", ("red", "blue"))
    with pytest.raises(InvalidInputError, match=r"^colour must be one of red, 4, got 'blue'\. Choose one of these\.$"):
        require_one_of("colour", "blue", ("red", 4))
    with pytest.raises(RecipeError):
        require_one_of("colour", 4, (), RecipeError)


@pytest.mark.parametrize(
    ("name", "parent"),
    [
        ("UnknownNameError", "InvalidInputError"),
        ("RecipeError", "InvalidInputError"),
        ("CalibrationDataError", "InvalidInputError"),
        ("OutputExistsError", "InvalidInputError"),
        ("InvalidInputError", "ValueError"),
        ("CorruptArtifactError", "ArtifactError"),
        ("MissingShardError", "ArtifactError"),
        ("SchemaVersionError", "ArtifactError"),
        ("ForeignArtifactError", "ArtifactError"),
    ],
)
def test_parents(name: str, parent: str) -> None:
    assert parent in {cls.__name__ for cls in getattr(errors, name).__mro__[1:]}


def test_an_artifact_error_is_no_input_error() -> None:
    assert not issubclass(errors.ArtifactError, InvalidInputError)
    assert not issubclass(CheckFailedError, InvalidInputError)


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("da-ptk", ("da-ptq",)),
        ("DA_PTQ", ("da-ptq",)),
        ("round_to_nearest", ("round-to-nearest",)),
        ("nearest", ("round-to-nearest",)),
        ("zzzzzz", ()),
    ],
)
def test_near_names(given: str, near: tuple[str, ...]) -> None:
    error = UnknownNameError("method", given, ["round-to-nearest", "da-ptq"])
    assert error.near == near
    assert str(error).startswith(f"method must be one of da-ptq, round-to-nearest, got {given!r}. ")
    assert all(f"Did you mean '{name}'" in str(error) for name in near)


def test_hundreds_of_names_are_not_listed() -> None:
    error = UnknownNameError("tensor", "layer.7.wait", [f"layer.{i}.weight" for i in range(300)])
    assert error.near[0] == "layer.7.weight"
    assert len(str(error)) < 200


def test_nothing_installed() -> None:
    assert str(UnknownNameError("policy", "x", [])) == "policy must be a known name, got 'x'. None is installed."


def test_an_unknown_name_survives_a_worker_process() -> None:
    error = UnknownNameError("policy", "refrence", ["reference"])
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.near, copy.kind) == (str(error), ("reference",), "policy")
