"""JSON objects with a type: frozen, keyword-only, checked when built and when read, and their JSON Schema.

What daptq writes as JSON for people (evaluations, benchmarks) is built from these classes. The classes are pydantic's:
plain dataclasses would need a schema generator and a checking reader of our own, and pydantic, unlike msgspec, keeps
constraints in force for objects that are built in Python, and refuses a NaN.

The order of the fields is the order of the keys. A field declared with `absent` has no key while it is None. The
descriptions in the schema are the docstrings: the first paragraph of the class, and its `Attributes` for the fields.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from daptq.docstrings import attribute_texts
from daptq.errors import CorruptArtifactError, ForeignArtifactError, SchemaVersionError

__all__ = [
    "Count",
    "Fraction",
    "JsonDocument",
    "JsonModel",
    "NotNegative",
    "Percentage",
    "Positive",
    "absent",
    "read_json",
]

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Percentage = Annotated[float, Field(ge=-100.0, le=100.0)]


def _described(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Takes the descriptions of a schema from docstrings, and leaves out titles and defaults, which say nothing."""
    summary = inspect.cleandoc(model.__doc__ or "").split("\n\n")[0]
    schema.pop("title", None)
    schema["description"] = " ".join(summary.split())
    texts = attribute_texts(model)
    for name, field in schema.get("properties", {}).items():
        field.pop("title", None)
        field.pop("default", None)
        if name in texts:
            field["description"] = texts[name]


def _is_none(value: object) -> bool:
    return value is None


def absent() -> Any:
    """The default None of a field that has no key in the JSON while it is None.

    Declare it as ``name: T | SkipJsonSchema[None] = absent()``, so that the schema does not allow null.
    """
    return Field(default=None, exclude_if=_is_none)


class JsonModel(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=_described, protected_namespaces=()
    )

    def to_json(self) -> dict[str, Any]:
        """The object as plain dictionaries, lists, strings and numbers, with its keys in the order of the fields."""
        return self.model_dump(mode="json")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ForeignArtifactError: The object is not of this form; the message says where it differs first.
        """
        try:
            return cls.model_validate_json(json.dumps(value), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the object"
            raise ForeignArtifactError(
                f"{place} must fit the schema of {cls.__name__}, got {first['input']!r:.60}: {first['msg']}. "
                "Write it again with this version of daptq."
            ) from error

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the object."""
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **cls.model_json_schema()}


class JsonDocument(JsonModel):
    """A JSON object that a command writes as a file, with a field ``schema_version``.

    Attributes:
        DOCUMENT: What it is, in messages and in the schema's identifier.
        SCHEMA_VERSION: Version of its format.
        KEYS: Keys by which it is told from other JSON objects.
    """

    DOCUMENT: ClassVar[str]
    SCHEMA_VERSION: ClassVar[int]
    KEYS: ClassVar[tuple[str, ...]]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ForeignArtifactError: The object is something else; the message says where it differs first.
            SchemaVersionError: It was written in another version of the format.
        """
        if not {"schema_version", *cls.KEYS} <= set(value):
            raise ForeignArtifactError(
                f"JSON must be the {cls.DOCUMENT} result of daptq, got something else. Pass what --json wrote."
            )
        if value["schema_version"] != cls.SCHEMA_VERSION:
            raise SchemaVersionError(
                f"schema_version of the {cls.DOCUMENT} must be {cls.SCHEMA_VERSION}, got {value['schema_version']!r}. "
                "Run it again with this version."
            )
        return super().from_json(value)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Reads a file.

        Raises:
            ForeignArtifactError: There is no such file, or it holds something else.
            CorruptArtifactError: The file is not valid JSON.
            SchemaVersionError: It was written in another version of the format.
        """
        return cls.from_json(read_json(Path(path)))

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the JSON."""
        return {"$id": f"urn:daptq:{cls.DOCUMENT}:{cls.SCHEMA_VERSION}", **super().json_schema()}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ForeignArtifactError: There is no such file, or it does not hold a JSON object.
        CorruptArtifactError: The file is not valid JSON.
    """
    try:
        obj = json.loads(path.read_bytes())
    except OSError as error:
        raise ForeignArtifactError(f"{path} must be a JSON file, got {error.strerror}. Check the path.") from error
    except ValueError as error:
        raise CorruptArtifactError(f"{path} must be valid JSON, got {error}. Write it again.") from error
    if not isinstance(obj, dict):
        raise ForeignArtifactError(f"{path} must hold a JSON object, got a {type(obj).__name__}. Check the path.")
    return obj
