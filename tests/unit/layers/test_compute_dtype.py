"""Low-bit layers answer the dtype of the activations for their weight, so that code that asks does not change it."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from daptq.errors import InvalidInputError
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import load_policy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.recipes import quantize, round_to_nearest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def kept(dtype: torch.dtype = torch.float32) -> BFloat16Linear:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(10, 24, generator=generator), torch.randn(10, generator=generator)
    return BFloat16Linear(weight, bias, compute_dtype=dtype)


def quantized(dtype: torch.dtype = torch.float32) -> QuantizedLinear:
    integers = torch.randint(-7, 8, (10, 24), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    layer = QuantizedLinear.from_integers(integers, torch.full((10, 1), 0.1))
    layer.compute_dtype = dtype
    return layer


class Caster(nn.Module):
    """Casts its input to the dtype of the next layer's weight, as published models do."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        assert isinstance(weight, Tensor)
        return self.layer(x.to(weight.dtype))


layers = pytest.mark.parametrize("make", [kept, quantized])


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_keep_their_dtype(
    make: Callable[[torch.dtype], BFloat16Linear | QuantizedLinear], dtype: torch.dtype
) -> None:
    layer = make(dtype)
    x = torch.randn(3, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    product = Caster(layer)(x)
    assert product.dtype == dtype
    assert torch.equal(product, layer(x))
    assert (tuple(layer.weight.shape), layer.weight.device) == ((10, 24), torch.device("cpu"))


def test_the_kept_weight_reads_as_its_values_and_is_held_once() -> None:
    layer = kept()
    resident = layer.resident_weight
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, resident.float())
    assert torch.equal(layer.weight.double() @ torch.ones(24).double(), resident.double() @ torch.ones(24).double())
    assert kept(torch.bfloat16).weight.dtype == torch.bfloat16
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert layer.state_dict()["weight"].dtype == torch.bfloat16
    assert {name: p.dtype for name, p in layer.named_parameters()} == dict.fromkeys(("weight", "bias"), torch.bfloat16)


def test_writing_to_what_is_only_an_answer_is_refused() -> None:
    layer = kept()
    for write in (lambda: layer.weight.zero_(), lambda: layer.weight.__setitem__((0, 0), 1.0)):
        with pytest.raises(InvalidInputError, match="weight of a low-bit layer must not be written to"):
            write()
    other = kept()
    other.weight = nn.Parameter(torch.ones(10, 24, dtype=torch.bfloat16), requires_grad=False)  # type: ignore[misc]
    assert bool((other.resident_weight == 1).all())


@layers
def test_casts_copies_and_state_dicts(make: Callable[[], BFloat16Linear | QuantizedLinear]) -> None:
    x = torch.randn(3, 24)
    layer = make()
    expected = layer(x)
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x), expected)
    twin.load_state_dict(layer.state_dict(), assign=True)
    assert torch.equal(twin(x), expected)
    model = nn.Sequential(nn.Linear(24, 24), Caster(twin))
    for dtype in (torch.bfloat16, torch.float32):
        model.to(dtype)
        assert twin.weight.dtype == model[0].weight.dtype == dtype
        assert model(x.to(dtype)).dtype == dtype
    assert twin.to("cpu").compute_dtype == torch.float32


@layers
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_function_that_asks(
    make: Callable[[torch.dtype], BFloat16Linear | QuantizedLinear], dtype: torch.dtype
) -> None:
    layer, x = make(dtype), torch.randn(3, 24)

    def cast(x: Tensor) -> Tensor:
        return 2 * x.to(layer.weight.dtype)

    compiled = torch.compile(cast, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), cast(x))
    assert compiled(x).dtype == dtype


class HalfPolicy(SmallCogACTPolicy):
    compute_dtype = torch.bfloat16


@pytest.mark.parametrize("family", [SmallCogACTPolicy, HalfPolicy])
def test_a_loaded_checkpoint_answers_the_policys_dtype(
    family: type[SmallCogACTPolicy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = quantize(SmallCogACTPolicy.tiny(), round_to_nearest(), output=tmp_path / "out")
    monkeypatch.setattr(SmallCogACTPolicy, "compute_dtype", family.compute_dtype)
    policy = load_policy(folder)
    kinds = set()
    for path in policy.linear_layers():
        layer = policy.get_submodule(path)
        assert isinstance(layer, BFloat16Linear | QuantizedLinear)
        assert layer.weight.dtype == family.compute_dtype
        kinds.add(type(layer))
    assert kinds == {BFloat16Linear, QuantizedLinear}
