"""Reading tensors out of safetensors files and torch checkpoints, and refusing what is damaged or foreign."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from daptq.errors import CorruptArtifactError, ForeignArtifactError
from daptq.tensor_files import read_safetensors_directory, read_torch_directory

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.int8, torch.uint8, torch.bool]


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {str(dtype): torch.randint(0, 2, (5, 3), generator=generator).to(dtype) for dtype in DTYPES}
    return {**made, "scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "vector": torch.arange(7)}


def test_every_tensor_of_a_safetensors_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, tmp_path / "a.safetensors", metadata={"key": "value"})
    directory = read_safetensors_directory(tmp_path / "a.safetensors")
    assert set(directory) == set(tensors)
    for name, expected in tensors.items():
        values = directory[name].read()
        assert (values.dtype, values.shape) == (expected.dtype, expected.shape)
        assert torch.equal(values, expected)


def test_every_tensor_of_a_torch_checkpoint(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    whole = torch.arange(20.0).view(4, 5)
    torch.save({"model": {"part": {**tensors, "rows": whole[1:3]}}, "epoch": 3}, tmp_path / "a.pt")
    directory = read_torch_directory(tmp_path / "a.pt")
    for name, expected in {**tensors, "rows": whole[1:3]}.items():
        assert torch.equal(directory[f"model.part.{name}"].read(), expected)


@given(st.lists(st.integers(0, 8), max_size=12))
def test_rows_are_those_of_the_matrix(indices: list[int]) -> None:
    import tempfile

    matrix = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        save_file({"m": matrix}, Path(folder) / "a.safetensors")
        stored = read_safetensors_directory(Path(folder) / "a.safetensors")["m"]
        assert torch.equal(stored.rows(torch.tensor(indices, dtype=torch.int64)), matrix[indices])


@pytest.mark.parametrize("left", [0, 4, 8, 40, -1])
def test_a_safetensors_file_that_was_cut_is_refused(tmp_path: Path, left: int) -> None:
    save_file({"m": torch.randn(9, 4)}, tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:left])
    with pytest.raises(CorruptArtifactError, match=r"a\.safetensors must"):
        read_safetensors_directory(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]},
        {"dtype": "F33", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [2]},
        "F32",
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path: Path, entry: object) -> None:
    header = json.dumps({"m": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(CorruptArtifactError, match="must be a safetensors file"):
        read_safetensors_directory(tmp_path / "a.safetensors")


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    save_file({"m": torch.randn(9, 4)}, tmp_path / "a.safetensors")
    stored = read_safetensors_directory(tmp_path / "a.safetensors")["m"]
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-1])
    with pytest.raises(CorruptArtifactError, match="got a shorter file"):
        stored.read()
    with pytest.raises(CorruptArtifactError, match="got a shorter file"):
        stored.rows(torch.tensor([8]))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code ran",)


@pytest.mark.parametrize("kind", ["code", "text", "cut", "view"])
def test_a_torch_file_of_anything_else_is_refused(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    if kind == "text":
        path.write_text("hello")
    else:
        contents = {"code": Evil(), "cut": torch.randn(100), "view": torch.randn(4, 5).t()}
        torch.save({"model": {"m": contents[kind]}}, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ForeignArtifactError, match=r"a\.pt must"):
        read_torch_directory(path)
    assert "code ran" not in capsys.readouterr().out
