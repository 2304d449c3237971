"""Registration of the fused transformer's operations, and when a stack is not fused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from daptq.errors import InvalidInputError
from daptq.kernels.transformer import op
from daptq.kernels.transformer.packing import (
    BFLOAT16_LAYER,
    LayerNumbers,
    LayerTensors,
    PackedLayer,
    PackedNorm,
    flat,
)
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.layers.watching import (
    replace_inputs,
    replace_outputs,
    skippable,
    unfused,
    watch,
    watch_beginnings,
    watch_outputs,
)
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
    layer.weight = nn.Parameter(layer.resident_weight.float())


def scale_for_each_step(net: DiT) -> None:
    net.get_submodule("blocks.1.attn.qkv").activation_scale = torch.full((10,), 0.1)


@pytest.mark.parametrize(
    "change",
    [
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


def test_operands_of_a_layer_are_named_and_ordered_as_its_operation_takes_them() -> None:
    arguments = [argument.name for argument in operations.layer.default._schema.arguments]
    assert arguments == ["x", *LayerTensors._fields, *LayerNumbers._fields]
    assert not set(PackedLayer._fields) ^ {"tensors", "numbers"}


def test_norms_and_layers_become_flat_lists_in_order() -> None:
    a, b, c = (torch.full((2,), float(value)) for value in range(3))
    numbers = LayerNumbers(stored_bits=4, activation_bits=8)
    tensors, flat_numbers = flat(
        [
            PackedNorm(weight=a, bias=None),
            PackedLayer(LayerTensors(weight=b, rotation=c), numbers),
            PackedLayer(LayerTensors(weight=c, scale=a), BFLOAT16_LAYER),
        ]
    )
    assert [None if t is None else int(t[0]) for t in tensors] == [
        *(0, None),
        *(1, None, None, None, None, 2),
        *(2, 0, None, None, None, None),
    ]
    assert flat_numbers == [4, 8, 16, 0]


LAYER = "blocks.0.mlp.fc1"


def test_the_switch_lets_modules_be_called_as_long_as_it_lasts(net: DiT) -> None:
    with unfused(net):
        assert run(net) is None
        with unfused(net):
            assert run(net) is None
        assert run(net) is None
    assert run(net) is not None


def test_the_switch_ends_with_an_error(net: DiT) -> None:
    with pytest.raises(ZeroDivisionError), unfused(net):
        raise ZeroDivisionError
    assert run(net) is not None


def test_the_switch_concerns_one_policy_in_all_threads(net: DiT) -> None:
    other = copy.deepcopy(net)
    other._stack = dataclasses.replace(other._stack, blocks=other._parts)
    with unfused(net), ThreadPoolExecutor(1) as pool:
        assert pool.submit(run, net).result() is None
        assert pool.submit(run, other).result() is not None


def test_switches_of_many_threads_all_end(net: DiT) -> None:
    def switch(_: int) -> None:
        for _ in range(200):
            with unfused(net):
                pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(switch, range(4)))
    assert run(net) is not None


@pytest.mark.parametrize("name", [LAYER, "blocks.0", "blocks.1.attn", "blocks.1.norm2"])
@pytest.mark.parametrize("watching", [watch, watch_outputs])
def test_whoever_watches_a_module_hears_of_its_calls(net: DiT, name: str, watching: Any) -> None:
    heard: list[str] = []
    with watching(net, [name], lambda path, *_: heard.append(path)), torch.no_grad():
        net(torch.zeros(2, 4, 7), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 24))
    assert heard == [name]
    assert run(net) is not None
    assert heard == [name]


def test_watching_a_module_outside_the_stack_leaves_it_fused(net: DiT) -> None:
    with watch(net, ["final_layer.linear"], lambda *_: None):
        assert run(net) is not None


def test_watching_gives_input_and_output_and_ends_with_an_error(net: DiT) -> None:
    seen: list[Tensor] = []
    layer = net.final_layer.linear

    def fail() -> None:
        with (
            torch.no_grad(),
            watch(net, ["final_layer.linear"], lambda _, x: seen.append(x)),
            watch_outputs(net, ["final_layer.linear"], lambda _, x, y: seen.extend([x, y])),
        ):
            layer(TOKENS)
            layer(x=TOKENS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [tensor is TOKENS for tensor in seen] == [True, True, False] * 2
    assert torch.equal(seen[-1], seen[2])
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


@pytest.mark.parametrize("name", [LAYER, "blocks.0", "blocks.1.attn"])
@pytest.mark.parametrize("replacing", [replace_inputs, replace_outputs])
def test_whoever_replaces_inputs_or_outputs_is_asked_within_the_block(net: DiT, name: str, replacing: Any) -> None:
    def answer() -> Tensor:
        with torch.no_grad():
            return net(torch.zeros(2, 4, 7), torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1, 24))

    heard: list[str] = []

    def same(path: str, tensor: Tensor) -> Tensor:
        heard.append(path)
        return tensor

    with unfused(net):
        before = answer()
        with replacing(net, [name], same):
            assert torch.equal(answer(), before)
    with replacing(net, [name], same):
        answer()
    assert heard == [name, name]
    assert run(net) is not None
    assert heard == [name, name]


def test_the_first_argument_is_replaced_however_it_is_given(net: DiT) -> None:
    layer = net.final_layer.linear
    with torch.no_grad():
        expected = layer(2 * TOKENS)
        with replace_inputs(net, ["final_layer.linear"], lambda _, x: 2 * x):
            assert torch.equal(layer(TOKENS), expected)
            assert torch.equal(layer(x=TOKENS), expected)
        with replace_outputs(net, ["final_layer.linear"], lambda _, y: -y):
            assert torch.equal(layer(x=2 * TOKENS), -expected)
    assert not layer._forward_pre_hooks
    assert not layer._forward_hooks


def test_the_beginning_of_a_fused_stack_is_heard_once_and_in_order(net: DiT) -> None:
    heard: list[str] = []
    with watch_beginnings(net, ["blocks.1", "blocks.0", LAYER], heard.append):
        assert run(net) is not None
        assert heard == ["blocks.0", "blocks.1"]
        heard.clear()
        with torch.no_grad():
            net.blocks[0](TOKENS)
        assert heard == ["blocks.0", LAYER]
    heard.clear()
    assert run(net) is not None
    assert heard == []


def hook_before(module: nn.Module) -> RemovableHandle:
    return module.register_forward_pre_hook(lambda *_: None)


def hook_after(module: nn.Module) -> RemovableHandle:
    return module.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("name", [LAYER, "blocks.0", "blocks.1.norm1"])
@pytest.mark.parametrize("hook", [hook_before, hook_after])
def test_a_hook_that_fusing_would_skip_is_refused(
    net: DiT, name: str, hook: Callable[[nn.Module], RemovableHandle]
) -> None:
    handle = hook(net.get_submodule(name))
    with pytest.raises(InvalidInputError, match="must have no hooks, got one on a"):
        run(net)
    with unfused(net):
        assert run(net) is None
    with skippable([handle]):
        assert run(net) is not None
    with pytest.raises(InvalidInputError, match="must have no hooks"):
        run(net)
    handle.remove()
    assert run(net) is not None


def test_a_hook_beside_a_skippable_one_is_refused(net: DiT) -> None:
    module = net.get_submodule(LAYER)
    with watch_beginnings(net, [LAYER], lambda _: None):
        assert run(net) is not None
        hook_before(module)
        with pytest.raises(InvalidInputError, match="must have no hooks"):
            run(net)
