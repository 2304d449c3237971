"""What quantized inputs do to a value, against central differences of a tiny network in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from daptq.calibration.input_errors import observe_input_errors
from daptq.sensitivity.rounding import RoundingSensitivity

SEED = 5
STEP = 1e-6


class Twice(nn.Module):
    """Calls its inner layer twice, so that the errors of both calls have to be added."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(4, 4), nn.Linear(4, 3)
        self.to(torch.float64)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(x))
        value: Tensor = self.out(torch.tanh(self.inner(hidden)))
        return value.square().sum()


def quantized(name: str, x: Tensor) -> Tensor:
    """A coarse grid, another one for each layer."""
    step = {"inner": 0.25, "out": 0.125}[name]
    return (x / step).round() * step


def moved(network: Twice, x: Tensor, layer: str, low: Tensor, amount: float) -> float:
    """The value with `amount` times the errors that the layer makes with weight `low`, made at the float inputs."""
    module = getattr(network, layer)

    def disturb(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.no_grad():
            exact = float_inputs.pop(0)
            change = quantized(layer, exact) @ low.mT - exact @ module.weight.mT
            return output + amount * change

    float_inputs: list[Tensor] = []
    watch = module.register_forward_pre_hook(lambda _, inputs: float_inputs.append(inputs[0].detach()))
    with torch.no_grad():
        network(x)
    watch.remove()
    handle = module.register_forward_hook(disturb)
    with torch.no_grad():
        value = float(network(x))
    handle.remove()
    return value


@pytest.mark.parametrize("layer", ["inner", "out"])
def test_cost_with_quantized_inputs_is_the_derivative_along_all_errors_of_the_layer(layer: str) -> None:
    network = Twice()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    weights = {name: getattr(network, name).weight for name in ("inner", "out")}
    low = {
        name: weight.detach() + 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in weights.items()
    }
    with observe_input_errors(network, tuple(weights), quantized) as errors:
        both = RoundingSensitivity(weights, lambda name, _: low[name], (4,), errors.take)
        both.update(network(x))
    expected = abs(moved(network, x, layer, low[layer], STEP) - moved(network, x, layer, low[layer], -STEP))
    # Truncation of central differences 1e-12, cancellation 1e-10 relative to values near 100.
    assert both.first_order()[layer][4] == pytest.approx(expected / (2 * STEP), rel=1e-6)
    alone = RoundingSensitivity(weights, lambda name, _: low[name], (4,))
    alone.update(network(x))
    assert abs(alone.first_order()[layer][4] - both.first_order()[layer][4]) > 1e-2


def test_nothing_is_kept_and_no_hook_stays() -> None:
    network = Twice()
    x = torch.ones(2, 4, dtype=torch.float64)
    with observe_input_errors(network, ("inner",), quantized) as errors:
        network(x).backward()
        first = errors.take("inner")
        assert first is not None
        assert first.shape == (4, 4)
        assert errors.take("inner") is None
        with torch.no_grad():
            network(x)
    network(x).backward()
    assert errors.take("inner") is None
