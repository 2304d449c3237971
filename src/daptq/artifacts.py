"""Files between steps of work: a folder of safetensors shards and text files under one manifest, and plain JSON files.

    manifest.json              schema version, kind, metadata, which shard holds each tensor, size and SHA-256 of every
                               file, and the SHA-256 of the manifest itself
    tensors-00001.safetensors  tensors, in the order they were given
    …                          further shards and extra files (a tokenizer)

The final name of a folder holds a complete artifact or nothing, whatever kills the writer. A reader verifies every byte
before it hands out the first tensor. Pickle is neither written nor read. This module knows nothing of policies and of
what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from daptq._atomic import flush, new_directory, require_new_output, write_bytes, writing
from daptq._provenance import provenance
from daptq.errors import (
    CorruptArtifactError,
    ForeignArtifactError,
    InvalidInputError,
    MissingShardError,
    SchemaVersionError,
    UnknownNameError,
)
from daptq.tensor_files import StoredTensor, read_safetensors_directory

__all__ = [
    "MANIFEST",
    "SCHEMA_VERSION",
    "Artifact",
    "hash_tensors",
    "provenance",
    "read_artifact",
    "require_new_output",
    "write_artifact",
    "write_bytes",
    "write_json",
]

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

_ENVELOPE = ("schema_version", "kind", "metadata", "tensors", "files", "sha256")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A verified artifact; tensors are read from their shard when asked for.

    Attributes:
        directory: Folder that holds the artifact.
        kind: What the artifact is, for example ``"quantized-policy"``.
        metadata: The JSON object that was written with the tensors.
    """

    directory: Path
    kind: str
    metadata: dict[str, Any]
    _shards: Mapping[str, str] = field(repr=False)
    _files: frozenset[str] = field(repr=False)
    _directories: dict[str, dict[str, StoredTensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of all tensors, in the order they were written."""
        return tuple(self._shards)

    @property
    def file_names(self) -> tuple[str, ...]:
        """Names of the extra files, sorted."""
        return tuple(sorted(self._files))

    def stored(self, name: str) -> StoredTensor:
        """Where one tensor lies.

        Raises:
            UnknownNameError: The artifact holds no tensor of this name.
            CorruptArtifactError: The manifest names a shard that does not hold it.
        """
        if name not in self._shards:
            raise UnknownNameError("tensor", name, self._shards)
        shard = self._shards[name]
        if shard not in self._directories:
            self._directories[shard] = read_safetensors_directory(self.directory / shard)
        if name not in self._directories[shard]:
            raise CorruptArtifactError(
                f"{self.directory / shard} must hold the tensor {name}, got none of that name. Write the folder again."
            )
        return self._directories[shard][name]

    def tensor(self, name: str) -> Tensor:
        """Reads one tensor into memory of its own.

        Raises:
            UnknownNameError: The artifact holds no tensor of this name.
            CorruptArtifactError: The shard changed since it was verified.
        """
        return self.stored(name).read()

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Reads every tensor, one at a time, in the order they were written."""
        for name in self._shards:
            yield name, self.tensor(name)

    def file(self, name: str) -> bytes:
        """Reads one extra file.

        Raises:
            UnknownNameError: The artifact holds no extra file of this name.
        """
        if name not in self._files:
            raise UnknownNameError("file", name, self._files)
        return (self.directory / name).read_bytes()


def write_artifact(
    directory: Path,
    *,
    kind: str,
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, Any],
    files: Mapping[str, bytes] | None = None,
    max_shard_bytes: int = 2**30,
) -> None:
    """Writes a complete artifact under `directory`, or leaves nothing there.

    Args:
        directory: Folder to create; may exist when empty. Missing parents are created.
        kind: What the artifact is, for example ``"quantized-policy"``.
        tensors: Tensors of any dtype and shape by name, or an iterator of pairs; one shard at a time is held in memory.
        metadata: A JSON object without NaN and infinity.
        files: Extra files by plain file name.
        max_shard_bytes: A shard is closed before a tensor that would make it larger than this.

    Raises:
        OutputExistsError: `directory` exists and is not empty.
        InvalidInputError: A tensor name occurs twice, a file name is not plain, or `metadata` is no JSON object.
        OutputWriteError: The disk refused a write.
    """
    directory = directory.resolve()
    files = files or {}
    require_new_output(directory)
    for name in files:
        _require_plain_name(name)
    _canonical({"metadata": metadata})  # A bad value is found before the tensors are written, not after.
    with new_directory(directory) as temporary:
        shards: dict[str, str] = {}
        written: dict[str, dict[str, Any]] = {}
        for shard, content in _shards_of(tensors, max_shard_bytes):
            for name in content:
                if name in shards:
                    raise InvalidInputError(f"tensor names must be unique, got {name!r} twice. Rename one of them.")
                shards[name] = shard
            with writing(directory):
                save_file(content, temporary / shard)
                written[shard] = _sealed(temporary / shard)
        for name, data in files.items():
            with writing(directory):
                (temporary / name).write_bytes(data)
                written[name] = _sealed(temporary / name)
        body = {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "metadata": metadata,
            "tensors": shards,
            "files": dict(sorted(written.items())),
        }
        with writing(directory):
            (temporary / MANIFEST).write_bytes(_canonical({**body, "sha256": _digest(_canonical(body))}))
            _sealed(temporary / MANIFEST)


def read_artifact(directory: Path, *, kind: str | Collection[str]) -> Artifact:
    """Opens an artifact after verifying every file of it.

    Args:
        directory: Folder that `write_artifact` wrote.
        kind: The kind, or one of the kinds, that the artifact must be.

    Raises:
        ForeignArtifactError: `directory` was not written by daptq, or holds an artifact of another kind.
        SchemaVersionError: The artifact was written with another version of the format.
        MissingShardError: A file that the manifest names is not there.
        CorruptArtifactError: A file differs from what was written.
    """
    kinds = (kind,) if isinstance(kind, str) else tuple(kind)
    manifest = _read_manifest(directory)
    if manifest["kind"] not in kinds:
        raise ForeignArtifactError(
            f"{directory} must hold an artifact of kind {' or '.join(map(repr, kinds))}, got {manifest['kind']!r}. "
            "Pass the folder of the right kind."
        )
    for name, expected in manifest["files"].items():
        _verify(directory, _require_plain_name(name), expected)
    shards: dict[str, str] = manifest["tensors"]
    return Artifact(
        directory=directory,
        kind=manifest["kind"],
        metadata=manifest["metadata"],
        _shards=shards,
        _files=frozenset(manifest["files"]) - frozenset(shards.values()),
    )


def write_json(path: Path, obj: Mapping[str, Any]) -> None:
    """Writes a JSON object, indented, complete or not at all.

    Raises:
        InvalidInputError: `obj` holds something that JSON cannot express, such as NaN.
        OutputWriteError: The disk refused a write.
    """
    write_bytes(path, _canonical(obj))


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and values, whatever the order of the mapping."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shards_of(
    tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], max_shard_bytes: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Groups tensors, in order, into shards; every tensor gets memory of its own, as the format demands."""
    pairs = tensors.items() if isinstance(tensors, Mapping) else tensors
    content: dict[str, Tensor] = {}
    memories: set[int] = set()
    count, size = 1, 0
    for name, given in pairs:
        tensor = given.detach().cpu().contiguous()
        if content and size + tensor.nbytes > max_shard_bytes:
            yield f"tensors-{count:05d}.safetensors", content
            content, memories, count, size = {}, set(), count + 1, 0
        if name in content:
            raise InvalidInputError(f"tensor names must be unique, got {name!r} twice. Rename one of them.")
        memory = tensor.untyped_storage().data_ptr()
        content[name] = tensor.clone() if memory in memories else tensor
        memories.add(memory)
        size += tensor.nbytes
    if content:
        yield f"tensors-{count:05d}.safetensors", content


def _sealed(path: Path) -> dict[str, Any]:
    """Waits until a file is on the disk; returns its manifest entry, read back from the file."""
    flush(path)
    return {"sha256": _file_digest(path), "bytes": path.stat().st_size}


def _verify(directory: Path, name: str, expected: Mapping[str, Any]) -> None:
    """Compares one file with its manifest entry."""
    path = directory / name
    if not path.is_file():
        raise MissingShardError(f"{directory} must hold the file {name}, got none of that name. Copy the folder again.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CorruptArtifactError(f"{path} must have {expected['bytes']} bytes, got {size}. Copy or write it again.")
    digest = _file_digest(path)
    if digest != expected["sha256"]:
        raise CorruptArtifactError(
            f"{path} must have SHA-256 {expected['sha256'][:12]}…, got {digest[:12]}…: its bytes changed. "
            "Copy or write it again."
        )


def _read_manifest(directory: Path) -> dict[str, Any]:
    """Reads and verifies the manifest."""
    path = directory / MANIFEST
    if not path.is_file():
        raise ForeignArtifactError(
            f"{directory} must be a folder written by daptq, got {_describe(directory)}. "
            "Pass a folder that holds manifest.json; pickle files (.pt, .pth, .bin) are never loaded."
        )
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except ValueError as error:
        raise CorruptArtifactError(f"{path} must be valid JSON, got {error}. Copy or write it again.") from error
    # A single damaged key must read as damage, so half of the envelope is enough to recognise our own file.
    if not isinstance(manifest, dict) or len(manifest.keys() & set(_ENVELOPE)) < len(_ENVELOPE) // 2:
        raise ForeignArtifactError(
            f"{path} must be a manifest of daptq, got another file. Pass a folder written by daptq."
        )
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    # The bytes must be exactly what the writer would write, or a changed blank would pass.
    try:
        intact = manifest.get("sha256") == _digest(_canonical(body)) and raw == _canonical(manifest)
    except InvalidInputError:  # NaN, or half a surrogate pair: the writer writes neither.
        intact = False
    if manifest.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        damage = "" if intact else " (or the file is damaged: its checksum does not match)"
        raise SchemaVersionError(
            f"schema_version of {path} must be {SCHEMA_VERSION}, got {manifest['schema_version']!r}{damage}. "
            "Read it with the version of daptq that wrote it."
        )
    if not intact or manifest.keys() != set(_ENVELOPE):
        raise CorruptArtifactError(f"{path} must match its own checksum, got other bytes. Copy or write it again.")
    return manifest


def _describe(path: Path) -> str:
    """What is at `path` when it is no artifact, for an error message."""
    if not path.exists():
        return "a path that does not exist"
    if path.is_file():
        return f"a {path.suffix or 'plain'} file"
    pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in {".pt", ".pth", ".bin", ".pkl", ".ckpt"})
    return f"a folder with the pickle file {pickles[0]}" if pickles else "a folder without manifest.json"


def _require_plain_name(name: str) -> str:
    """Refuses file names that lead out of the artifact's folder or hide in it."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name == MANIFEST:
        raise InvalidInputError(
            f"file name must be letters, digits, '_', '-' and '.', other than {MANIFEST}, got {name!r}. Rename it."
        )
    return name


def _canonical(obj: Mapping[str, Any]) -> bytes:
    """The one byte sequence that stands for a JSON object: indented, order kept, UTF-8."""
    try:
        return (json.dumps(obj, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"content must be a JSON object, got {error}. Use plain finite values.") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
