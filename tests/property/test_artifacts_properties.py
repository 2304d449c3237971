"""Any tensors come back as they went; any changed byte of any file is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from daptq.artifacts import hash_tensors, read_artifact, write_artifact, write_json
from daptq.errors import ArtifactError, CorruptArtifactError, SchemaVersionError
from daptq.json_model import read_json

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int8, torch.uint8, torch.int64, torch.bool]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(0, 100, shape, generator=generator).to(dtype)


named_tensors = st.dictionaries(st.text(min_size=1, max_size=12).filter(str.isidentifier), tensors(), max_size=6)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)  # every example waits for the disk
@given(named_tensors, st.dictionaries(st.text(), json_values, max_size=4), st.binary(max_size=40), st.integers(1, 200))
def test_what_was_written_is_read(
    content: dict[str, Tensor], metadata: dict[str, object], data: bytes, max_shard_bytes: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "a"
        write_artifact(
            directory,
            kind="profile",
            tensors=content,
            metadata=metadata,
            files={"file.bin": data},
            max_shard_bytes=max_shard_bytes,
        )
        artifact = read_artifact(directory, kind="profile")
        assert artifact.metadata == metadata
        assert artifact.file("file.bin") == data
        assert artifact.tensor_names == tuple(content)
        for name, tensor in artifact.tensors():
            assert (tensor.dtype, tensor.shape) == (content[name].dtype, content[name].shape)
            assert torch.equal(tensor, content[name])
        assert hash_tensors(dict(artifact.tensors())) == hash_tensors(content)


@given(st.data())
def test_any_changed_byte_is_refused_by_name(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "a"
        content = {"w": torch.arange(20.0), "v": torch.arange(9)}
        write_artifact(
            directory,
            kind="policy",
            tensors=content,
            metadata={"a": "ü"},
            files={"t.json": b"{}"},
            max_shard_bytes=100,
        )
        name = data.draw(st.sampled_from(sorted(path.name for path in directory.iterdir())))
        good = (directory / name).read_bytes()
        position = data.draw(st.integers(0, len(good) - 1))
        value = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[position]))
        (directory / name).write_bytes(good[:position] + bytes([value]) + good[position + 1 :])
        with pytest.raises(ArtifactError, match=name) as caught:
            read_artifact(directory, kind="policy")
        version_digit = good.find(b'"schema_version": 1') + len(b'"schema_version": ')
        allowed = SchemaVersionError if (name, position) == ("manifest.json", version_digit) else CorruptArtifactError
        assert caught.type in {allowed, CorruptArtifactError}


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_json_files_round_trip(obj: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write_json(path, obj)
        assert read_json(path) == obj
