"""Folders that daptq did not write: which family is asked, and when none is."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from daptq import catalog
from daptq.catalog import POLICIES
from daptq.errors import ArtifactError, ForeignArtifactError
from daptq.packing.checkpoint import load_policy, save_policy
from daptq.packing.foreign import foreign_family
from daptq.policies.cogact_public import PublicCogACTPolicy
from daptq.policies.cogact_small import SmallCogACTPolicy
from tests.integration.quantization.conftest import ChainPolicy


class Reader(ChainPolicy):
    """A chain that recognises every folder with a file of its name."""

    family = "reader"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return (folder / "reader.txt").is_file()

    @classmethod
    def read_foreign(cls, folder: Path, *, dataset: str | None = None, stream: bool = False) -> Any:
        policy = cls.tiny()
        policy.name = f"{(folder / 'reader.txt').read_text()} {dataset} {stream}"
        return policy


class Rival(Reader):
    family = "rival"


@pytest.fixture
def families(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The families of the catalog, by name; tests add to them."""
    found: dict[str, Any] = {"cogact-small": SmallCogACTPolicy, "reader": Reader}

    def usable(read: Any) -> dict[str, Any]:
        return {name: read(name, family) for name, family in found.items()}

    monkeypatch.setattr(POLICIES, "usable", usable, raising=True)
    return found


def test_the_family_that_recognises_a_folder_reads_it(tmp_path: Path, families: dict[str, Any]) -> None:
    (tmp_path / "reader.txt").write_text("chain")
    assert foreign_family(tmp_path) is families["reader"]
    assert load_policy(tmp_path).name == "chain None False"
    assert load_policy(tmp_path, dataset="a", stream=True).name == "chain a True"
    assert load_policy(tmp_path, name="mine").name == "mine"


def test_two_families_that_recognise_a_folder_are_named(tmp_path: Path, families: dict[str, Any]) -> None:
    families["rival"] = Rival
    (tmp_path / "reader.txt").write_text("chain")
    with pytest.raises(ForeignArtifactError, match="must be recognised by one family, got reader, rival"):
        load_policy(tmp_path)


def test_a_folder_that_nobody_recognises_is_refused(tmp_path: Path, families: dict[str, Any]) -> None:
    assert len(families) == 2
    assert foreign_family(tmp_path) is None
    with pytest.raises(ArtifactError):
        load_policy(tmp_path)


def test_a_family_of_another_distribution_that_cannot_be_imported_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    points = {"daptq.policy": [EntryPoint("lost-family", "nowhere.lost", "daptq.policy")]}
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points.get(group, []))
    assert foreign_family(tmp_path) is None
    assert "policy 'lost-family' of another distribution is left out: policy 'lost-family' must be" in caplog.text


def test_no_family_is_asked_about_an_artifact_or_what_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_policy(SmallCogACTPolicy.tiny(), tmp_path / "policy")

    def asked(name: str) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(POLICIES, "load", asked)
    assert foreign_family(folder) is None
    assert foreign_family(tmp_path / "nowhere") is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(AssertionError):
        foreign_family(tmp_path / "empty")


def test_families_read_no_foreign_folder_by_default(tmp_path: Path) -> None:
    assert not SmallCogACTPolicy.recognises(tmp_path)
    with pytest.raises(ForeignArtifactError, match="Family 'cogact-small' reads no others"):
        SmallCogACTPolicy.read_foreign(tmp_path)
    assert not PublicCogACTPolicy.recognises(tmp_path)
