"""daptq's own method: one drift metric G, used by rounding, allocation, compensation and verification alike.

Every linear layer is quantized, the vision tower included. Weights are rounded by GPTQ under Gram matrices in which a
token counts by what it does to the robot; the bits of every layer are the exact solution of a budget over the drift
that its rounding causes; the plan is replayed as a whole; and what remains at the perception-to-action interface is
compensated by a least-squares map, folded into weights.
"""

from __future__ import annotations

from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.verification import VerificationConfig
from daptq.catalog import DRIFT_MODELS
from daptq.compensation.paired import PairedConfig
from daptq.quantization.recipe import Recipe, RoleActivationBits, RoleBits, part_from_json
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

__all__ = ["da_ptq_plus"]

# Channels of a rotated block where activations have 4 bits. On `reference` replayed chunks then drift by 4.7 mm, with
# blocks of 16 by 5.3 mm.
ROTATION_BLOCK = 64


def da_ptq_plus(
    *,
    weight_bits: int = 4,
    activation_bits: int = 8,
    budget_bits: float | None = None,
    budget_mib: float | None = None,
    budget_ms: float | None = None,
    gate_mm: float | None = None,
    group_size: int = 0,
    asymmetric: bool = False,
    float_where_faster: bool = False,
    drift_model: str = "se3",
    calibration_states: int = 512,
) -> Recipe:
    """Our method; `dataclasses.replace` on the result reaches every other setting.

    Args:
        weight_bits: Bits of a layer before the budget is spent, and the budget when none is given: so many mean bits
            per weight, scales included.
        activation_bits: Bits of the activations, 4 or 8, or 16 for floating point. With 4 the inputs of the layers are
            rotated in blocks of 64.
        budget_bits: Mean bits per weight, scales included.
        budget_mib: Size of the linear layers in the checkpoint [MiB].
        budget_ms: Time of one product with every linear layer, as measured on this machine [ms].
        gate_mm: Largest root mean square drift of an executed chunk [mm]; layers are promoted, within the budget, until
            it holds. By default it is measured and nothing is promoted.
        group_size: Inputs that share a scale of a weight: 32, 64 or 128, or 0 for one scale per output channel.
        asymmetric: Whether each scale of a weight has a zero point.
        float_where_faster: Whether layers that this machine multiplies faster in bfloat16 stay bfloat16.
        drift_model: What an error in an action does to the robot, a name of ``daptq list drift-models``.
        calibration_states: Number of demonstration states.

    Raises:
        UnknownNameError: There is no such drift model; the message suggests near names.
        RecipeError: A setting is outside its range, or more than one budget is given.
    """
    if budget_bits is None and budget_mib is None and budget_ms is None:
        budget_bits = float(weight_bits)
    return Recipe(
        name="da-ptq-plus",
        weight_bits=RoleBits.everywhere(weight_bits),
        activation_bits=RoleActivationBits.everywhere(activation_bits),
        rounding=GptqConfig(group_size=group_size, asymmetric=asymmetric, drift_weighted=True),
        calibration_states=calibration_states,
        drift_model=part_from_json(DRIFT_MODELS, {"method": drift_model}),
        sensitivity=RoundingSensitivityConfig(),
        compensation=PairedConfig(),
        allocation=KnapsackConfig(budget_bits=budget_bits, budget_mib=budget_mib, budget_ms=budget_ms),
        verification=VerificationConfig(gate_mm=gate_mm),
        transform=TransformConfig(rotation_block=ROTATION_BLOCK if activation_bits == 4 else 0),
        order="allocation-first",
        float_where_faster=float_where_faster,
    )
