"""Policies written to folders and loaded back: packed layers, memory, damage, and where policies come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from daptq.artifacts import read_artifact, write_artifact
from daptq.errors import (
    CorruptArtifactError,
    ForeignArtifactError,
    InvalidInputError,
    MissingShardError,
    OutputExistsError,
    SchemaVersionError,
    UnknownNameError,
)
from daptq.kernels.linear._bfloat16 import BFloat16Linear
from daptq.kernels.linear._layer import QuantizedLinear
from daptq.numerics.grid import quantize_symmetric
from daptq.numerics.scales import absmax_scale
from daptq.packing import _source
from daptq.packing.checkpoint import load_policy, replace_module, save_policy, save_quantized
from daptq.packing.size import weight_bytes_on_disk, weight_bytes_resident
from daptq.policies._base import ACTION, Policy
from daptq.policies.cogact import CogACTPolicy, tiny

KEPT = "action_model.net.blocks.3."
RECIPE = {"method": "round-to-nearest"}
PROVENANCE = {"seed": 7}


def quantize_layers(policy: Policy, num_bits: int = 4) -> dict[str, QuantizedLinear]:
    """Round-to-nearest for every linear layer outside the vision tower and the last block."""
    layers = {}
    for name, role in policy.linear_layers().items():
        if role != "vision" and not name.startswith(KEPT):
            linear = policy.get_submodule(name)
            assert isinstance(linear, nn.Linear)
            scale = absmax_scale(linear.weight, num_bits)
            integers = quantize_symmetric(linear.weight.detach(), scale, num_bits)
            layers[name] = QuantizedLinear.from_integers(integers, scale, linear.bias, num_bits=num_bits)
    return layers


def write_quantized(policy: Policy, directory: Path, num_bits: int = 4) -> dict[str, QuantizedLinear]:
    layers = quantize_layers(policy, num_bits)
    written = save_quantized(
        policy,
        directory,
        layers=layers,
        plan=[{"name": "x"}],
        folding={"order": 1},
        recipe=RECIPE,
        provenance=PROVENANCE,
    )
    assert written == directory
    return layers


def predict(policy: Policy, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    batch = {
        key: value.to(dtype) if isinstance(value, Tensor) else value
        for key, value in policy.example_batch(seed).items()
        if key != ACTION
    }
    with torch.no_grad():
        return policy.predict_chunk(batch, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("policies")
    save_policy(tiny(), root / "float")
    write_quantized(tiny(), root / "quantized")
    return {"float": root / "float", "quantized": root / "quantized"}


# --- round trips -----------------------------------------------------------------------------------------------------


def test_float_policy_comes_back_rounded_to_bfloat16(folders: dict[str, Path]) -> None:
    policy = tiny()
    loaded = load_policy(folders["float"])
    assert type(loaded) is type(policy)
    assert not loaded.training
    assert loaded.name == "tiny"
    parameters = dict(loaded.named_parameters())
    assert set(parameters) == {name for name, _ in policy.named_parameters()}
    for name, expected in policy.named_parameters():
        assert parameters[name].dtype == torch.float32
        assert parameters[name].requires_grad
        assert torch.equal(parameters[name], expected.bfloat16().float()), name
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(parameter.bfloat16())
    assert torch.equal(predict(loaded), predict(policy))
    assert load_policy(folders["float"], name="another").name == "another"


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
def test_quantized_policy_comes_back_with_the_same_integers_and_actions(tmp_path: Path, num_bits: int) -> None:
    policy = tiny()
    layers = write_quantized(policy, tmp_path / "out", num_bits)
    loaded = load_policy(str(tmp_path / "out"))
    for name, layer in layers.items():
        module = loaded.get_submodule(name)
        assert isinstance(module, QuantizedLinear)
        assert module.num_bits == num_bits
        assert torch.equal(module.integers(), layer.integers())
        assert torch.equal(module.weight_scale, layer.weight_scale)
        assert (module.bias is None) == (layer.bias is None)
        assert module.bias is None or torch.equal(module.bias, policy.get_submodule(name).bias)  # type: ignore[arg-type]
    for name, layer in layers.items():
        replace_module(policy, name, layer)
    others = [(name, module) for name, module in policy.named_modules() if type(module) is nn.Linear]
    assert any(name.startswith(KEPT) for name, _ in others)
    for name, module in others:
        assert isinstance(loaded.get_submodule(name), BFloat16Linear)
        replace_module(policy, name, BFloat16Linear.from_linear(module))
    replaced = tuple(
        name for name, module in policy.named_modules() if isinstance(module, QuantizedLinear | BFloat16Linear)
    )
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if not name.startswith(replaced):
                parameter.copy_(parameter.bfloat16())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {name: module.dtype for name, module in loaded.named_parameters()} == {
        name: parameter.dtype for name, parameter in policy.named_parameters()
    }
    assert torch.equal(predict(loaded), predict(policy))


def test_metadata_says_what_was_done(folders: dict[str, Path]) -> None:
    metadata = read_artifact(folders["quantized"], kind="quantized-policy").metadata
    assert (metadata["family"], metadata["name"]) == ("cogact", "tiny")
    assert metadata["plan"] == [{"name": "x"}]
    assert metadata["folding"] == {"order": 1}
    assert metadata["recipe"] == RECIPE
    assert metadata["provenance"] == PROVENANCE
    roles = tiny().linear_layers()
    assert {name: entry["role"] for name, entry in metadata["layers"].items()} == roles
    bits = {entry["num_bits"] for name, entry in metadata["layers"].items() if name.startswith(("vision", KEPT))}
    assert bits == {16}
    assert metadata["layers"]["llm_backbone.layers.0.mlp.up_proj"] == {"role": "language", "num_bits": 4}
    assert "versions" in read_artifact(folders["float"], kind="policy").metadata["provenance"]


def test_two_weights_share_a_byte_on_disk(folders: dict[str, Path]) -> None:
    artifact = read_artifact(folders["quantized"], kind="quantized-policy")
    name = "llm_backbone.layers.0.mlp.up_proj"
    out_features, in_features = artifact.tensor(f"{name}.weight_shape").tolist()
    packed = artifact.tensor(f"{name}.weight_packed")
    assert (packed.dtype, tuple(packed.shape)) == (torch.uint8, (out_features, in_features // 2))
    assert artifact.tensor(f"{name}.weight_scale").shape == (out_features, 1)
    assert f"{name}.weight" not in artifact.tensor_names
    kept = artifact.tensor(f"{KEPT}mlp.fc1.weight")
    assert kept.dtype == torch.bfloat16
    sizes = {key: folder for key, folder in folders.items() if weight_bytes_on_disk(folder) > 0}
    assert weight_bytes_on_disk(sizes["quantized"]) < 0.7 * weight_bytes_on_disk(sizes["float"])


def test_a_policy_with_layers_in_place_is_written_identically(tmp_path: Path, folders: dict[str, Path]) -> None:
    policy = tiny()
    layers = quantize_layers(policy)
    for name, layer in layers.items():
        replace_module(policy, name, layer)
    predict(policy)  # The layers now keep the form of their kernels.
    save_quantized(
        policy, tmp_path / "out", layers=layers, plan=[{"name": "x"}], folding={"order": 1}, recipe=RECIPE,
        provenance=PROVENANCE,
    )  # fmt: skip
    for shard in folders["quantized"].glob("*.safetensors"):
        assert (tmp_path / "out" / shard.name).read_bytes() == shard.read_bytes()


def test_saving_a_loaded_policy_changes_nothing(tmp_path: Path, folders: dict[str, Path]) -> None:
    save_policy(load_policy(folders["float"]), tmp_path / "again")
    for shard in folders["float"].glob("*.safetensors"):
        assert (tmp_path / "again" / shard.name).read_bytes() == shard.read_bytes()


# --- packed actions equal fake-quantized actions ---------------------------------------------------------------------


class FakeQuantizedLinear(nn.Module):
    """The same layer written with float64 numbers that happen to lie on the grids (fake quantization)."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self.register_buffer("values", layer.integers().double() * layer.weight_scale.double())
        self.register_buffer("offset", None if layer.bias is None else layer.bias.double())

    def forward(self, x: Tensor) -> Tensor:
        x = x.double()
        step = x.abs().amax(dim=-1, keepdim=True) / 127
        step = torch.where(step == 0, 1.0, step)
        return nn.functional.linear(torch.round(x / step) * step, self.values, self.offset)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_packed_actions_equal_fake_quantized_actions(backend: str) -> None:
    policy, packed, fake = tiny(), tiny(), tiny().double()
    layers = quantize_layers(policy)
    for name, layer in layers.items():
        replace_module(fake, name, FakeQuantizedLinear(layer))
        layer.use_backend(backend)
        replace_module(packed, name, layer)
    # The head's kept layers read float64 from their fake neighbours and float32 from the timestep features.
    batch = {key: value for key, value in policy.example_batch(0).items() if key != ACTION}
    exact = {key: value.double() if isinstance(value, Tensor) else value for key, value in batch.items()}
    with torch.no_grad():
        cognition, fake_cognition = packed.perceive(batch)[0], fake.perceive(exact)[0]
        float_cognition = policy.perceive(batch)[0]
    # Up to here float32 and float64 round every activation to the same integer; only float32's own error is left.
    torch.testing.assert_close(cognition.double(), fake_cognition, rtol=0, atol=2e-6)
    assert float((cognition - float_cognition).abs().mean()) > 1e-2
    chunk, fake_chunk, float_chunk = predict(packed), predict(fake, torch.float64), predict(policy)
    # In ten denoising steps an activation that lies on the edge between two integers may fall to either side.
    difference = (chunk.double() - fake_chunk).abs().mean()
    effect = (chunk - float_chunk).abs().mean()
    assert float(difference) < 0.01 * float(effect)


def test_the_comparison_notices_one_wrong_integer() -> None:
    policy, packed = tiny(), tiny()
    layers = quantize_layers(policy)
    for name, layer in layers.items():
        replace_module(packed, name, layer)
    batch = {key: value for key, value in policy.example_batch(0).items() if key != ACTION}
    with torch.no_grad():
        before = packed.perceive(batch)[0]
        name = "llm_backbone.layers.0.self_attn.v_proj"
        integers = layers[name].integers()
        integers[0, 0] += 1 if integers[0, 0] < 0 else -1
        replace_module(
            packed, name, QuantizedLinear.from_integers(integers, layers[name].weight_scale, layers[name].bias)
        )
        assert float((packed.perceive(batch)[0] - before).abs().max()) > 1e-5


# --- memory ----------------------------------------------------------------------------------------------------------


class LiveFloats(TorchDispatchMode):
    """Records the largest number of bytes of float32 and float64 storages that were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live: dict[int, tuple[Any, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.dtype in (torch.float32, torch.float64) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {key: entry for key, entry in self.live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return result


def wide_policy() -> CogACTPolicy:
    """A random policy of which 95 % are linear layers: 6 M weights, the largest of them 0.2 M."""
    config = tiny().config()
    config |= {"name": "wide", "language_width": 256, "language_depth": 8, "language_heads": 4, "language_mlp": 768}
    torch.manual_seed(0)
    policy = CogACTPolicy.from_config(config, tiny().files())
    for parameter in policy.parameters():
        nn.init.normal_(parameter, std=0.02)
    return policy


@pytest.mark.parametrize("backend", ["auto", "reference", "float32-carried"])
def test_no_float_copy_of_the_model_ever_exists(tmp_path: Path, backend: str) -> None:
    policy = wide_policy()
    float_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    layers = write_quantized(policy, tmp_path / "out")
    largest = max(layer.in_features * layer.out_features for layer in layers.values())
    outside = sum(
        parameter.nbytes for name, parameter in policy.named_parameters() if name.rpartition(".")[0] not in layers
    )
    batch = {key: value for key, value in policy.example_batch(0).items() if key != ACTION}
    del policy, layers
    with LiveFloats() as loading:
        loaded = load_policy(tmp_path / "out")
    # Parameters outside the layers, scales and biases, and one tensor in two dtypes while it is converted.
    assert loading.peak < outside + 0.05 * float_bytes
    for module in loaded.modules():
        if isinstance(module, QuantizedLinear):
            module.use_backend(backend)
    with LiveFloats() as running, torch.no_grad():
        loaded.predict_chunk(batch, torch.Generator().manual_seed(0))
    # One layer's weight in float32, and activations.
    assert running.peak < 4 * largest + 0.1 * float_bytes
    assert loading.peak + running.peak < 0.3 * float_bytes
    form = {"reference": 0.55}.get(backend, 2.0)  # Bytes per quantized weight; "auto" takes at most bfloat16's 2.
    assert weight_bytes_resident(loaded) < outside + form * float_bytes / 4
    assert weight_bytes_on_disk(tmp_path / "out") < 0.2 * float_bytes


def test_the_memory_guard_sees_a_float_copy(tmp_path: Path) -> None:
    policy = wide_policy()
    float_bytes = sum(parameter.nbytes for parameter in policy.parameters())
    write_quantized(policy, tmp_path / "out")
    with LiveFloats() as mode:
        loaded = load_policy(tmp_path / "out")
        copies = [module.dequantize() for module in loaded.modules() if isinstance(module, QuantizedLinear)]
    assert len(copies) > 50
    assert mode.peak > 0.9 * float_bytes


def test_resident_bytes_count_shared_memory_once() -> None:
    linear = nn.Linear(10, 10, bias=False)
    twice = nn.ModuleList([linear, nn.Linear(10, 10, bias=False)])
    assert weight_bytes_resident(twice) == 800
    twice[1].weight = linear.weight
    assert weight_bytes_resident(twice) == 400
    quantized = QuantizedLinear.from_integers(torch.ones(10, 10, dtype=torch.int8), torch.ones(10, 1))
    twice.append(quantized)
    assert weight_bytes_resident(twice) == 400 + 50 + 40 + 16


# --- refusals --------------------------------------------------------------------------------------------------------


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
    policy = tiny()
    tensors = {name: parameter.bfloat16() for name, parameter in policy.named_parameters()}
    metadata = {"family": "cogact", "name": "tiny", "config": policy.config()}

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
    with pytest.raises(UnknownNameError, match="Did you mean 'cogact'"):
        load_policy(write(tmp_path / "family", tensors))


def test_saving_refuses_what_it_would_lose(tmp_path: Path, folders: dict[str, Path]) -> None:
    loaded = load_policy(folders["quantized"])
    with pytest.raises(InvalidInputError, match="layers must name every quantized layer"):
        save_policy(loaded, tmp_path / "out")
    layers = quantize_layers(tiny())
    first = next(iter(layers))
    incomplete = {name: layer for name, layer in layers.items() if name != first}
    arguments: dict[str, Any] = {"plan": [], "folding": {}, "recipe": {}, "provenance": {}}
    with pytest.raises(InvalidInputError, match=first):
        save_quantized(loaded, tmp_path / "out", layers=incomplete, **arguments)
    with pytest.raises(InvalidInputError, match="no_such_layer"):
        save_quantized(tiny(), tmp_path / "out", layers=layers | {"no_such_layer": layers[first]}, **arguments)
    assert not (tmp_path / "out").exists()
    with pytest.raises(OutputExistsError):
        save_policy(tiny(), folders["float"])


def test_replacing_a_module_that_does_not_exist_is_refused() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    replace_module(model, "1", nn.GELU())
    assert isinstance(model[1], nn.GELU)
    with pytest.raises(InvalidInputError, match=r"got '2\.linear'"):
        replace_module(model, "2.linear", nn.GELU())


# --- sources ---------------------------------------------------------------------------------------------------------


def test_a_packaged_policy_is_found_by_name(monkeypatch: pytest.MonkeyPatch, folders: dict[str, Path]) -> None:
    monkeypatch.setattr("daptq.policies.__path__", [str(folders["float"].parent)])
    assert set(_source.packaged_policies()) == {"float", "quantized"}
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
