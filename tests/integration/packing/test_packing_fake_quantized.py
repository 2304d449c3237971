"""Packed actions equal the actions of an explicit fake-quantized model in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from daptq.layers.quantized_linear import QuantizedLinear
from daptq.observations import ACTION
from daptq.packing.checkpoint import replace_module
from daptq.policies.cogact_small import SmallCogACTPolicy

Quantize = Callable[..., dict[str, QuantizedLinear]]
Predict = Callable[..., Tensor]


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
def test_packed_actions_equal_fake_quantized_actions(backend: str, quantize_layers: Quantize, predict: Predict) -> None:
    policy, packed, fake = SmallCogACTPolicy.tiny(), SmallCogACTPolicy.tiny(), SmallCogACTPolicy.tiny().double()
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


def test_the_comparison_notices_one_wrong_integer(quantize_layers: Quantize) -> None:
    policy, packed = SmallCogACTPolicy.tiny(), SmallCogACTPolicy.tiny()
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
