"""The fused transformer's operations against float64, and whole stacks against the modules that they stand for."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daptq.kernels.linear import bfloat16
from daptq.kernels.transformer import op
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.layers.transformer_stack import PreNormBlock, Stack
from daptq.policies.diffusion import ddim_sample, ddim_steps, squared_cosine_alphas
from daptq.policies.dit import DiT
from daptq.rounding.nearest import round_weight

pytestmark = pytest.mark.skipif(op.unavailable() is not None, reason=str(op.unavailable()))

EPS = torch.finfo(torch.float32).eps
operations = torch.ops.daptq


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Fewer and more than a tile of 12 rows x 32 outputs, remainders, and more rows than one task takes.
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 192, 192), (2, 7, 33), (5, 33, 17), (13, 64, 48), (34, 192, 7), (131, 65, 40)]
)
@pytest.mark.parametrize("biased", [True, False])
def test_bfloat16_product_is_within_the_rounding_of_its_sums(shape: tuple[int, int, int], biased: bool) -> None:
    rows, columns, outputs = shape
    layer = BFloat16Linear(normal(outputs, columns), normal(outputs, seed=1) if biased else None)
    x = normal(rows, columns, seed=2)
    bias = None if layer.bias is None else layer.bias.double()
    expected = F.linear(x.double(), layer.weight.double(), bias)
    # k products, each added with one rounding, and the bias: (k + 1) eps times the sum of magnitudes (Higham, eq. 3.3).
    bound = F.linear(x.double().abs(), layer.weight.double().abs(), None if bias is None else bias.abs())
    assert bool(((layer(x) - expected).abs() <= (columns + 1) * EPS * bound).all())


def test_bfloat16_product_sees_one_wrong_weight() -> None:
    layer, x = BFloat16Linear(normal(20, 70), None), normal(3, 70, seed=2)
    before = layer(x)
    layer.resident_weight[19, 69] += 0.5
    changed = (layer(x) != before).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [19]


def test_a_row_has_the_same_result_alone_and_with_others() -> None:
    layer, x = BFloat16Linear(normal(70, 100), normal(70, seed=1)), normal(100, 100, seed=2)
    assert torch.equal(layer(x)[41:42], layer(x[41:42]))


@pytest.mark.parametrize("width", [5, 16, 192, 200])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("centered", [True, False])
def test_add_norm_equals_float64(width: int, affine: bool, centered: bool) -> None:
    x, addend = 3 * normal(17, width) + 1, normal(17, width, seed=1)
    weight, bias = (normal(width, seed=2), normal(width, seed=3)) if affine else (None, None)
    bias = bias if centered else None
    total, result = operations.add_norm(x, addend, weight, bias, 1e-6, centered)
    assert torch.equal(total, x + addend)
    values = total.double()
    deviation = values - values.mean(dim=1, keepdim=True) if centered else values
    expected = deviation / (deviation.square().mean(dim=1, keepdim=True) + 1e-6).sqrt()
    expected = expected if weight is None else expected * weight
    expected = expected if bias is None else expected + bias
    # A handful of roundings of numbers of at most ten.
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)
    alone, _ = operations.add_norm(x, None, weight, bias, 1e-6, centered)
    assert torch.equal(alone, x)


def test_activation_functions_equal_float64() -> None:
    x = torch.cat([torch.linspace(-200, 200, 4001), torch.linspace(-3, 3, 4001), torch.zeros(1)])
    other = normal(len(x))
    gelu = F.gelu(x.double(), approximate="tanh")
    # The exponential is good to two units in the last place, and its argument of up to 90 to half a unit.
    torch.testing.assert_close(operations.gelu_tanh(x).double(), gelu, atol=1e-6, rtol=2e-6)
    swish = F.silu(x.double()) * other.double()
    torch.testing.assert_close(operations.swish_product(x, other).double(), swish, atol=1e-6, rtol=2e-5)


@pytest.mark.parametrize("length", [1, 3, 16, 17, 40])
@pytest.mark.parametrize(("heads", "size"), [(1, 4), (2, 16), (4, 48), (3, 20)])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("turned", [True, False])
def test_attention_equals_float64(length: int, heads: int, size: int, causal: bool, turned: bool) -> None:
    batch, width = 2, heads * size
    joined = normal(batch * length, 3 * width)
    query, key, value = joined.split(width, dim=1)
    angles = normal(length, size // 2, seed=1).repeat(1, 2)
    rotary = torch.stack([angles.cos(), angles.sin()]) if turned else None
    result = operations.attention(query, key, value, batch, heads, rotary, causal)

    def split(rows: Tensor) -> Tensor:
        return rows.view(batch, length, heads, size).transpose(1, 2).double()

    def turn(rows: Tensor) -> Tensor:
        halves = torch.cat([-rows[..., size // 2 :], rows[..., : size // 2]], dim=-1)
        return rows * angles.double().cos() + halves * angles.double().sin() if turned else rows

    scores = turn(split(query)) @ turn(split(key)).transpose(2, 3) / size**0.5
    if causal:
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -torch.inf)
    expected = (scores.softmax(dim=-1) @ split(value)).transpose(1, 2).reshape(batch * length, width)
    # Scores of up to ten with an error of some ten units in the last place, weights times values of up to five.
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_ddim_step_and_tokens_equal_float64(guidance: float) -> None:
    halves = 1 if guidance == 1.0 else 2
    sample, predicted = normal(3, 4, 7), normal(halves * 3 * 5, 7, seed=1)
    factors = ddim_steps(squared_cosine_alphas(100), 10)[3].factors
    noise = predicted.double().view(halves, 3, 5, 7)[:, :, 1:]
    epsilon = noise[-1] + guidance * (noise[0] - noise[-1])
    clean = (sample.double() - factors[0] * epsilon) / factors[1]
    expected = factors[2] * clean + factors[3] * epsilon
    result = operations.ddim_step(sample, predicted, guidance, list(factors))
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=1e-5)

    actions, tokens, positions = normal(3 * 4, 6), normal(halves * 3, 6, seed=1), normal(5, 6, seed=2)
    repeated = actions.view(3, 4, 6).repeat(halves, 1, 1)
    joined = torch.cat([tokens.unsqueeze(1), repeated], dim=1) + positions
    assert torch.equal(operations.join_tokens(actions, tokens, positions).view(-1, 5, 6), joined)


def quantized(linear: nn.Linear) -> QuantizedLinear:
    """The layer with weights of eight bits, on daptq's own kernel."""
    rounded = round_weight(linear.weight.detach(), 8)
    return QuantizedLinear.from_integers(rounded.integers, rounded.scale, linear.bias, num_bits=8, backend="avx2")


class Block(nn.Module):
    """A block as language models have it: root-mean-square norms, rotary embedding, SwiGLU, no biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.RMSNorm(width, eps=1e-6) for _ in range(2)])
        self.layers = nn.ModuleList(
            [nn.Linear(width, width, bias=False) for _ in range(4)]
            + [nn.Linear(width, 2 * width, bias=False) for _ in range(2)]
            + [nn.Linear(2 * width, width, bias=False)]
        )
        for index, layer in enumerate(self.layers):
            self.layers[index] = BFloat16Linear.from_linear(layer) if index % 2 else quantized(layer)  # type: ignore[arg-type]

    def parts(self) -> PreNormBlock:
        """The block as the stack takes it."""
        query, key, value, output, gate, up, down = self.layers
        return PreNormBlock(
            norms=(self.norms[0], self.norms[1]),
            projections=(query, key, value),
            output=output,
            expansions=(gate, up),
            contraction=down,
            parents=(self,),
        )

    def forward(self, x: Tensor, rotary: Tensor) -> Tensor:
        query, key, value, output, gate, up, down = self.layers
        read = self.norms[0](x)
        split = [layer(read).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (query, key, value)]
        half = split[0].shape[-1] // 2
        turned = [t * rotary[0] + torch.cat([-t[..., half:], t[..., :half]], dim=-1) * rotary[1] for t in split[:2]]
        attended = F.scaled_dot_product_attention(turned[0], turned[1], split[2], is_causal=True)
        x = x + output(attended.transpose(1, 2).flatten(2))
        read = self.norms[1](x)
        return x + down(F.silu(gate(read)) * up(read))


def test_a_stack_of_language_blocks_equals_its_modules() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blocks = [Block(32, 2) for _ in range(3)]
    x = normal(2, 11, 32)
    angles = normal(11, 8, seed=1).repeat(1, 2)
    rotary = torch.stack([angles.cos(), angles.sin()])
    stack = Stack(
        blocks=lambda: [block.parts() for block in blocks], heads=2, epsilon=1e-6, centered=False, causal=True
    )
    with torch.no_grad():
        expected = x
        for block in blocks:
            expected = block(expected, rotary)
        fused = stack.run(x, rotary)
    assert fused is not None
    # Norms and activations differ by rounding, which may move an activation to the next of 255 integers.
    torch.testing.assert_close(fused, expected, atol=0.02, rtol=0)
    assert float((fused - expected).norm() / expected.norm()) < 2e-3


@pytest.mark.parametrize("guidance", [1.0, 1.5])
def test_the_whole_denoising_loop_equals_its_modules(guidance: float) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = DiT(action_dim=7, chunk_size=8, condition_size=24, hidden_size=32, depth=2, num_heads=2)
        net.initialize()
        nn.init.normal_(net.final_layer.linear.weight, std=0.2)
    for path, module in list(net.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = path.rpartition(".")
            low_bit = BFloat16Linear.from_linear(module) if leaf == "proj" else quantized(module)
            setattr(net.get_submodule(parent), leaf, low_bit)
    noise, condition = normal(3, 8, 7), normal(3, 1, 24, seed=1)
    steps = ddim_steps(squared_cosine_alphas(100), 10)

    def predict(sample: Tensor, timestep: int, _: int) -> Tensor:
        timesteps = torch.full((3,), timestep)
        if guidance == 1.0:
            return net(sample, timesteps, condition)
        return net.guided(sample, timesteps, condition, guidance)

    with torch.no_grad():
        with patch.object(Stack, "run", lambda *_: None):
            expected = ddim_sample(predict, noise, steps)
        fused = net.denoise(noise, condition, guidance, steps)
    assert fused is not None
    assert float((fused - expected).norm() / expected.norm()) < 5e-3


def test_the_kernels_of_kept_layers_are_there() -> None:
    assert bfloat16.unavailable() is None
