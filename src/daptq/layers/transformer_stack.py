"""`Stack`: the blocks of a transformer as one operation, as long as every layer inside is a low-bit or bfloat16 one.

Fused, a stack costs one call from Python, and its layers run inside of ``daptq::transformer`` instead of being called
as modules. It is not fused where somebody has declared that a module in it must be called (`daptq.layers.watching`).
Neither is one with a float layer, a layer that chose another kernel than daptq's own (one that has not chosen takes
it), a replaced forward, inputs with a gradient, or inputs that are not float32 on the CPU. Called as modules, the same
layers give the same products of the same integers; norms, attention and activation functions are then torch's and
differ in their last bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from daptq.kernels.linear.backends import avx2
from daptq.kernels.linear.backends.avx2 import Avx2Linear
from daptq.kernels.transformer.op import unavailable
from daptq.kernels.transformer.packing import BFLOAT16_LAYER, LayerNumbers, LayerTensors, PackedLayer, PackedNorm, flat
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.layers.watching import announce, must_be_called, refuse_hooks

__all__ = ["DiffusionEnds", "PreNormBlock", "Stack"]

_KERNEL = "avx2"
_LAYERS = (QuantizedLinear, BFloat16Linear, nn.Linear)


@dataclass(frozen=True, kw_only=True)
class PreNormBlock:
    """One block, x + output(attention(norm(x))) and then x + contraction(activation(norm(x))), by its modules.

    Attributes:
        norms: The norm before the attention and the one before the perceptron.
        projections: One layer that gives query, key and value side by side, or one for each of them.
        output: The layer after the attention.
        expansions: One layer followed by a tanh-approximated GELU, or a gate and the layer that it gates (SwiGLU).
        contraction: The perceptron's last layer.
        parents: Modules between the block and its layers, the block included; their forward is what is fused.
    """

    norms: tuple[nn.Module, nn.Module]
    projections: tuple[nn.Module, ...]
    output: nn.Module
    expansions: tuple[nn.Module, ...]
    contraction: nn.Module
    parents: tuple[nn.Module, ...]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Pre-norm blocks that run one after the other.

    Attributes:
        blocks: Gives the blocks as they are at the moment: layers may be replaced.
        heads: Heads of the attention.
        epsilon: Of the norms.
        centered: Whether the norms are layer norms; root-mean-square norms otherwise.
        causal: Whether a token sees only itself and those before it.
    """

    blocks: Callable[[], Iterable[PreNormBlock]]
    heads: int
    epsilon: float
    centered: bool = True
    causal: bool = False

    def run(
        self, x: Float[Tensor, "b t width"], rotary: Float[Tensor, "2 t size"] | None = None
    ) -> Float[Tensor, "b t width"] | None:
        """What the last block gives, or None where the blocks must be called as modules.

        Args:
            x: Tokens.
            rotary: Cosines and sines that turn queries and keys; None for none.
        """
        blocks = self._low_bit_blocks()
        parents = _parents(blocks)
        parts = _parts(x, parents, _of_blocks(blocks)) if blocks else None
        if parts is None:
            return None
        announce(parents)
        first = blocks[0]
        sizes = (len(blocks), len(first.projections), len(first.expansions), self.heads)
        return torch.ops.daptq.transformer.default(x, *parts, *sizes, self.epsilon, self.centered, self.causal, rotary)

    def denoise(
        self,
        noise: Float[Tensor, "b t action"],
        ends: DiffusionEnds,
        *,
        guidance: float,
        schedule: Sequence[float],
    ) -> Float[Tensor, "b t action"] | None:
        """The sample that the whole denoising loop ends with, or None where its layers must be called as modules.

        Args:
            noise: Where it starts.
            ends: What comes before and after the blocks.
            guidance: Scale of classifier-free guidance, 1 for none.
            schedule: For each step the factors of noise and sample in the present sample, then those of sample and
                noise in the next one.
        """
        blocks = self._low_bit_blocks()
        parents = [*ends.parents, *_parents(blocks)]
        modules = (ends.embedder, *_of_blocks(blocks), ends.norm, ends.last)
        parts = _parts(noise, parents, modules) if blocks else None
        if parts is None or any(_follows_steps(layer) for layer in ends.tokenizers):
            return None
        announce(parents)
        return torch.ops.daptq.denoise.default(
            noise,
            ends.tokens(),
            ends.positions,
            *parts,
            len(blocks),
            self.heads,
            self.epsilon,
            guidance,
            list(schedule),
        )

    def _low_bit_blocks(self) -> list[PreNormBlock]:
        """The blocks; none where the first layer is in full precision, without looking at the others."""
        blocks = iter(self.blocks())
        first = next(blocks)
        return [first, *blocks] if isinstance(first.output, QuantizedLinear | BFloat16Linear) else []


@dataclass(frozen=True, kw_only=True)
class DiffusionEnds:
    """What comes before and after the blocks of a diffusion transformer.

    Attributes:
        embedder: The layer that reads noisy actions.
        norm: The norm after the blocks.
        last: The layer that gives the predicted noise.
        parents: Modules around these and around the blocks; their forward is what is fused.
        positions: float32 (t + 1, width), added to the tokens.
        tokens: Gives the tokens of the condition, float32 (steps, n, width): n is b, or 2 b with guidance, whose
            unconditioned half comes last.
        tokenizers: Modules whose layers `tokens` calls: all at once for all steps, so none may follow the steps.
    """

    embedder: nn.Module
    norm: nn.Module
    last: nn.Module
    parents: tuple[nn.Module, ...]
    positions: Float[Tensor, "tokens width"]
    tokens: Callable[[], Float[Tensor, "steps n width"]]
    tokenizers: tuple[nn.Module, ...]


def _parents(blocks: Iterable[PreNormBlock]) -> list[nn.Module]:
    """The modules around the blocks' layers."""
    return [parent for block in blocks for parent in block.parents]


def _of_blocks(blocks: Iterable[PreNormBlock]) -> list[nn.Module]:
    """The blocks' norms and layers in the order in which they run."""
    ordered: list[nn.Module] = []
    for block in blocks:
        ordered += (block.norms[0], *block.projections, block.output)
        ordered += (block.norms[1], *block.expansions, block.contraction)
    return ordered


def _parts(
    x: Tensor, parents: Sequence[nn.Module], modules: Sequence[nn.Module]
) -> tuple[list[Tensor | None], list[int]] | None:
    """Tensors and numbers of norms and layers in the order in which they run; None where one must be called.

    Raises:
        InvalidInputError: A module has a hook that fusing would skip.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or (x.requires_grad and torch.is_grad_enabled()):
        return None
    everything = (*parents, *modules)
    if unavailable() is not None or must_be_called(everything):
        return None
    if any("forward" in vars(module) for module in everything):
        return None
    _take_kernels(modules)
    packed: list[PackedNorm | PackedLayer] = []
    for module in modules:
        part = _of_layer(module) if isinstance(module, _LAYERS) else _of_norm(module)
        if part is None:
            return None
        packed.append(part)
    refuse_hooks(everything)
    return flat(packed)


def _of_layer(layer: nn.Module) -> PackedLayer | None:
    """A layer as ``daptq::layer`` takes it; None if it does not."""
    if type(layer) is BFloat16Linear and layer.resident_weight.dtype == torch.bfloat16:
        return PackedLayer(LayerTensors(weight=layer.resident_weight, bias=layer.bias), BFLOAT16_LAYER)
    if type(layer) is QuantizedLinear and isinstance(layer.prepared, Avx2Linear) and not _follows_steps(layer):
        prepared, buffers = layer.prepared, layer._buffers
        tensors = LayerTensors(
            weight=prepared.tiles,
            scale=buffers["weight_scale"],
            bias=buffers["bias"],
            activation_scale=buffers["activation_scale"],
            input_scale=buffers["input_scale"],
            rotation=buffers["_hadamard"],
        )
        numbers = LayerNumbers(stored_bits=prepared.stored_bits, activation_bits=layer.activation_bits)
        return PackedLayer(tensors, numbers)
    return None


def _take_kernels(modules: Iterable[nn.Module]) -> None:
    """Lets layers that have not chosen a kernel take daptq's own, if every one of them can.

    Whether a stack is fused decides about the last bits of its result: it must not depend on times that were measured.
    """
    waiting = [module for module in modules if type(module) is QuantizedLinear and module.prepared is None]
    if not all(avx2.unsupported(layer.packed_weight(), layer.activation_bits) is None for layer in waiting):
        return
    for layer in waiting:
        layer.use_backend(_KERNEL)


def _of_norm(norm: nn.Module) -> PackedNorm | None:
    """Weight and bias of a norm, of which some have none; None if it cannot be fused."""
    weight, bias = norm.weight, getattr(norm, "bias", None)
    fits = weight is None or (isinstance(weight, Tensor) and weight.dtype == torch.float32 and weight.dim() == 1)
    return PackedNorm(weight=weight, bias=bias) if fits else None  # type: ignore[arg-type]


def _follows_steps(module: nn.Module) -> bool:
    """Whether the module or a layer in it has one activation scale for each denoising step."""
    layers = (layer for layer in module.modules() if isinstance(layer, QuantizedLinear))
    return any(layer.activation_scale is not None and len(layer.activation_scale) > 1 for layer in layers)
