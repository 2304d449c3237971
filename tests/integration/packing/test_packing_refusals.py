"""What loading and saving refuse, and where policies are looked for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn

from daptq.artifacts import write_artifact
from daptq.errors import (
    CorruptArtifactError,
    ForeignArtifactError,
    InvalidInputError,
    MissingShardError,
    OutputExistsError,
    SchemaVersionError,
    UnknownNameError,
)
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing import source
from daptq.packing.checkpoint import load_policy, replace_module, save_policy, save_quantized
from daptq.policies.cogact_small import SmallCogACTPolicy


def test_a_flipped_byte_a_missing_shard_and_a_newer_schema_are_named(tmp_path: Path, folders: dict[str, Path]) -> None:
    damaged = shutil.copytree(folders["quantized"], tmp_path / "flipped")
    shard = next(damaged.glob("*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match=shard.name):
        load_policy(damaged)
    shard.unlink()
    with pytest.raises(MissingShardError, match=shard.name):
        load_policy(damaged)
    newer = shutil.copytree(folders["quantized"], tmp_path / "newer")
    manifest = json.loads((newer / "manifest.json").read_text())
    (newer / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 2}))
    with pytest.raises(SchemaVersionError, match="must be 1, got 2"):
        load_policy(newer)
    assert load_policy(folders["quantized"]).name == "tiny"


def test_folders_that_hold_no_policy_are_refused(tmp_path: Path) -> None:
    write_artifact(tmp_path / "profile", kind="profile", tensors={"x": torch.ones(1)}, metadata={})
    with pytest.raises(ForeignArtifactError, match="'policy' or 'quantized-policy', got 'profile'"):
        load_policy(tmp_path / "profile")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "model.pt").write_bytes(b"pickle")
    with pytest.raises(ForeignArtifactError, match=r"pickle file model\.pt"):
        load_policy(str(tmp_path / "foreign"))
    for missing in (tmp_path / "nothing", str(tmp_path / "nothing"), "./nothing-here"):
        with pytest.raises(ForeignArtifactError, match="a path that does not exist"):
            load_policy(missing)


def test_tensors_of_another_family_version_are_refused(tmp_path: Path) -> None:
    policy = SmallCogACTPolicy.tiny()
    tensors = {name: parameter.bfloat16() for name, parameter in policy.named_parameters()}
    metadata = {"family": "cogact-small", "name": "tiny", "config": policy.config()}

    def write(directory: Path, content: dict[str, Tensor]) -> Path:
        write_artifact(directory, kind="policy", tensors=content, metadata=metadata, files=policy.files())
        return directory

    assert load_policy(write(tmp_path / "good", tensors)).name == "tiny"
    norm = "llm_backbone.norm.weight"
    renamed = {("llm_backbone.other" if name == norm else name): tensor for name, tensor in tensors.items()}
    with pytest.raises(ForeignArtifactError, match=r"1 missing \['llm_backbone.norm.weight'\] and 1 unknown"):
        load_policy(write(tmp_path / "renamed", renamed))
    with pytest.raises(ForeignArtifactError, match=r"llm_backbone.norm.weight .* must have shape \(48,\), got \(47,\)"):
        load_policy(write(tmp_path / "short", tensors | {norm: tensors[norm][:47]}))
    metadata["family"] = "cogact-2"
    with pytest.raises(UnknownNameError, match="Did you mean 'cogact-small'"):
        load_policy(write(tmp_path / "family", tensors))


def test_saving_refuses_what_it_would_lose(
    tmp_path: Path, folders: dict[str, Path], quantize_layers: Callable[..., dict[str, QuantizedLinear]]
) -> None:
    loaded = load_policy(folders["quantized"])
    with pytest.raises(InvalidInputError, match="layers must name every quantized layer"):
        save_policy(loaded, tmp_path / "out")
    layers = quantize_layers(SmallCogACTPolicy.tiny())
    first = next(iter(layers))
    incomplete = {name: layer for name, layer in layers.items() if name != first}
    arguments: dict[str, Any] = {"plan": [], "folding": {}, "recipe": {}, "provenance": {}}
    with pytest.raises(InvalidInputError, match=first):
        save_quantized(loaded, tmp_path / "out", layers=incomplete, **arguments)
    with pytest.raises(InvalidInputError, match="no_such_layer"):
        save_quantized(
            SmallCogACTPolicy.tiny(), tmp_path / "out", layers=layers | {"no_such_layer": layers[first]}, **arguments
        )
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputExistsError):
        save_policy(SmallCogACTPolicy.tiny(), folders["float"])


def test_replacing_a_module_that_does_not_exist_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    replace_module(model, "1", nn.GELU())
    assert isinstance(model[1], nn.GELU)
    with pytest.raises(InvalidInputError, match=r"got '2\.linear'"):
        replace_module(model, "2.linear", nn.GELU())


def test_a_packaged_policy_is_found_by_name(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    monkeypatch.setattr("daptq.policies.__path__", [str(folders["float"].parent)])
    assert set(source.packaged_policies()) == {"float", "quantized"}
    assert load_policy("float").name == "tiny"
    with pytest.raises(UnknownNameError, match="Did you mean 'quantized'"):
        load_policy("quantised")


def test_a_folder_is_found_by_a_plain_word(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    monkeypatch.chdir(folders["float"].parent)
    assert load_policy("quantized").name == "tiny"
    assert load_policy("./float/").name == "tiny"


def test_a_hub_id_is_downloaded_without_pickles(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repo_id: str, *, ignore_patterns: list[str]) -> str:
        asked.append((repo_id, ignore_patterns))
        return str(folders["quantized"])

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert load_policy("some-lab/tiny-w4").name == "tiny"
    assert asked == [("some-lab/tiny-w4", ["*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt"])]


def test_an_unreachable_hub_is_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InvalidInputError, match=r"got 'some-lab/tiny-w4': no such folder, and .*Check the name and the"
    ):
        load_policy("some-lab/tiny-w4")
