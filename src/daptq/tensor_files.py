"""Tensors inside safetensors files and torch checkpoints, read one at a time with plain reads.

Every page of a memory-mapped file that was touched counts as resident memory of the process; a plain read leaves
nothing behind but the tensor. Opening a file reads its directory alone. A torch checkpoint is opened by torch's
weights-only loader, which never runs code from the file. This module knows nothing of what the tensors mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from daptq.errors import CorruptArtifactError, ForeignArtifactError

__all__ = ["StoredTensor", "read_safetensors_directory", "read_torch_directory"]

# Names that the safetensors format gives to types.
_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
# The format allows no longer header.
_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where a tensor lies in a file, row after row.

    Attributes:
        path: The file.
        offset: First byte of the tensor in it.
        dtype: Type of its elements.
        shape: Its shape.
    """

    path: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The whole tensor, in memory of its own.

        Raises:
            CorruptArtifactError: The file ends before the tensor does.
        """
        values = torch.empty(self.shape, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as stream:
            stream.seek(self.offset)
            self._fill(stream, values)
        return values

    def rows(self, indices: Int[Tensor, " n"]) -> Tensor:
        """Some rows of a matrix, (n, columns); nothing else of it is read.

        Raises:
            CorruptArtifactError: The file ends before a row does.
        """
        _, columns = self.shape
        values = torch.empty(len(indices), columns, dtype=self.dtype)
        with self.path.open("rb", buffering=0) as stream:
            for row, index in enumerate(indices.tolist()):
                stream.seek(self.offset + index * columns * self.dtype.itemsize)
                self._fill(stream, values[row])
        return values

    def _fill(self, stream: FileIO, values: Tensor) -> None:
        """Reads contiguous values from where the stream is."""
        if values.numel() == 0:
            return
        rest = memoryview(values.reshape(-1).view(torch.uint8).numpy().data)
        while rest:
            count = stream.readinto(rest)
            if not count:
                raise CorruptArtifactError(
                    f"{self.path} must hold {self.nbytes} bytes of a tensor from byte {self.offset} on, got a shorter "
                    "file. Copy or write it again."
                )
            rest = rest[count:]


def read_safetensors_directory(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a safetensors file by name, in the order in which they lie in it.

    Raises:
        CorruptArtifactError: The file is no safetensors file, or is shorter than its header says.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = stream.read(length) if 0 < length <= min(_LONGEST_HEADER, size - 8) else b""
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {name: _stored(path, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CorruptArtifactError(f"{path} must be a safetensors file, got {error!r}. Copy it again.") from error
    if any(tensor.offset + tensor.nbytes > size for tensor in tensors.values()):
        raise CorruptArtifactError(f"{path} must hold every tensor of its header, got a shorter file. Copy it again.")
    return dict(sorted(tensors.items(), key=lambda item: item[1].offset))


def read_torch_directory(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a torch checkpoint, a tree of dictionaries, by the keys that lead to it, joined by dots.

    Raises:
        ForeignArtifactError: The file is no torch checkpoint, holds something other than tensors in dictionaries and
            plain values, or needs code to be read.
        CorruptArtifactError: The file is shorter than its directory says.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        # Tensors without memory still know where their storage lies in the file.
        with FakeTensorMode():
            tree = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its zip reader and unpickler raise.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ForeignArtifactError(
            f"{path} must be a torch checkpoint of tensors alone, got {reason[:200]!r}. "
            "Files that need code to be read are never loaded."
        ) from error
    size = path.stat().st_size
    tensors: dict[str, StoredTensor] = {}
    for name, value in _leaves(tree, ()):
        offset = getattr(value.untyped_storage(), "_checkpoint_offset", None)
        if offset is None or not value.is_contiguous():
            raise ForeignArtifactError(f"{path} must hold contiguous tensors, got {name}. Save it again.")
        stored = StoredTensor(
            path=path,
            offset=offset + value.storage_offset() * value.dtype.itemsize,
            dtype=value.dtype,
            shape=tuple(value.shape),
        )
        if stored.offset + stored.nbytes > size:
            raise CorruptArtifactError(f"{path} must hold every tensor of its directory, got a shorter file. Copy it.")
        tensors[name] = stored
    return tensors


def _stored(path: Path, start: int, entry: Mapping[str, Any]) -> StoredTensor:
    """An entry of a safetensors header."""
    begin, end = entry["data_offsets"]
    tensor = StoredTensor(
        path=path, offset=start + begin, dtype=_DTYPES[entry["dtype"]], shape=tuple(int(n) for n in entry["shape"])
    )
    if begin < 0 or end - begin != tensor.nbytes:
        raise ValueError(f"a tensor of {end - begin} bytes where its shape needs {tensor.nbytes}")
    return tensor


def _leaves(tree: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dictionaries; other values are left out."""
    if isinstance(tree, Tensor):
        yield ".".join(keys), tree
    elif isinstance(tree, Mapping):
        for key, branch in tree.items():
            yield from _leaves(branch, (*keys, str(key)))
