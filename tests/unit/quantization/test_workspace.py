"""The working folder continues what fits its stamp, starts over otherwise, and repairs what is damaged."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from daptq.artifacts import Artifact
from daptq.errors import OutputWriteError
from daptq.quantization.stage import Stage, StageContent
from daptq.quantization.workspace import Workspace, digest


@dataclass(frozen=True, kw_only=True)
class One(Stage[Artifact]):
    """A stage that writes one number, and notes that it was computed."""

    name = "profile"
    kind = "profile"

    value: float
    calls: list[float]

    def compute(self) -> StageContent:
        self.calls.append(self.value)
        return {"x": torch.tensor([self.value])}, {"value": self.value}

    def read(self, artifact: Artifact) -> Artifact:
        return artifact


def test_a_finished_stage_is_not_computed_again(tmp_path: Path) -> None:
    calls: list[float] = []
    for _ in range(2):
        workspace = Workspace(tmp_path / "out", "inputs", {"time": "now"})
        artifact = workspace.run(One(value=1.0, calls=calls))
        assert artifact.tensor("x").tolist() == [1.0]
        assert artifact.metadata == {"value": 1.0}
    assert calls == [1.0]


def test_other_inputs_start_over(tmp_path: Path) -> None:
    calls: list[float] = []
    Workspace(tmp_path / "out", "first", {}).run(One(value=1.0, calls=calls))
    artifact = Workspace(tmp_path / "out", "second", {}).run(One(value=2.0, calls=calls))
    assert artifact.tensor("x").tolist() == [2.0]
    assert calls == [1.0, 2.0]


def test_a_damaged_stage_is_computed_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls: list[float] = []
    workspace = Workspace(tmp_path / "out", "inputs", {})
    workspace.run(One(value=1.0, calls=calls))
    shard = next((workspace.path / "profile").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert workspace.run(One(value=1.0, calls=calls)).tensor("x").tolist() == [1.0]
    assert calls == [1.0, 1.0]
    assert "computing stage profile again" in caplog.text


def test_a_folder_without_stamp_starts_over(tmp_path: Path) -> None:
    (tmp_path / "out.partial" / "profile").mkdir(parents=True)
    workspace = Workspace(tmp_path / "out", "inputs", {})
    assert not (workspace.path / "profile").exists()


def test_a_continued_run_keeps_the_description_of_its_start(tmp_path: Path) -> None:
    Workspace(tmp_path / "out", "inputs", {"time": "first"})
    again = Workspace(tmp_path / "out", "inputs", {"time": "second"})
    assert again.provenance == {"time": "first", "inputs": "inputs"}


def test_it_lies_beside_the_output_and_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    workspace = Workspace(Path("out"), "inputs", {})
    assert workspace.path == tmp_path / "out.partial"
    assert Workspace.belongs_to(Path("out"), "inputs")
    assert not Workspace.belongs_to(Path("out"), "others")
    workspace.remove()
    assert list(tmp_path.iterdir()) == []
    assert not Workspace.belongs_to(Path("out"), "inputs")


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputWriteError, match=r"out\.partial must be writable"):
        Workspace(tmp_path / "file" / "out", "inputs", {})


def test_digest_sees_values_and_not_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [2, None]}) == digest({"b": [2, None], "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": 1.5})
    with pytest.raises(ValueError, match="Out of range"):
        digest({"a": float("nan")})
