"""Folders laid out like the public CogACT checkpoints: what loads, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daptq.errors import ForeignArtifactError, InvalidInputError, UnknownNameError
from daptq.packing import source
from daptq.packing.checkpoint import load_policy
from daptq.policies.cogact_public import POLICY, PublicCogACTPolicy

STATISTICS = {"q01": [-0.1] * 6 + [0.0], "q99": [0.2] * 6 + [1.0], "mask": [True] * 6 + [False], "mean": [0.0] * 7}


def small() -> PublicCogACTPolicy:
    """A policy whose numbers of heads follow from its widths, as in the public sizes."""
    config = {
        **PublicCogACTPolicy.tiny().config(),
        "name": "CogACT-Tiny",
        "action_low": STATISTICS["q01"],
        "action_high": STATISTICS["q99"],
        "dino": {"width": 64, "depth": 3, "heads": 1, "mlp": 80},
        "siglip": {"width": 72, "depth": 3, "heads": 1, "mlp": 90},
        "language_width": 128,
        "language_heads": 1,
        "vocab_size": 29872,
        "prompt_suffix": [29871, 2],
        "action_width": 384,
        "action_heads": 4,
        "action_depth": 2,
    }
    torch.manual_seed(0)
    policy = POLICY.from_config(config, PublicCogACTPolicy.tiny().files())
    nn.init.normal_(policy.action_model.net.final_layer.linear.weight, std=0.2)
    return policy


def public_state(policy: PublicCogACTPolicy) -> dict[str, dict[str, Tensor]]:
    """The policy's tensors under the public names, with the weights that the public models carry besides."""
    model: dict[str, dict[str, Tensor]] = {}
    for name, values in policy.state_dict().items():
        part, _, rest = name.partition(".")
        rest = f"llm.model.{rest}" if part == "llm_backbone" else rest
        model.setdefault(part, {})[rest] = values.clone()
    for tower in ("dino", "siglip"):
        blocks = {
            name: values for name, values in model["vision_backbone"].items() if f"{tower}_featurizer.blocks.0." in name
        }
        model["vision_backbone"] |= {
            name.replace("blocks.0.", "blocks.2."): values + 1 for name, values in blocks.items()
        }
        model["vision_backbone"][f"{tower}_featurizer.norm.weight"] = torch.ones(3)
    model["vision_backbone"]["siglip_featurizer.attn_pool.latent"] = torch.ones(1, 1, 72)
    model["llm_backbone"]["llm.lm_head.weight"] = torch.ones(4, 128)
    model["ema_diffusion"] = {"net.anything": torch.ones(2)}
    return model


Write = Callable[..., Path]


@pytest.fixture(scope="module")
def original() -> PublicCogACTPolicy:
    return small()


@pytest.fixture
def write(tmp_path: Path, original: PublicCogACTPolicy) -> Write:
    """Writes a public folder after `change` was at the dictionary of weights."""

    def made(
        change: Callable[[dict[str, Any]], None] = lambda _: None, datasets: tuple[str, ...] = ("bridge_orig",)
    ) -> Path:
        folder = tmp_path / "public"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
        (folder / "dataset_statistics.json").write_text(json.dumps({name: {"action": STATISTICS} for name in datasets}))
        (folder / "tokenizer.json").write_bytes(original.files()["tokenizer.json"])
        state: dict[str, Any] = {"model": public_state(original)}
        change(state)
        torch.save(state, folder / "checkpoints" / "CogACT-Tiny.pt")
        return folder

    return made


@pytest.mark.parametrize("stream", [False, True])
def test_a_public_folder_predicts_what_its_weights_say(
    write: Write, original: PublicCogACTPolicy, stream: bool
) -> None:
    loaded = load_policy(write(), stream=stream)
    assert isinstance(loaded, PublicCogACTPolicy)
    assert loaded.name == "CogACT-Tiny"
    assert loaded.config() == original.config()
    batch = original.example_batch(0)
    chunks = [policy.predict_chunk(batch, torch.Generator().manual_seed(0)) for policy in (original, loaded)]
    assert torch.equal(*chunks)


def test_statistics_are_chosen_by_data_set(write: Write) -> None:
    folder = write(datasets=("bridge_orig", "fractal20220817_data"))
    with pytest.raises(InvalidInputError, match="dataset must be one of bridge_orig, fractal20220817_data, got none"):
        load_policy(folder)
    with pytest.raises(UnknownNameError, match="Did you mean 'bridge_orig'"):
        load_policy(folder, dataset="bridge_origin")
    assert load_policy(folder, dataset="bridge_orig").action_unit[0] == pytest.approx(0.15)
    with pytest.raises(InvalidInputError, match="for a checkpoint that daptq did not write"):
        load_policy("reference", dataset="bridge_orig")


def _drop_a_part(state: dict[str, Any]) -> None:
    del state["model"]["projector"]


def _drop_a_layer(state: dict[str, Any]) -> None:
    del state["model"]["llm_backbone"]["llm.model.layers.0.mlp.up_proj.weight"]


def _add_a_layer(state: dict[str, Any]) -> None:
    state["model"]["projector"]["projector.6.weight"] = torch.ones(2, 2)


def _wrong_shape(state: dict[str, Any]) -> None:
    state["model"]["projector"]["projector.0.weight"] = torch.ones(2, 2)


def _other_width(state: dict[str, Any]) -> None:
    state["model"]["action_model"]["net.positional_embedding"] = torch.ones(17, 100)


def _no_embedding(state: dict[str, Any]) -> None:
    del state["model"]["llm_backbone"]["llm.model.embed_tokens.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop_a_part, r"got none of \['projector'\]"),
        (_drop_a_layer, "1 missing .*up_proj"),
        (_add_a_layer, "1 unknown .*projector.6.weight"),
        (_wrong_shape, "projector.projector.0.weight in .* must have shape"),
        (_other_width, "must be that of DiT-S, B or L"),
        (_no_embedding, "must hold llm_backbone.llm.model.embed_tokens.weight"),
    ],
)
def test_other_weights_are_refused_by_name(
    write: Write, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(ForeignArtifactError, match=message):
        load_policy(write(change))


def test_missing_and_foreign_files_are_named(write: Write) -> None:
    folder = write()
    weights = folder / "checkpoints" / "CogACT-Tiny.pt"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ForeignArtifactError, match=r"CogACT-Tiny\.pt must be a torch checkpoint"):
        load_policy(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InvalidInputError, match=r"must hold tokenizer\.json, got none"):
        load_policy(folder)
    weights.unlink()
    with pytest.raises(ForeignArtifactError, match=r"must hold one \.pt file, got \[\]"):
        load_policy(folder)


@pytest.mark.parametrize(
    "statistics", [{"a": {}}, {"a": {"action": {"q01": [0.0]}}}, {"a": {"action": {"q01": 1, "q99": 2}}}]
)
def test_statistics_of_another_form_are_refused(write: Write, statistics: dict[str, Any]) -> None:
    folder = write()
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    with pytest.raises(ForeignArtifactError, match="must hold q01, q99 and mask of the actions of a"):
        load_policy(folder)


def test_a_hub_id_brings_the_weights_of_a_public_checkpoint_alone(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write()
    asked: list[dict[str, Any]] = []

    def snapshot_download(hub_id: str, **patterns: Any) -> str:
        asked.append({"hub_id": hub_id, **patterns})
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_policy("CogACT/CogACT-Tiny").name == "CogACT-Tiny"
    assert "*.pt" in asked[0]["ignore_patterns"]
    assert asked[1]["allow_patterns"] == ["*.json", "checkpoints/*.pt"]
    assert source.locate("CogACT/CogACT-Tiny") == folder
