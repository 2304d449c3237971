"""The operations of `tokens.cpp` and `transformer.cpp`: their schemas and their shape rules for tracing.

    add_norm       (x + addend, its norm): a layer norm, or a root-mean-square norm where it is not centered
    attention      softmax(q k^T / sqrt(size)) v for every head, q and k turned by `rotary` (cosines, sines)
    gelu_tanh      GELU in its tanh form
    swish_product  gate sigmoid(gate) x
    layer          a linear layer: `daptq::linear_bfloat16`, or the input's transform and `daptq::linear_w4a8_avx2`
    transformer    blocks of all these, without the norm after the last one
    join_tokens    the tokens of a diffusion transformer: the condition's, then the embedded actions
    ddim_step      one step of DDIM with classifier-free guidance
    denoise        a diffusion transformer's whole denoising loop

`layer`, `transformer` and `denoise` only call others through torch's dispatcher. All are float32 on the CPU and have no
gradient.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.kernels.compiled import load_source, vector_flags
from daptq.kernels.linear import bfloat16
from daptq.kernels.linear.backends import avx2

__all__ = ["COMPOSITE", "LAYER", "unavailable"]

SOURCES = tuple(Path(__file__).with_name(name) for name in ("tokens.cpp", "transformer.cpp"))
LAYER = "daptq::layer"
COMPOSITE = (LAYER, "daptq::transformer", "daptq::denoise")

_TAGS = (torch.Tag.pt2_compliant_tag,)

torch.library.define(
    "daptq::add_norm",
    "(Tensor x, Tensor? addend, Tensor? weight, Tensor? bias, float epsilon, bool centered) -> (Tensor, Tensor)",
    tags=_TAGS,
)
torch.library.define(
    "daptq::attention",
    "(Tensor query, Tensor key, Tensor value, int batch, int heads, Tensor? rotary, bool causal) -> Tensor",
    tags=_TAGS,
)
torch.library.define("daptq::gelu_tanh", "(Tensor x) -> Tensor", tags=_TAGS)
torch.library.define("daptq::swish_product", "(Tensor gate, Tensor x) -> Tensor", tags=_TAGS)
torch.library.define(
    LAYER,
    "(Tensor x, Tensor weight, Tensor? scale, Tensor? bias, Tensor? activation_scale, Tensor? input_scale, "
    "Tensor? rotation, int stored_bits, int activation_bits) -> Tensor",
    tags=_TAGS,
)
torch.library.define(
    "daptq::transformer",
    "(Tensor x, Tensor?[] tensors, int[] numbers, int blocks, int projections, int expansions, int heads, "
    "float epsilon, bool centered, bool causal, Tensor? rotary) -> Tensor",
    tags=_TAGS,
)
torch.library.define("daptq::join_tokens", "(Tensor actions, Tensor tokens, Tensor positions) -> Tensor", tags=_TAGS)
torch.library.define(
    "daptq::ddim_step", "(Tensor sample, Tensor predicted, float guidance, float[] schedule) -> Tensor", tags=_TAGS
)
torch.library.define(
    "daptq::denoise",
    "(Tensor noise, Tensor tokens, Tensor positions, Tensor?[] tensors, int[] numbers, int blocks, int heads, "
    "float epsilon, float guidance, float[] schedule) -> Tensor",
    tags=_TAGS,
)


@torch.library.register_fake("daptq::add_norm")  # type: ignore[untyped-decorator]
def _add_norm(
    x: Float[Tensor, "m width"],
    addend: Float[Tensor, "m width"] | None,  # noqa: ARG001  (the schema's arguments)
    weight: Float[Tensor, " width"] | None,  # noqa: ARG001
    bias: Float[Tensor, " width"] | None,  # noqa: ARG001
    epsilon: float,  # noqa: ARG001
    centered: bool,  # noqa: ARG001
) -> tuple[Float[Tensor, "m width"], Float[Tensor, "m width"]]:
    return x.new_empty(x.shape), x.new_empty(x.shape)


@torch.library.register_fake("daptq::attention")  # type: ignore[untyped-decorator]
def _attention(
    query: Float[Tensor, "m width"],
    key: Float[Tensor, "m width"],  # noqa: ARG001
    value: Float[Tensor, "m width"],  # noqa: ARG001
    batch: int,  # noqa: ARG001
    heads: int,  # noqa: ARG001
    rotary: Float[Tensor, "2 length size"] | None,  # noqa: ARG001
    causal: bool,  # noqa: ARG001
) -> Float[Tensor, "m width"]:
    return query.new_empty(query.shape)


@torch.library.register_fake("daptq::gelu_tanh")  # type: ignore[untyped-decorator]
def _gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x.new_empty(x.shape)


@torch.library.register_fake("daptq::swish_product")  # type: ignore[untyped-decorator]
def _swish_product(gate: Float[Tensor, "*shape"], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:  # noqa: ARG001
    return gate.new_empty(gate.shape)


@torch.library.register_fake("daptq::join_tokens")  # type: ignore[untyped-decorator]
def _join_tokens(
    actions: Float[Tensor, "actions width"],
    tokens: Float[Tensor, "n width"],
    positions: Float[Tensor, "length width"],
) -> Float[Tensor, "rows width"]:
    return actions.new_empty((tokens.shape[0] * positions.shape[0], actions.shape[1]))


@torch.library.register_fake("daptq::ddim_step")  # type: ignore[untyped-decorator]
def _ddim_step(
    sample: Float[Tensor, "b t action"],
    predicted: Float[Tensor, "rows action"],  # noqa: ARG001
    guidance: float,  # noqa: ARG001
    schedule: list[float],  # noqa: ARG001
) -> Float[Tensor, "b t action"]:
    return sample.new_empty(sample.shape)


def unavailable() -> str | None:
    """Why the operations cannot run here, or None; compiles them when it is asked for the first time."""
    flags = vector_flags()
    if not flags:
        return "this processor has no AVX2"
    reasons = (bfloat16.unavailable(), avx2.unavailable(), *(load_source(source, flags) for source in SOURCES))
    return next((reason for reason in reasons if reason is not None), None)
