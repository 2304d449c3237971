from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from daptq import artifacts
from daptq.artifacts import (
    hash_tensors,
    provenance,
    read_artifact,
    require_new_output,
    write_artifact,
    write_bytes,
    write_json,
)
from daptq.errors import (
    CorruptArtifactError,
    ForeignArtifactError,
    InvalidInputError,
    MissingShardError,
    OutputExistsError,
    OutputWriteError,
    SchemaVersionError,
    UnknownNameError,
)
from daptq.json_model import read_json
from daptq.tensor_files import read_safetensors_directory

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "packed": torch.arange(7, dtype=torch.uint8),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "shape": torch.tensor([3, 4]),
    "count": torch.tensor(5),
    "nothing": torch.zeros(0, 3),
}
FILES = {"tokenizer.json": b'{"a": 1}', "notes.txt": "süß".encode()}
METADATA = {"name": "müller", "plan": {"a.b": 4, "c": [0.1, None, True]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artifact with three shards and two files."""
    directory = tmp_path / "artifact"
    write_artifact(directory, kind="policy", tensors=TENSORS, metadata=METADATA, files=FILES, max_shard_bytes=50)
    return directory


def _temporaries(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name.startswith("."))


def test_round_trip(folder: Path) -> None:
    artifact = read_artifact(folder, kind="policy")
    assert artifact.metadata == METADATA
    assert artifact.tensor_names == tuple(TENSORS)
    assert artifact.file_names == ("notes.txt", "tokenizer.json")
    assert {name: artifact.file(name) for name in FILES} == FILES
    for name, tensor in artifact.tensors():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_manifest_describes_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["schema_version"], manifest["kind"], manifest["metadata"]) == (1, "policy", METADATA)
    assert sorted(os.listdir(folder)) == sorted([*manifest["files"], "manifest.json"])
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    shards = [name for name in manifest["files"] if name.endswith(".safetensors")]
    assert shards == ["tensors-00001.safetensors", "tensors-00002.safetensors"]
    assert manifest["tensors"]["weight"] == shards[0]
    assert not any(b"pickle" in (folder / shard).read_bytes() for shard in shards)


def test_the_same_content_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_artifact(
        tmp_path / "again",
        kind="policy",
        tensors=iter(TENSORS.items()),
        metadata=METADATA,
        files=FILES,
        max_shard_bytes=50,
    )
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_views_and_shared_memory(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    tensors = {"all": base, "row": base[1:2], "again": base, "turned": base.t(), "strided": base[:, ::2]}
    write_artifact(tmp_path / "a", kind="policy", tensors=tensors, metadata={})
    artifact = read_artifact(tmp_path / "a", kind="policy")
    assert all(torch.equal(artifact.tensor(name), tensor) for name, tensor in tensors.items())


def test_shards_are_written_as_they_fill(tmp_path: Path) -> None:
    """When the third tensor is asked for, the shard with the first is on the disk already."""
    seen: list[list[str]] = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for index in range(4):
            (temporary,) = tmp_path.glob(".a.*")
            seen.append(sorted(os.listdir(temporary)))
            yield f"t{index}", torch.full((100,), float(index))

    write_artifact(tmp_path / "a", kind="policy", tensors=stream(), metadata={}, max_shard_bytes=400)
    assert seen == [[], [], ["tensors-00001.safetensors"], ["tensors-00001.safetensors", "tensors-00002.safetensors"]]
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 4


def test_reading_is_lazy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(path: Path) -> Any:
        opened.append(path.name)
        return read_safetensors_directory(path)

    monkeypatch.setattr(artifacts, "read_safetensors_directory", counting)
    artifact = read_artifact(folder, kind="policy")
    assert opened == []
    artifact.tensor("weight")
    artifact.tensor("weight")
    assert opened == ["tensors-00001.safetensors"]


def test_unknown_tensor_and_file(folder: Path) -> None:
    artifact = read_artifact(folder, kind="policy")
    with pytest.raises(UnknownNameError, match="Did you mean 'weight'"):
        artifact.tensor("wieght")
    with pytest.raises(UnknownNameError, match="Did you mean 'tokenizer.json'"):
        artifact.file("tokenizr.json")


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "manifest.json", "a\nb"])
def test_file_names_must_be_plain(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="file name must be"):
        write_artifact(tmp_path / "a", kind="policy", tensors={}, metadata={}, files={name: b""})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_shard_bytes", [1, 2**30])
def test_a_name_twice_is_refused(tmp_path: Path, max_shard_bytes: int) -> None:
    twice = [("a", torch.zeros(1)), ("a", torch.ones(1))]
    with pytest.raises(InvalidInputError, match="got 'a' twice"):
        write_artifact(tmp_path / "a", kind="policy", tensors=twice, metadata={}, max_shard_bytes=max_shard_bytes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, torch.zeros(1)])
def test_metadata_must_be_json(tmp_path: Path, value: Any) -> None:
    with pytest.raises(InvalidInputError, match="must be a JSON object"):
        write_artifact(tmp_path / "a", kind="policy", tensors={}, metadata={"x": value})
    assert list(tmp_path.iterdir()) == []


# --- refusals when reading -------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_the_manifest_is_found(folder: Path) -> None:
    path = folder / "manifest.json"
    good = path.read_bytes()
    version_digit = good.index(b'"schema_version": 1') + len(b'"schema_version": ')
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :])
        # 1 with its last bit flipped is 0: a version that does not exist, and the message mentions the damage.
        expected = SchemaVersionError if position == version_digit else CorruptArtifactError
        with pytest.raises(expected, match="manifest.json"):
            read_artifact(folder, kind="policy")
    path.write_bytes(good)
    read_artifact(folder, kind="policy")


@pytest.mark.parametrize("mutation", ["flip", "truncate", "extend", "empty"])
@pytest.mark.parametrize("name", ["tensors-00001.safetensors", "tensors-00002.safetensors", "tokenizer.json"])
def test_a_changed_file_is_named(folder: Path, name: str, mutation: str) -> None:
    path = folder / name
    data = path.read_bytes()
    middle = len(data) // 2
    changed = {
        "flip": data[:middle] + bytes([data[middle] ^ 0x80]) + data[middle + 1 :],
        "truncate": data[:-1],
        "extend": data + b"\0",
        "empty": b"",
    }
    path.write_bytes(changed[mutation])
    with pytest.raises(CorruptArtifactError, match=name):
        read_artifact(folder, kind="policy")


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_truncated_manifest_is_named(folder: Path, length: int) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CorruptArtifactError, match="manifest.json"):
        read_artifact(folder, kind="policy")


@pytest.mark.parametrize("name", ["tensors-00002.safetensors", "notes.txt"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(MissingShardError, match=name):
        read_artifact(folder, kind="policy")


def test_swapped_shards_are_found(folder: Path) -> None:
    first, second = folder / "tensors-00001.safetensors", folder / "tensors-00002.safetensors"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(CorruptArtifactError, match="tensors-0000"):
        read_artifact(folder, kind="policy")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_another_schema_version(folder: Path, version: Any) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "schema_version": version}))
    with pytest.raises(SchemaVersionError, match=r"schema_version of .*manifest.json must be 1, got"):
        read_artifact(folder, kind="policy")


def test_a_newer_version_with_its_own_checksum_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as newer:
        newer.setattr(artifacts, "SCHEMA_VERSION", 2)
        write_artifact(tmp_path / "a", kind="policy", tensors=TENSORS, metadata={})
    with pytest.raises(SchemaVersionError) as caught:
        read_artifact(tmp_path / "a", kind="policy")
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '"text"', "{}", '{"name": "web app", "icons": []}'])
def test_a_foreign_manifest(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ForeignArtifactError, match="manifest of daptq"):
        read_artifact(tmp_path, kind="policy")


def test_nan_in_a_manifest_is_damage(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace("0.1", "NaN"))
    with pytest.raises(CorruptArtifactError, match="checksum"):
        read_artifact(folder, kind="policy")


def test_another_kind(folder: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="must hold an artifact of kind 'profile' or 'x', got 'policy'"):
        read_artifact(folder, kind=("profile", "x"))
    assert read_artifact(folder, kind=("profile", "policy")).kind == "policy"


class _Bomb:
    def __reduce__(self) -> Any:
        return (os._exit, (3,))


def test_pickle_is_never_loaded(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.pt"
    path.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(ForeignArtifactError, match=r"got a \.pt file"):
        read_artifact(path, kind="policy")
    with pytest.raises(ForeignArtifactError, match=r"with the pickle file pytorch_model\.pt"):
        read_artifact(tmp_path, kind="policy")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="a path that does not exist"):
        read_artifact(tmp_path / "nowhere", kind="policy")
    with pytest.raises(ForeignArtifactError, match=r"a folder without manifest\.json"):
        read_artifact(tmp_path, kind="policy")


# --- refusals when writing -------------------------------------------------------------------------------------------


def test_an_existing_output_is_refused_and_left_alone(folder: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputExistsError, match="not empty"):
        write_artifact(folder, kind="policy", tensors={}, metadata={})
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(OutputExistsError, match="got the file"):
        require_new_output(file)


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        require_new_output(directory)
        write_artifact(directory, kind="policy", tensors=TENSORS, metadata={})
        read_artifact(directory, kind="policy")
        assert _temporaries(directory.parent) == []


@pytest.mark.parametrize("failing", ["save_file", "flush"])
def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts, failing, full)
    with pytest.raises(OutputWriteError, match=r"a must be writable, got 'No space left on device'"):
        write_artifact(tmp_path / "a", kind="policy", tensors=TENSORS, metadata={})
    assert list(tmp_path.iterdir()) == []


def test_a_failing_source_of_tensors_is_no_failure_of_the_disk(tmp_path: Path) -> None:
    def stream() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(3)
        raise OSError(5, "the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        write_artifact(tmp_path / "a", kind="policy", tensors=stream(), metadata={})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    def stream() -> Iterator[tuple[str, Tensor]]:
        yield "a", torch.zeros(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_artifact(tmp_path / "a", kind="policy", tensors=stream(), metadata={})
    assert list(tmp_path.iterdir()) == []


# --- plain JSON, provenance, hashes ----------------------------------------------------------------------------------


def test_json_round_trip_and_replacement(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    write_json(path, {"a": 1})
    write_json(path, METADATA)
    assert read_json(path) == METADATA
    assert os.listdir(path.parent) == ["result.json"]


def test_a_refused_json_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(InvalidInputError, match="JSON object"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(OutputWriteError, match="must be writable"):
        write_bytes(path / "below-a-file", b"x")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["result.json"]


def test_bad_json_files(tmp_path: Path) -> None:
    with pytest.raises(ForeignArtifactError, match="No such file"):
        read_json(tmp_path / "nothing.json")
    (tmp_path / "half.json").write_text('{"a": ')
    with pytest.raises(CorruptArtifactError, match=r"half\.json must be valid JSON"):
        read_json(tmp_path / "half.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ForeignArtifactError, match="must hold a JSON object, got a list"):
        read_json(tmp_path / "list.json")


def test_provenance_says_what_ran() -> None:
    entry = provenance(recipe={"method": "x"}, data_hash="abc", seed=7)
    assert (entry["recipe"], entry["data_hash"], entry["seed"]) == ({"method": "x"}, "abc", 7)
    assert entry["versions"]["torch"] == torch.__version__
    assert entry["versions"]["daptq"] is not None
    assert entry["time"].endswith("+00:00")
    assert json.loads(json.dumps(entry)) == entry


def test_hash_depends_on_names_dtypes_shapes_and_values_only() -> None:
    reference = hash_tensors(TENSORS)
    assert hash_tensors(dict(reversed(TENSORS.items()))) == reference
    assert hash_tensors({**TENSORS, "weight": TENSORS["weight"].t().contiguous().t()}) == reference
    changed: list[dict[str, Tensor]] = [
        {**TENSORS, "more": torch.zeros(1)},
        {("Weight" if name == "weight" else name): tensor for name, tensor in TENSORS.items()},
        {**TENSORS, "weight": TENSORS["weight"].reshape(4, 3)},
        {**TENSORS, "shape": TENSORS["shape"].view(torch.float64)},
        {**TENSORS, "count": torch.tensor(6)},
    ]
    assert len({reference, *map(hash_tensors, changed)}) == len(changed) + 1
