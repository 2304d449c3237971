"""`QuantizedLinear`: a linear layer of packed integers that quantizes its activations on the fly, or leaves them.

The layer keeps its weight in one form: packed until it is first called, afterwards as its backend multiplies it. It has
no gradient: take gradients of the full-precision policy. How integers, scales and transforms were chosen, it does not
know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor, nn
from typing_extensions import Self

from daptq.errors import InvalidInputError
from daptq.kernels.linear.arithmetic import FLOAT_ACTIVATIONS, check_activations
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear
from daptq.kernels.linear.transform import check_transform, transform
from daptq.layers.picker import AUTO, choose, prepare
from daptq.layers.stand_in import StandIn
from daptq.numerics.quantized_matrix import QuantizedMatrix
from daptq.numerics.rotation import hadamard, rotate

__all__ = ["QuantizedLinear", "Step"]

# Buffers in float32 that a cast leaves alone.
_FLOATS = ("weight_scale", "bias", "activation_scale", "input_scale", "_hadamard")


class Step(Protocol):
    """Where the policy is in its denoising loop.

    Attributes:
        index: 0 in the first iteration.
    """

    index: int


class QuantizedLinear(nn.Module):
    """y = t(x) W^T + b with W = weight_scale * (integers - zero points), see ``daptq::linear_w4a8`` and ``_w4a16``.

    t(x) is quantized per token, unless activations have 16 bits: then it is multiplied in floating point.
    Before that, the input is multiplied by `input_scale` and rotated in blocks, t(x) = R diag(input_scale) x; the
    weight holds the inverse. By default neither happens.

    The state dict holds ``weight_packed``, ``weight_scale``, ``weight_shape``, and where they are given
    ``weight_zero_point``, ``bias``, ``activation_scale`` and ``input_scale``.

    Args:
        weight: The packed integers and zero points.
        scale: float32 (out, groups), positive.
        bias: (out,), or None.
        activation_bits: Bits of an activation, 4 or 8, or 16 for floating point.
        activation_scale: (1,): static scale of the transformed input; (steps,): one for each denoising step, see
            `follow`; None: one scale per token, dynamic. Values past the end of a static grid are clipped.
        input_scale: (in,), positive factor of each input channel, or None.
        rotation_block: Channels of a block of the rotation, a power of two, or 0 for none.
        compute_dtype: Dtype that `weight` answers, that of the policy's activations; the result of a product has the
            dtype of its input, whatever that is. A cast of the module casts it, too.
        backend: Name of a kernel, or ``"auto"`` for the fastest at the shape of the first call.

    Attributes:
        in_features: Input channels.
        out_features: Output channels.
        num_bits: Bits of a weight.
        group_size: Inputs that share a scale, 0 for one scale per output channel.
        activation_bits: Bits of an activation, 16 for floating point.
        rotation_block: Channels of a block of the rotation, 0 for none.
        weight_scale: float32 (out, groups). Scales and bias stay float32 when the module is cast.
        weight_shape: int64 (2,), (out_features, in_features).
        bias: float32 (out,), or None.
        activation_scale: float32 (1,) or (steps,), or None.
        input_scale: float32 (in,), or None.
    """

    weight_scale: Float[Tensor, "out groups"]
    weight_shape: Tensor
    bias: Float[Tensor, " out"] | None
    activation_scale: Float[Tensor, " steps"] | None
    input_scale: Float[Tensor, " in"] | None
    _hadamard: Float[Tensor, "block block"] | None
    _packed: UInt8[Tensor, "out bytes"] | None
    _zero_point: UInt8[Tensor, "out zero_bytes"] | None

    def __init__(
        self,
        weight: PackedWeight,
        scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None = None,
        *,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, " steps"] | None = None,
        input_scale: Float[Tensor, " in"] | None = None,
        rotation_block: int = 0,
        compute_dtype: torch.dtype = torch.float32,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        self.compute_dtype = compute_dtype
        self.in_features = weight.in_features
        self.out_features = weight.out_features
        self.num_bits = weight.num_bits
        self.group_size = weight.group_size
        self.activation_bits = activation_bits
        self.rotation_block = rotation_block
        if tuple(scale.shape) != (self.out_features, weight.groups):
            raise InvalidInputError(
                f"weight_scale must have shape ({self.out_features}, {weight.groups}), got {tuple(scale.shape)}. "
                "Give one scale for each group of each output channel."
            )
        if bias is not None and tuple(bias.shape) != (self.out_features,):
            raise InvalidInputError(
                f"bias must have shape ({self.out_features},), got {tuple(bias.shape)}. Give one per output channel."
            )
        check_activations(activation_bits, activation_scale)
        check_transform(input_scale, rotation_block, self.in_features)
        self.register_buffer("_packed", weight.packed, persistent=False)
        self.register_buffer("_zero_point", weight.zero_point, persistent=False)
        self._asymmetric = weight.zero_point is not None
        self.register_buffer("weight_scale", _float32(scale))
        self.register_buffer("weight_shape", torch.tensor([self.out_features, self.in_features], dtype=torch.int64))
        self.register_buffer("bias", _float32(bias))
        self.register_buffer("activation_scale", _float32(activation_scale))
        self.register_buffer("input_scale", _float32(input_scale))
        rotation = hadamard(rotation_block).to(scale.device) if rotation_block else None
        self.register_buffer("_hadamard", rotation, persistent=False)
        self._transforms = input_scale is not None or rotation is not None
        self._step: Step | None = None
        self._prepared: PreparedLinear | None = None
        self._backend: str | None = None
        self.register_state_dict_post_hook(_add_packed)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_packed)  # type: ignore[no-untyped-call]
        self.use_backend(backend)

    @classmethod
    def from_integers(
        cls,
        integers: Int8[Tensor, "out in"],
        scale: Float[Tensor, "out groups"],
        bias: Float[Tensor, " out"] | None = None,
        *,
        num_bits: int = 4,
        group_size: int = 0,
        zero_point: Int8[Tensor, "out groups"] | None = None,
        activation_bits: int = 8,
        activation_scale: Float[Tensor, " steps"] | None = None,
        input_scale: Float[Tensor, " in"] | None = None,
        rotation_block: int = 0,
        backend: str = AUTO,
    ) -> Self:
        """Packs integers into a layer.

        Args:
            integers: int8 (out, in) on the grid of `num_bits`.
            scale: (out, groups), positive.
            bias: (out,), or None.
            num_bits: 2, 3, 4 or 8.
            group_size: Inputs that share a scale: 32, 64 or 128, or 0 for one scale per output channel.
            zero_point: int8 (out, groups), or None for symmetric integers.
            activation_bits: As in the class, like everything below.
            activation_scale: (1,), (steps,) or None.
            input_scale: (in,), or None.
            rotation_block: A power of two, or 0.
            backend: Name of a kernel, or ``"auto"``.

        Raises:
            InvalidInputError: The integers do not fit into `num_bits`, or the shapes do not belong together.
            UnknownNameError: There is no such kernel.
            BackendUnavailableError: The kernel cannot run here or cannot take this weight.
        """
        return cls(
            PackedWeight.from_integers(integers, num_bits, group_size=group_size, zero_point=zero_point),
            scale,
            bias,
            activation_bits=activation_bits,
            activation_scale=activation_scale,
            input_scale=input_scale,
            rotation_block=rotation_block,
            backend=backend,
        )

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Multiplies; the result has the dtype of `x`.

        Raises:
            InvalidInputError: The last axis of `x` is not `in_features` long, or the layer has one activation scale
                for each denoising step and does not know the step.
        """
        if x.shape[-1] != self.in_features:
            raise InvalidInputError(
                f"input must have {self.in_features} features, got shape {tuple(x.shape)}. Check the layer before."
            )
        if x.requires_grad and torch.is_grad_enabled():
            result: Tensor = _NoGradient.apply(x, self._multiply)  # type: ignore[no-untyped-call]
            return result
        return self._multiply(x)

    def _multiply(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        # A small layer takes 50 microseconds: what changes nothing is skipped, and buffers are read without a detour.
        rows = x if x.dim() == 2 else x.reshape(-1, self.in_features)
        if x.dtype != torch.float32 and (self._transforms or not self._takes(x.dtype)):
            rows = rows.to(torch.float32)
        if self._transforms:
            rows = transform(rows, self.input_scale, self._hadamard)
        buffers = self._buffers
        scale, bias, table = buffers["weight_scale"], buffers["bias"], buffers["activation_scale"]
        assert scale is not None
        activation_scale = None if table is None else self._present(table)
        if self._prepared is None:
            self._hold(*choose(self.packed_weight(), scale, bias, rows, self.activation_bits, activation_scale))
        assert self._prepared is not None
        product = self._prepared.run(rows, scale, bias, self.activation_bits, activation_scale)
        product = product if x.dim() == 2 else product.view(*x.shape[:-1], self.out_features)
        return product if x.dtype == torch.float32 else product.to(x.dtype)

    def _takes(self, dtype: torch.dtype) -> bool:
        """Whether activations are multiplied in this dtype; all others become float32."""
        return self.activation_bits == FLOAT_ACTIVATIONS and dtype in (torch.bfloat16, torch.float16)

    def follow(self, step: Step) -> None:
        """Takes the activation scale at `step.index` of the table from now on; a table of one entry needs no step."""
        self._step = step

    def _present(self, table: Float[Tensor, " steps"]) -> Float[Tensor, ""]:
        """The activation scale of the present denoising step."""
        if len(table) == 1:
            return table[0]
        if self._step is None or not 0 <= self._step.index < len(table):
            got = "none" if self._step is None else self._step.index
            raise InvalidInputError(
                f"denoising step must be known and less than {len(table)}, the length of activation_scale, got {got}. "
                "Let the layer follow the policy's step, and calibrate with its number of denoising steps."
            )
        return table[self._step.index]

    @property
    def backend(self) -> str | None:
        """Name of the kernel that multiplies; None as long as ``"auto"`` has not chosen."""
        return self._backend

    def use_backend(self, name: str) -> None:
        """Multiplies with another kernel from now on.

        Args:
            name: Name of a kernel, or ``"auto"`` for the fastest at the shape of the next call.

        Raises:
            UnknownNameError: There is no such kernel.
            BackendUnavailableError: The kernel cannot run here or cannot take this weight.
        """
        if name == AUTO:
            self._release()
        else:
            self._hold(name, prepare(name, self.packed_weight(), self.activation_bits))

    @property
    def prepared(self) -> PreparedLinear | None:
        """The weight in the form in which its backend multiplies; None until a backend is chosen."""
        return self._prepared

    def packed_weight(self) -> PackedWeight:
        """The packed integers with what is needed to unpack them."""
        if self._prepared is not None:
            return self._prepared.weight()
        assert self._packed is not None
        return PackedWeight(
            packed=self._packed,
            in_features=self.in_features,
            num_bits=self.num_bits,
            group_size=self.group_size,
            zero_point=self._zero_point,
        )

    @property
    def weight_packed(self) -> UInt8[Tensor, "out bytes"]:
        """uint8 (out, ceil(in_features num_bits / 8)), see `daptq.numerics.pack`."""
        return self.packed_weight().packed

    @property
    def weight_zero_point(self) -> UInt8[Tensor, "out zero_bytes"] | None:
        """uint8 (out, ceil(groups num_bits / 8)), packed like the weight, or None for a symmetric one."""
        return self.packed_weight().zero_point if self._asymmetric else None

    @property
    def weight(self) -> Tensor:
        """Shape, dtype (`compute_dtype`) and device of the weight, for code that asks for them; it holds no values.

        Reading a value raises InvalidInputError, or gives NaN in a compiled function; `dequantize` gives the values.
        """
        shape, device = (self.out_features, self.in_features), self.weight_scale.device
        if torch.compiler.is_compiling():  # The compiler drops a tensor of which only the dtype is asked.
            return torch.full(shape, torch.nan, dtype=self.compute_dtype, device=device)
        return StandIn(shape, dtype=self.compute_dtype, device=device, read=_no_values)

    def integers(self) -> Int8[Tensor, "out in"]:
        """The integers of the weight."""
        return self.packed_weight().integers()

    def quantized_matrix(self) -> QuantizedMatrix:
        """The integers of the weight with their scales and zero points."""
        return self.packed_weight().matrix(self.weight_scale)

    def dequantize(self) -> Float[Tensor, "out in"]:
        """The weight that the layer stands for, float32 (out, in): a copy that the layer does not keep.

        Transforms of the input are undone: y is about dequantize() x.
        """
        weight = self.quantized_matrix().dequantize()
        if self.rotation_block:
            weight = rotate(weight, self.rotation_block)
        return weight if self.input_scale is None else weight * self.input_scale

    def resident_bytes(self) -> int:
        """Bytes that the layer keeps in memory in its present form: weight with padding, scales, shape and bias."""
        form = self._prepared.resident_bytes() if self._prepared is not None else self.packed_weight().nbytes()
        floats = sum(buffer.nbytes for name in _FLOATS if (buffer := self._buffers[name]) is not None)
        return form + self.weight_shape.nbytes + floats

    def extra_repr(self) -> str:
        """Sizes, bits, transforms and kernel."""
        steps = "dynamic" if self.activation_scale is None else f"static({len(self.activation_scale)})"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"num_bits={self.num_bits}, group_size={self.group_size}, asymmetric={self._asymmetric}, "
            f"activation_bits={self.activation_bits}, activation_scale={steps}, "
            f"input_scale={self.input_scale is not None}, rotation_block={self.rotation_block}, "
            f"backend={self._backend or AUTO}"
        )

    def _hold(self, name: str, prepared: PreparedLinear) -> None:
        """Keeps the weight as the backend multiplies it, and in no other form."""
        self._prepared, self._backend, self._packed, self._zero_point = prepared, name, None, None

    def _release(self) -> None:
        """Keeps the weight packed, and in no other form."""
        weight = self.packed_weight()
        self._packed, self._zero_point = weight.packed, weight.zero_point
        self._prepared = self._backend = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Moves the layer; a cast leaves scales and bias in float32, and changes what `weight` answers."""
        before = {name: self._buffers[name] for name in _FLOATS}
        origin = self.weight_scale.device
        chosen = self._backend
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=origin)).dtype
        self._release()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        assert self._packed is not None
        device = self._packed.device
        for name, buffer in before.items():
            self._buffers[name] = None if buffer is None else buffer.to(device)
        if chosen is not None and device == origin:
            self.use_backend(chosen)
        return self


def _no_values() -> Tensor:
    """Refuses to read the weight.

    Raises:
        InvalidInputError: Always.
    """
    raise InvalidInputError(
        "weight of a quantized layer must be read for its shape, dtype and device only, got an operation on its "
        "values. Call dequantize() for them."
    )


class _NoGradient(torch.autograd.Function):
    """Runs a product inside a graph, and says so when a gradient is asked of it instead of returning zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiply: Callable[[Tensor], Tensor]) -> Tensor:  # noqa: ARG004
        """Multiplies."""
        return multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:  # noqa: ARG004
        """Refuses."""
        raise InvalidInputError(
            "a quantized layer must not be differentiated, got a backward pass through one. "
            "Take gradients of the full-precision policy."
        )


def _float32(values: Tensor | None) -> Tensor | None:
    """The values in float32, without gradient."""
    return None if values is None else values.detach().to(torch.float32)


def _add_packed(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, _: object) -> None:
    """Puts the packed weight and its zero points into a state dict, whatever form the layer keeps."""
    assert isinstance(module, QuantizedLinear)
    weight = module.packed_weight()
    state_dict[f"{prefix}weight_packed"] = weight.packed
    if weight.zero_point is not None:
        state_dict[f"{prefix}weight_zero_point"] = weight.zero_point


def _take_packed(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, _: object, __: object, missing: list[str], *___: object
) -> None:
    """Takes the packed weight and its zero points out of a state dict."""
    assert isinstance(module, QuantizedLinear)
    keys = ("weight_packed", "weight_zero_point") if module._asymmetric else ("weight_packed",)
    given = {key: state_dict.pop(f"{prefix}{key}", None) for key in keys}
    missing.extend(f"{prefix}{key}" for key, tensor in given.items() if tensor is None)
    if any(tensor is None for tensor in given.values()):
        return
    device = module.weight_scale.device
    taken = {key: tensor.to(device, copy=True) for key, tensor in given.items()}
    weight = PackedWeight(
        packed=taken["weight_packed"],
        in_features=module.in_features,
        num_bits=module.num_bits,
        group_size=module.group_size,
        zero_point=taken.get("weight_zero_point"),
    )
    if weight.out_features != module.out_features:
        raise InvalidInputError(
            f"{prefix}weight_packed must have {module.out_features} rows, got {weight.out_features}. "
            "Check the checkpoint."
        )
    module._release()
    module._packed, module._zero_point = weight.packed, weight.zero_point
