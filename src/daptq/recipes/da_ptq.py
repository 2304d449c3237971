"""Drift-aware post-training quantization, Algorithm 1 of arXiv 2604.11572 with the paper's defaults.

Language model and action head become W4A8, the vision tower and the connector stay bfloat16; the representation at
the perception-to-action interface is compensated (eq. 4-9), and of the action head the 30 % most drift-sensitive
layers (eq. 19-20) and the last two transformer blocks stay bfloat16.
"""

from __future__ import annotations

from typing import Literal, get_args

from daptq.allocation.top_fraction import TopFractionConfig
from daptq.catalog import DRIFT_MODELS
from daptq.compensation.csrc import CsrcConfig
from daptq.errors import RecipeError, require_one_of
from daptq.quantization.recipe import Folding, Order, Recipe, RoleActivationBits, RoleBits, part_from_json
from daptq.rounding.nearest import NearestConfig, ScaleRule

__all__ = ["Compensation", "da_ptq"]

Compensation = Literal["cross-channel", "per-channel", "none"]


def da_ptq(
    *,
    weight_bits: int = 4,
    activation_bits: int = 8,
    keep_fraction: float = 0.3,
    keep_last_blocks: int = 2,
    compensation: Compensation = "cross-channel",
    order: Order = "compensation-first",
    folding: Folding = "auto",
    scale: ScaleRule = "searched",
    group_size: int = 0,
    asymmetric: bool = False,
    float_where_faster: bool = False,
    drift_model: str = "virtual-chain",
    calibration_states: int = 512,
) -> Recipe:
    """The paper's method; `dataclasses.replace` on the result reaches every other setting.

    Args:
        weight_bits: Bits of the quantized weights: 2, 3, 4 or 8.
        activation_bits: Bits of the activations, 4 or 8, or 16 for floating point.
        keep_fraction: Fraction of the action head's linear layers that stay bfloat16 for their sensitivity, in [0, 1].
        keep_last_blocks: Number of last blocks of the action head that are never quantized.
        compensation: ``"cross-channel"``: gain and shift per channel, then the matrix of eq. 7; ``"per-channel"``: the
            first alone; ``"none"``: neither.
        order: Whether to compensate or to allocate first.
        folding: Into which layers the compensating map goes: ``"consumer"``, those that read the representation;
            ``"producer"``, those that make it; ``"auto"``, the first that stay in floating point, else the last.
        scale: How scales of weights are chosen: ``"searched"``, the one of least squared error; ``"absmax"``, by the
            largest weight.
        group_size: Inputs that share a scale of a weight: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale of a weight has a zero point.
        float_where_faster: Whether layers that this machine multiplies faster in bfloat16 stay bfloat16.
        drift_model: What an error in an action does to the robot, a name of ``daptq list drift-models``:
            ``"virtual-chain"`` is the paper's, others know more of the robot.
        calibration_states: Number of demonstration states.

    Raises:
        UnknownNameError: There is no such drift model; the message suggests near names.
        RecipeError: A setting is outside its range.
    """
    require_one_of("compensation", compensation, get_args(Compensation), RecipeError)
    return Recipe(
        name="da-ptq",
        weight_bits=RoleBits(language=weight_bits, action_head=weight_bits),
        activation_bits=RoleActivationBits.everywhere(activation_bits),
        rounding=NearestConfig(scale=scale, group_size=group_size, asymmetric=asymmetric),
        calibration_states=calibration_states,
        drift_model=part_from_json(DRIFT_MODELS, {"method": drift_model}),
        compensation=None if compensation == "none" else CsrcConfig(cross_channel=compensation == "cross-channel"),
        allocation=TopFractionConfig(fraction=keep_fraction, keep_last_blocks=keep_last_blocks),
        order=order,
        folding=folding,
        float_where_faster=float_where_faster,
    )
