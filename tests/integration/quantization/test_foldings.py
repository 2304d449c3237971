"""Every folding on policies: the folded policy answers as one with the explicit affine map in between."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from daptq.allocation.plan import BitPlan, LayerBits
from daptq.errors import RecipeError
from daptq.interfaces.affine import AffineMap
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import replace_module
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.policies.contract import Policy
from daptq.quantization.assembly import share_tensors
from daptq.quantization.folding import Folder
from daptq.quantization.rounding import Rounder
from daptq.recipes import Recipe, da_ptq, quantize
from daptq.rounding.nearest import round_weight

ALL_BITS = 8


def dense(size: int) -> AffineMap:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(size, size, generator=generator, dtype=torch.float64)
    shift = torch.randn(size, generator=generator, dtype=torch.float64)
    return AffineMap(matrix=torch.eye(size, dtype=torch.float64) + 0.5 / size**0.5 * noise, shift=shift)


def diagonal(size: int) -> AffineMap:
    full = dense(size)
    return AffineMap(matrix=torch.diag(full.matrix.diagonal().abs()), shift=full.shift)


def plan_of(policy: Policy, kept: set[str]) -> BitPlan:
    return BitPlan(
        tuple(
            LayerBits(name=name, num_bits=16 if name in kept else ALL_BITS, reason="test")
            for name in policy.linear_layers()
        )
    )


def prepared(policy: Policy, plan: BitPlan) -> tuple[Policy, dict[str, QuantizedLinear]]:
    layers = {}
    for name in plan.quantized:
        layer: Any = policy.get_submodule(name)
        rounded = round_weight(layer.weight, ALL_BITS)
        layers[name] = QuantizedLinear.from_integers(
            rounded.integers, rounded.scale, layer.bias, num_bits=ALL_BITS, backend="reference"
        )
    return share_tensors(policy), layers


def placed(policy: Policy, layers: dict[str, QuantizedLinear]) -> Policy:
    for name, layer in layers.items():
        replace_module(policy, name, layer)
    return policy


def predicted(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.predict_target(policy.example_batch(3), torch.Generator().manual_seed(0)).predicted


@contextmanager
def explicit(policy: Policy, affine: AffineMap, constant: Tensor) -> Iterator[None]:
    """Applies the map in front of the consumer, except to the constant."""

    def hook(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        (z,) = inputs
        return inputs if torch.equal(z, constant) else (affine(z).float(),)

    (interface,) = policy.interfaces()
    handle = policy.get_submodule(interface.tap.module).register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def folded(policy: Policy, affine: AffineMap, kept: set[str], recipe: Recipe) -> tuple[Tensor, Tensor, Any]:
    """Answers of the folded policy and of the policy with the explicit map, and the folding."""
    plan = plan_of(policy, kept)
    (interface,) = policy.interfaces()
    constant = policy.get_parameter(interface.folds[0].parameters[0])
    target, layers = prepared(policy, plan)
    folder = Folder(policy, plan, recipe.folding, Rounder(policy, recipe, None, None))
    (entry,) = folder.put({interface.name: affine}, (interface,), target, layers)
    reference = placed(*prepared(policy, plan))
    with explicit(reference, affine, constant):
        expected = predicted(reference)
    return predicted(placed(target, layers)), expected, entry


def error(answer: Tensor, expected: Tensor) -> float:
    return float((answer - expected).norm() / expected.norm())


@pytest.mark.parametrize("make", [dense, diagonal])
def test_consumer_in_floating_point_is_exact(chain: Policy, make: Any) -> None:
    affine = make(10)
    answer, expected, entry = folded(chain, affine, {"consumer"}, da_ptq())
    assert entry.kind == "consumer"
    assert entry.layers == ("consumer",)
    assert entry.parameters == ("null",)
    assert entry.rounding_errors == {}
    # float32 weights and constants behind one 10-wide product and three blocks, 8-bit activations in between: a value
    # beside a rounding midpoint may fall to its other neighbour, 1/254 of the largest value.
    assert error(answer, expected) < 2e-3
    assert error(answer, predicted(chain)) > 0.05, "the map does something"


def test_consumer_of_cogact_is_exact(cogact: SmallCogACTPolicy) -> None:
    everything = set(cogact.linear_layers())
    affine = dense(48)
    answer, expected, entry = folded(cogact, affine, everything, da_ptq())
    assert entry.kind == "consumer"
    # No layer is rounded here: float32 arithmetic only.
    assert error(answer, expected) < 1e-5
    assert error(answer, predicted(cogact)) > 0.01


def test_guidance_without_condition_answers_as_before(cogact: SmallCogACTPolicy) -> None:
    plan = plan_of(cogact, set(cogact.linear_layers()))
    target, layers = prepared(cogact, plan)
    (interface,) = cogact.interfaces()
    rounder = Rounder(cogact, da_ptq(), None, None)
    Folder(cogact, plan, "auto", rounder).put({interface.name: dense(48)}, (interface,), target, layers)
    net, moved = cogact.action_model.net, target.get_submodule("action_model.net")
    with torch.no_grad():
        before = net.z_embedder.linear(net.z_embedder.uncondition)
        after = moved.z_embedder.linear(moved.z_embedder.uncondition)  # type: ignore[operator,union-attr]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-5)
    assert not torch.equal(moved.z_embedder.uncondition, net.z_embedder.uncondition)  # type: ignore[union-attr,arg-type]


@pytest.mark.parametrize("folding", ["auto", "producer"])
def test_gain_folds_exactly_into_the_scales_of_the_producer(chain: Policy, folding: Any) -> None:
    answer, expected, entry = folded(chain, diagonal(10), set(), da_ptq(folding=folding))
    assert entry.kind == "producer-scale"
    assert entry.layers == ("language.2",)
    assert entry.parameters == ()
    assert error(answer, expected) < 2e-3


def test_dense_map_folds_into_the_producer_and_is_rounded_again(chain: Policy) -> None:
    answer, expected, entry = folded(chain, dense(10), set(), da_ptq(folding="producer"))
    assert entry.kind == "producer-weight"
    # Eight bits: half a step of 1/127 of a row's largest weight.
    assert 0 < sum(entry.rounding_errors.values()) < 0.01
    assert error(answer, expected) < 0.02


def test_dense_map_folds_exactly_into_a_producer_in_floating_point(chain: Policy) -> None:
    answer, expected, entry = folded(chain, dense(10), {"language.2"}, da_ptq(folding="producer"))
    assert entry.kind == "producer-weight"
    assert entry.rounding_errors == {}
    assert error(answer, expected) < 2e-3


def test_consumer_is_rounded_after_folding_when_nothing_else_is_left(cogact: SmallCogACTPolicy) -> None:
    affine = dense(48)
    answer, expected, entry = folded(cogact, affine, set(), da_ptq(folding="auto"))
    assert entry.kind == "consumer-rounded"
    assert 0 < sum(entry.rounding_errors.values()) < 0.01
    assert error(answer, expected) < 0.1


def test_identity_changes_nothing(chain: Policy) -> None:
    answer, _, entry = folded(chain, AffineMap.identity(10), set(), da_ptq())
    assert entry.kind == "none"
    assert entry.layers == ()
    assert torch.equal(answer, predicted(placed(*prepared(chain, plan_of(chain, set())))))


def test_producer_that_is_not_the_representation_is_refused_before_any_work(
    cogact: SmallCogACTPolicy, tmp_path: Any, held: Any
) -> None:
    with pytest.raises(RecipeError, match="folding must be 'auto' or 'consumer'"):
        quantize(cogact, da_ptq(folding="producer"), data=held(cogact, 2), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    recipe = replace(da_ptq(folding="producer"), compensation=None)
    quantize(cogact, recipe, data=held(cogact, 2), output=tmp_path / "out")  # nothing to fold, nothing to refuse
