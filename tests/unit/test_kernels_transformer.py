"""Registration of the fused transformer's operations, and when a stack is not fused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from daptq.kernels.transformer import op
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.layers.transformer_stack import need_not_be_called
from daptq.policies.diffusion import ddim_steps, squared_cosine_alphas
from daptq.policies.dit import DiT

pytestmark = pytest.mark.skipif(op.unavailable() is not None, reason=str(op.unavailable()))

operations = torch.ops.daptq
TOKENS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net() -> DiT:
    """A small diffusion transformer of bfloat16 layers, one layer of integers."""
    made = DiT(action_dim=7, chunk_size=4, condition_size=24, hidden_size=32, depth=2, num_heads=2)
    made.initialize()
    for path, module in list(made.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = path.rpartition(".")
            setattr(made.get_submodule(parent), leaf, BFloat16Linear.from_linear(module))
    integers = torch.randint(-8, 8, (96, 32), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    block: Any = made.blocks[1]
    block.attn.qkv = QuantizedLinear.from_integers(integers, torch.full((96, 1), 0.02), backend="avx2")
    return made


def run(net: DiT, x: Tensor = TOKENS) -> Tensor | None:
    """What the fused stack gives."""
    with torch.no_grad():
        return net._stack.run(x)


OPERANDS = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
CALLS: dict[str, tuple[Any, ...]] = {
    "linear_bfloat16": (OPERANDS, torch.ones(3, 32, dtype=torch.bfloat16).t().contiguous().t(), None),
    "add_norm": (OPERANDS, OPERANDS.clone(), None, None, 1e-6, True),
    "attention": (OPERANDS, OPERANDS.clone(), OPERANDS.clone(), 2, 4, None, True),
    "gelu_tanh": (OPERANDS,),
    "swish_product": (OPERANDS, OPERANDS.clone()),
    "join_tokens": (OPERANDS, OPERANDS[:4].clone(), OPERANDS[:4].clone()),
    "ddim_step": (torch.ones(2, 2, 7), torch.ones(12, 7), 1.5, [0.5, 0.5, 0.5, 0.5]),
}


@pytest.mark.parametrize("name", CALLS)
def test_operations_are_registered_as_torch_asks(name: str) -> None:
    torch.library.opcheck(getattr(operations, name).default, CALLS[name])


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear_bfloat16", (OPERANDS, torch.ones(3, 31, dtype=torch.bfloat16), None), "32 columns"),
        ("linear_bfloat16", (OPERANDS, torch.ones(3, 32), None), "bfloat16 matrix"),
        ("add_norm", (OPERANDS, OPERANDS[:2], None, None, 1e-6, True), "shape of x"),
        ("attention", (OPERANDS, OPERANDS, OPERANDS, 4, 4, None, True), "divisible by the batch"),
        ("attention", (OPERANDS, OPERANDS, OPERANDS, 2, 4, torch.ones(2, 3, 7), True), "rotary must be"),
        ("swish_product", (OPERANDS, OPERANDS[:2]), "one shape"),
        ("join_tokens", (OPERANDS, OPERANDS[:4], OPERANDS[:6]), "samples that the tokens repeat"),
        ("ddim_step", (torch.ones(2, 2, 7), torch.ones(12, 7), 1.0, [1.0] * 4), "a row for every token"),
        ("transformer", (TOKENS, [], [], 1, 1, 1, 2, 1e-6, True, False, None), "those of 1 blocks"),
    ],
)
def test_operands_that_do_not_fit_are_refused(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        getattr(operations, name)(*arguments)


def test_a_stack_of_low_bit_layers_is_fused(net: DiT) -> None:
    expected = TOKENS
    with torch.no_grad():
        for block in net.blocks:
            expected = block(expected)
        result = net._stack.run(TOKENS)
    assert result is not None
    torch.testing.assert_close(result, expected, atol=1e-2, rtol=0)


def first_block(net: DiT) -> Any:
    """The first block."""
    return net.blocks[0]


def hook_a_layer(net: DiT) -> None:
    first_block(net).mlp.fc1.register_forward_pre_hook(lambda *_: None)


def hook_a_block(net: DiT) -> None:
    first_block(net).register_forward_hook(lambda *_: None)


def replace_a_forward(net: DiT) -> None:
    first_block(net).attn.forward = lambda x: x


def another_kernel(net: DiT) -> None:
    net.get_submodule("blocks.1.attn.qkv").use_backend("reference")  # type: ignore[operator]


def a_float_layer(net: DiT) -> None:
    first_block(net).mlp.fc2 = nn.Linear(128, 32)


def a_subclass(net: DiT) -> None:
    first_block(net).mlp.fc2.__class__ = type("Other", (BFloat16Linear,), {})


def float32_weight(net: DiT) -> None:
    layer = first_block(net).mlp.fc2
    layer.weight = nn.Parameter(layer.weight.float())


def scale_for_each_step(net: DiT) -> None:
    net.get_submodule("blocks.1.attn.qkv").activation_scale = torch.full((10,), 0.1)


@pytest.mark.parametrize(
    "change",
    [
        hook_a_layer,
        hook_a_block,
        replace_a_forward,
        another_kernel,
        a_float_layer,
        a_subclass,
        float32_weight,
        scale_for_each_step,
    ],
)
def test_layers_that_must_be_called_are_not_fused(net: DiT, change: Callable[[DiT], None]) -> None:
    assert run(net) is not None
    change(net)
    assert run(net) is None


def test_a_loop_around_float_blocks_is_not_fused(net: DiT) -> None:
    noise, condition = torch.zeros(1, 4, 7), torch.zeros(1, 1, 24)
    steps = ddim_steps(squared_cosine_alphas(100), 10)
    with torch.no_grad():
        assert net.denoise(noise, condition, 1.5, steps) is not None
        for block in net.blocks:
            block.attn.proj = nn.Linear(32, 32)  # type: ignore[union-attr]
        assert net.denoise(noise, condition, 1.5, steps) is None


def test_layers_that_wait_for_a_kernel_take_the_stacks_own(net: DiT) -> None:
    layer: Any = net.get_submodule("blocks.1.attn.qkv")
    expected = run(net)
    layer.use_backend("auto")
    chosen = [layer.backend]
    result = run(net)
    assert [*chosen, layer.backend] == [None, "avx2"]
    assert expected is not None
    assert result is not None
    assert torch.equal(result, expected)


def test_other_inputs_are_not_fused(net: DiT) -> None:
    assert run(net, TOKENS.double()) is None
    assert net._stack.run(TOKENS.clone().requires_grad_()) is None


def test_a_marked_hook_does_not_stand_in_the_way_and_hears_of_the_stack_once(net: DiT) -> None:
    heard: list[str] = []
    first_block(net).register_forward_pre_hook(need_not_be_called(lambda *_: heard.append("block")))
    first_block(net).mlp.fc1.register_forward_pre_hook(need_not_be_called(lambda *_: heard.append("layer")))
    assert run(net) is not None
    assert heard == ["block"]
