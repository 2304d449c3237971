"""Every fold of the catalog keeps the contract in a network around it, and the suite notices when one does not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

from daptq.catalog import FOLDS
from daptq.errors import CheckFailedError
from daptq.interfaces.affine import AffineMap
from daptq.interfaces.conformance import Change, check_fold, example_map
from daptq.interfaces.contract import Folded
from daptq.interfaces.into_attention_keys import IntoAttentionKeys
from daptq.interfaces.into_attention_values import IntoAttentionValues
from daptq.interfaces.into_consumers import IntoConsumers
from daptq.interfaces.into_norm import IntoNorm
from daptq.interfaces.into_producer import IntoProducer
from daptq.interfaces.map_class import MapClass, belongs
from tests.golden.interfaces.fold_cases import Attention, attention, attention_inputs, normal


class Line(nn.Module):
    """Producer, norm, representation of 8 channels, and a consumer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.producer, self.norm, self.consumer = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 4)
        self.double()


def through_the_norm(network: Line, change: Change) -> Tensor:
    return network.consumer(change(network.norm(network.producer(normal(20, 5, seed=1)))))


def without_the_norm(network: Line, change: Change) -> Tensor:
    return network.consumer(change(network.producer(normal(20, 5, seed=1))))


def with_keys(network: Attention, change: Change) -> Tensor:
    x, keys, values = attention_inputs(torch.float64)
    return network(x, change(keys), values)


def with_values(network: Attention, change: Change) -> Tensor:
    x, keys, values = attention_inputs(torch.float64)
    return network(x, keys, change(values))


CASES: dict[str, tuple[Any, ...]] = {
    "into-consumers": (IntoConsumers(("consumer",)), Line, through_the_norm, 8),
    "into-producer": (IntoProducer("producer"), Line, without_the_norm, 8),
    "into-norm": (IntoNorm("norm", bias=True), Line, through_the_norm, 8),
    "into-attention-keys": (IntoAttentionKeys("q", "k", 4, 2), lambda: attention(torch.float64), with_keys, 12),
    "into-attention-values": (IntoAttentionValues("o", "v", 4, 2), lambda: attention(torch.float64), with_values, 12),
}


@pytest.mark.parametrize("name", FOLDS.names())
def test_every_fold_keeps_the_contract(name: str) -> None:
    fold, network, answer, channels = CASES[name]
    assert type(fold) is FOLDS.load(name).FOLD
    check_fold(fold, network(), answer, channels=channels)


# Every class that a map of the class belongs to as well.
WIDER: dict[MapClass, set[MapClass]] = {
    "affine": set(),
    "affine-per-head": {"affine"},
    "rotary": {"affine", "affine-per-head"},
    "diagonal": {"affine", "affine-per-head"},
    "gain": {"affine", "affine-per-head", "diagonal"},
}


@pytest.mark.parametrize("map_class", get_args(MapClass))
def test_example_maps_are_of_their_class_and_of_none_narrower(map_class: MapClass) -> None:
    affine = example_map(map_class, 8, 2)
    assert {other for other in get_args(MapClass) if belongs(affine, other, 2)} == {map_class, *WIDER[map_class]}
    assert affine.condition_number < 20


class _ForgetsTheShift(IntoConsumers):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        return super().folded(AffineMap(matrix=affine.matrix, shift=torch.zeros_like(affine.shift)), tensors)


class _FoldsTwoSided(IntoAttentionValues):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        folded = super().folded(affine, tensors)
        own = folded.layers[self.counterpart]
        kept = replace(
            own, weight=tensors[f"{self.counterpart}.weight"].detach().double(), restore=lambda weight: weight
        )
        return Folded(layers={**folded.layers, self.counterpart: kept})


class _RestoresNothing(IntoProducer):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        layer = super().folded(affine, tensors).layers[self.producer]
        return Folded(layers={self.producer: replace(layer, restore=lambda weight: weight)})


class _CallsAnyMapAGain(IntoProducer):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        layer = super().folded(affine, tensors).layers[self.producer]
        return Folded(layers={self.producer: replace(layer, gain=affine.matrix.diagonal().abs())})


class _ChangesItsInput(IntoProducer):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        folded = super().folded(affine, tensors)
        tensors[f"{self.producer}.weight"].data.mul_(1.0 + 1e-12)
        return folded


class _NamesAnotherLayer(IntoConsumers):
    @property
    def layers(self) -> tuple[str, ...]:
        return ("producer",)


class _TakesAnyMap(IntoNorm):
    def folded(self, affine: AffineMap, tensors: Mapping[str, Tensor]) -> Folded:
        return super().folded(AffineMap(matrix=torch.diag(affine.matrix.diagonal()), shift=affine.shift), tensors)


@pytest.mark.parametrize(
    ("broken", "like", "message"),
    [
        (_ForgetsTheShift(("consumer",)), "into-consumers", "as with the explicit map"),
        (_FoldsTwoSided("o", "v", 4, 2), "into-attention-values", "as with the explicit map"),
        (_RestoresNothing("producer"), "into-producer", "must be restored"),
        (_CallsAnyMapAGain("producer"), "into-producer", "must give its folded weight"),
        (_ChangesItsInput("producer"), "into-producer", "must stay as they are"),
        (_NamesAnotherLayer(("consumer",)), "into-consumers", "that it names"),
        (_TakesAnyMap("norm", bias=True), "into-norm", "a map beyond the class"),
    ],
)
def test_the_suite_notices(broken: Any, like: str, message: str) -> None:
    _, network, answer, channels = CASES[like]
    with pytest.raises(CheckFailedError, match=message):
        check_fold(broken, network(), answer, channels=channels)


def test_the_suite_notices_a_map_without_effect() -> None:
    with pytest.raises(CheckFailedError, match="must move the answer"):
        check_fold(
            IntoProducer("producer"), Line(), lambda network, _: through_the_norm(network, lambda z: z), channels=8
        )
