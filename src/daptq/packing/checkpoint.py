"""The folders that hold a policy: artifact kind ``policy`` (bfloat16) and ``quantized-policy`` (packed integers).

A quantized folder holds, for each quantized layer, ``<layer>.weight_packed``, ``.weight_scale``, ``.weight_shape`` and,
where the layer has them, ``.weight_zero_point``, ``.bias``, ``.activation_scale`` and ``.input_scale``, and every other
parameter in bfloat16. Metadata of a layer without ``activation_bits`` means 8, without ``rotation_block`` none, without
``group_size`` one scale per output channel. Loading a folder
puts the packed layers in place of parameters that never had memory, so at no time does a float copy of the whole model
exist. Which layers are quantized, and how they were rounded, was decided elsewhere; this module only records it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daptq.artifacts import Artifact, read_artifact, write_artifact
from daptq.artifacts import provenance as make_provenance
from daptq.catalog import POLICIES
from daptq.errors import InvalidInputError
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.numerics.grid import BFLOAT16
from daptq.packing.foreign import foreign_family
from daptq.packing.metadata import CheckpointMetadata, StoredLayer
from daptq.packing.source import locate
from daptq.policies.contract import Policy
from daptq.policies.placement import place_tensors

__all__ = ["POLICY_KIND", "QUANTIZED_KIND", "load_policy", "replace_module", "save_policy", "save_quantized"]

POLICY_KIND = "policy"
QUANTIZED_KIND = "quantized-policy"


def save_policy(policy: Policy, directory: Path, *, provenance: Mapping[str, Any] | None = None) -> Path:
    """Writes a float policy: its parameters in bfloat16, its persistent buffers as they are.

    Args:
        policy: A policy without quantized layers.
        directory: Folder to create; may exist when empty.
        provenance: JSON object; by default versions, machine and time.

    Returns:
        `directory`.

    Raises:
        InvalidInputError: The policy has quantized layers.
        OutputExistsError: `directory` exists and is not empty.
        OutputWriteError: The disk refused a write.
    """
    _require_listed(policy, {})
    metadata = {**_describe(policy), "provenance": dict(provenance or make_provenance())}
    write_artifact(
        directory, kind=POLICY_KIND, tensors=_float_tensors(policy, ()), metadata=metadata, files=policy.files()
    )
    return directory


def save_quantized(
    policy: Policy,
    directory: Path,
    *,
    layers: Mapping[str, QuantizedLinear],
    plan: Any,
    folding: Any,
    recipe: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> Path:
    """Writes a quantized policy.

    Args:
        policy: Gives every parameter outside `layers`; their own modules in it may still be float.
        directory: Folder to create; may exist when empty.
        layers: The quantized layers by module path.
        plan: The bit plan, JSON.
        folding: Which fold took the map of each interface, JSON.
        recipe: The resolved recipe, a JSON object.
        provenance: Versions, machine, data and seed, a JSON object.

    Returns:
        `directory`.

    Raises:
        InvalidInputError: `layers` names no linear layer of the policy, or leaves out a quantized one.
        OutputExistsError: `directory` exists and is not empty.
        OutputWriteError: The disk refused a write.
    """
    roles = policy.linear_layers()
    if unknown := sorted(set(layers) - set(roles)):
        raise InvalidInputError(f"layers must be linear layers of the policy, got {unknown}. Check the module paths.")
    _require_listed(policy, layers)
    metadata = {
        **_describe(policy),
        "layers": {name: _stored(role, layers.get(name)).to_json() for name, role in roles.items()},
        "plan": plan,
        "folding": folding,
        "recipe": dict(recipe),
        "provenance": dict(provenance),
    }
    write_artifact(
        directory,
        kind=QUANTIZED_KIND,
        tensors=_quantized_tensors(policy, layers),
        metadata=metadata,
        files=policy.files(),
    )
    return directory


def load_policy(
    source: str | Path, *, name: str | None = None, stream: bool = False, dataset: str | None = None
) -> Policy:
    """Loads a policy, ready to predict on the CPU.

    A float policy comes back with float32 parameters. A quantized one comes back with `QuantizedLinear` layers,
    `BFloat16Linear` in place of its other linear layers, and float32 for the rest (norms, embeddings, convolutions).

    Args:
        source: Name of a policy in the package (``"reference"``), a folder that daptq wrote or that a family
            recognises (such as a public CogACT checkpoint), or a hub id (``"organisation/name"``) of either. A name in
            the package goes before a folder of that name: write ``"./reference"``.
        name: Name of the loaded policy; by default the one it was saved with.
        stream: Leave the large weights of a float policy in its files, see `daptq.policies.streaming`: to quantize a
            policy larger than memory. A quantized policy is loaded whole.
        dataset: Data set whose statistics un-normalise the actions, for a folder that daptq did not write; needed
            where it has those of several.

    Raises:
        UnknownNameError: `source` is a plain word that is neither a policy in the package nor a folder.
        InvalidInputError: The hub did not deliver the policy, or `dataset` does not fit it.
        ForeignArtifactError: The folder does not hold a policy, or one of another family version.
        ArtifactError: The folder is damaged, incomplete or of another schema version.
    """
    directory = locate(source)
    foreign = foreign_family(directory)
    if foreign is not None:
        read = foreign.read_foreign(directory, dataset=dataset, stream=stream)
        read.name = name or read.name
        return read
    if dataset is not None:
        raise InvalidInputError(
            f"dataset must be given for a checkpoint that daptq did not write, got {dataset!r} for {directory}. "
            "Drop it."
        )
    artifact = read_artifact(directory, kind=(POLICY_KIND, QUANTIZED_KIND))
    metadata = CheckpointMetadata.of(artifact)
    files = {file: artifact.file(file) for file in artifact.file_names}
    family: type[Policy] = POLICIES.load(metadata.family).POLICY
    policy = family.from_config(metadata.config, files, empty=True)
    if artifact.kind == QUANTIZED_KIND:
        _place_linear_layers(policy, artifact, metadata.layers)
    stored = {key: artifact.stored(key) for key in artifact.tensor_names}
    place_tensors(policy, stored, directory, stream=stream and artifact.kind == POLICY_KIND)
    policy.name = name or metadata.name
    return policy.eval()


def replace_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Puts `module` in the place of the submodule at `path`.

    Raises:
        InvalidInputError: There is no submodule at `path`.
    """
    parent, _, leaf = path.rpartition(".")
    try:
        root.get_submodule(path)
    except AttributeError as error:
        raise InvalidInputError(f"path must lead to a module, got {path!r}. Check the layer's name.") from error
    setattr(root.get_submodule(parent), leaf, module)


def _describe(policy: Policy) -> dict[str, Any]:
    return {"family": policy.family, "name": policy.name, "config": policy.config()}


def _stored(role: str, layer: QuantizedLinear | None) -> StoredLayer:
    """How a linear layer is stored; without a quantized one in its place it is kept."""
    if layer is None:
        return StoredLayer(role=role, num_bits=BFLOAT16, activation_bits=None)
    return StoredLayer(
        role=role,
        num_bits=layer.num_bits,
        activation_bits=layer.activation_bits,
        group_size=layer.group_size,
        rotation_block=layer.rotation_block,
    )


def _require_listed(policy: Policy, layers: Mapping[str, QuantizedLinear]) -> None:
    """Refuses a policy with quantized layers that would be written neither packed nor as floats."""
    quantized = {path for path, module in policy.named_modules() if isinstance(module, QuantizedLinear)}
    if missing := sorted(quantized - set(layers)):
        raise InvalidInputError(f"layers must name every quantized layer, got none of {missing}. Pass all of them.")


def _quantized_tensors(policy: Policy, layers: Mapping[str, QuantizedLinear]) -> Iterator[tuple[str, Tensor]]:
    for name, layer in layers.items():
        for key, tensor in layer.state_dict().items():
            yield f"{name}.{key}", tensor
    yield from _float_tensors(policy, tuple(layers))


def _float_tensors(policy: Policy, without: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    """Parameters in bfloat16 and persistent buffers as they are, except those of the modules `without`."""
    prefixes = tuple(f"{name}." for name in without)
    parameters = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    tensors = policy.tensors()
    for key in tensors:
        if not key.startswith(prefixes):
            yield key, tensors[key].to(torch.bfloat16) if key in parameters else tensors[key]


def _place_linear_layers(policy: Policy, artifact: Artifact, layers: Mapping[str, StoredLayer]) -> None:
    """Puts packed and bfloat16 layers in place of the empty linear layers."""
    names = frozenset(artifact.tensor_names)
    for path, stored in layers.items():
        if stored.activation_bits is not None:
            bias, activation_scale, input_scale, zero_point = (
                artifact.tensor(f"{path}.{key}") if f"{path}.{key}" in names else None
                for key in ("bias", "activation_scale", "input_scale", "weight_zero_point")
            )
            _, in_features = artifact.tensor(f"{path}.weight_shape").tolist()
            packed = artifact.tensor(f"{path}.weight_packed")
            layer = QuantizedLinear(
                PackedWeight(
                    packed=packed,
                    in_features=in_features,
                    num_bits=stored.num_bits,
                    group_size=stored.group_size,
                    zero_point=zero_point,
                ),
                artifact.tensor(f"{path}.weight_scale"),
                bias,
                activation_bits=stored.activation_bits,
                activation_scale=activation_scale,
                input_scale=input_scale,
                rotation_block=stored.rotation_block,
                compute_dtype=policy.compute_dtype,
            )
            layer.follow(policy.denoising_step)
            replace_module(policy, path, layer)
    for path, module in list(policy.named_modules()):
        # Subclasses may be read by their owner as plain parameters; they stay what they are.
        if type(module) is nn.Linear and f"{path}.weight" in names:
            bias = artifact.tensor(f"{path}.bias") if f"{path}.bias" in names else None
            kept = BFloat16Linear(artifact.tensor(f"{path}.weight"), bias, compute_dtype=policy.compute_dtype)
            replace_module(policy, path, kept)
