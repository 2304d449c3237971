"""The arms of the ablation: every choice that the paper leaves open and every step of our own method, as recipes.

An arm is a recipe for one setting, a pair of weight budget and activation bits. Arms of the paper's family keep its
layer scope (vision and connector in bfloat16); arms named *whole* quantize every linear layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from daptq.activation_scaling.per_step import PerStepConfig
from daptq.activation_scaling.static import StaticConfig
from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.compensation.csrc import CsrcConfig
from daptq.quantization.recipe import RoleBits
from daptq.recipes import Recipe, da_ptq, da_ptq_plus, round_to_nearest
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.phi import SensitivityConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

__all__ = ["MATCHED", "SETTINGS", "Setting", "arms", "choices", "match"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Bits of weights and activations.

    Attributes:
        weight_bits: Bits of a quantized weight where all get the same.
        activation_bits: Bits of an activation.
        budget_bits: Mean bits per weight, scales included, of the arms with a budget.
        uniform: Whether round-to-nearest at the same size has the same bits everywhere.
        paper_bits: Bits of a quantized weight in the paper's family, which has no budget; `weight_bits` by default.
    """

    weight_bits: int
    activation_bits: int
    budget_bits: float
    uniform: bool = True
    paper_bits: int | None = None


MATCHED = ("knapsack at DA-PTQ's bytes", "plus at DA-PTQ's bytes")

SETTINGS: Mapping[str, Setting] = {
    "W4A8": Setting(weight_bits=4, activation_bits=8, budget_bits=4.0),
    "W3.5A8": Setting(weight_bits=4, activation_bits=8, budget_bits=3.5, uniform=False),
    "W3A8": Setting(weight_bits=3, activation_bits=8, budget_bits=3.12),
    "W4A4": Setting(weight_bits=4, activation_bits=4, budget_bits=4.0),
    "W2.5A8": Setting(weight_bits=3, activation_bits=8, budget_bits=2.5, uniform=False, paper_bits=2),
}


def arms(setting: Setting) -> dict[str, Recipe]:
    """The recipes of one setting by name; the bytes of DA-PTQ are matched by the caller, see ``match``."""
    bits, activations = setting.weight_bits, setting.activation_bits
    whole = RoleBits.everywhere(bits)
    paper_bits = setting.paper_bits or bits
    nearest = round_to_nearest(weight_bits=paper_bits, activation_bits=activations)
    paper = da_ptq(weight_bits=paper_bits, activation_bits=activations)
    plus = da_ptq_plus(weight_bits=bits, activation_bits=activations, budget_bits=setting.budget_bits)
    costs = RoundingSensitivityConfig()
    whole_nearest = replace(nearest, weight_bits=whole)
    if not setting.uniform:
        even = EvenConfig(budget_bits=setting.budget_bits)
        whole_nearest = replace(whole_nearest, allocation=even)
    table = {
        "nearest, whole": whole_nearest,
        "plus": plus,
        "plus, rotated": replace(plus, transform=TransformConfig(rotation_block=64)),
        "plus, not rotated": replace(plus, transform=TransformConfig()),
        "plus, kinematic": replace(plus, drift_model=da_ptq_plus(drift_model="kinematic").drift_model),
        "plus, virtual chain": replace(plus, drift_model=da_ptq_plus(drift_model="virtual-chain").drift_model),
        "plus without compensation": replace(plus, compensation=None),
        "plus, plain Gram": replace(plus, rounding=GptqConfig()),
        "plus, nearest": replace(plus, rounding=NearestConfig()),
        "GPTQ, whole": replace(plus, allocation=None, verification=None, compensation=None),
        "nearest and rotation, whole": replace(whole_nearest, transform=TransformConfig(rotation_block=64)),
    }
    del table["plus, rotated" if plus.transform.rotation_block else "plus, not rotated"]  # as plus itself
    if not setting.uniform:
        del table["GPTQ, whole"]  # the same bits everywhere do not meet the budget
    if setting.uniform or setting.paper_bits:
        table |= {
            "nearest": nearest,
            "CSRC diagonal": replace(
                paper, allocation=None, compensation=da_ptq(compensation="per-channel").compensation
            ),
            "CSRC low rank": replace(paper, allocation=None),
            "DA-MPA": replace(paper, compensation=None),
            "DA-PTQ": paper,
            "DA-PTQ, allocation first": replace(paper, order="allocation-first"),
            "DA-PTQ, Fisher": replace(paper, sensitivity=costs),
            "DA-PTQ, se3": replace(paper, drift_model=plus.drift_model),
            "DA-PTQ, kinematic": replace(paper, drift_model=da_ptq_plus(drift_model="kinematic").drift_model),
            "DA-PTQ, paired": replace(paper, compensation=plus.compensation),
            "paired": replace(nearest, compensation=plus.compensation, order="allocation-first"),
        }
    return table


def choices(setting: Setting) -> dict[str, Recipe]:
    """DA-PTQ with every choice that the paper leaves open made in another way, one at a time, by name."""
    bits, activations = setting.weight_bits, setting.activation_bits
    paper = da_ptq(weight_bits=bits, activation_bits=activations)
    compensations = {
        "rank 4": CsrcConfig(rank=4),
        "full rank": CsrcConfig(rank=None),
        "identity weight 0.01": CsrcConfig(identity_weight=0.01),
        "identity weight 1": CsrcConfig(identity_weight=1.0),
        "gain between 0.8 and 1.25": CsrcConfig(gain_min=0.8, gain_max=1.25),
        "map not selected": CsrcConfig(selection="always"),
    }
    others = {
        "mean of the gradient": replace(paper, sensitivity=SensitivityConfig(reduction="mean")),
        "sum of the gradient": replace(paper, sensitivity=SensitivityConfig(reduction="l1")),
        "fraction of parameters": replace(paper, allocation=TopFractionConfig(by="parameters")),
        "every layer ranked": replace(paper, allocation=TopFractionConfig(scope="all")),
        "last blocks not kept": replace(paper, allocation=TopFractionConfig(keep_last_blocks=0)),
        "whole": replace(paper, weight_bits=RoleBits.everywhere(bits)),
        "scale from the largest weight": replace(paper, rounding=NearestConfig(scale="absmax")),
        "rotated by 16": replace(paper, transform=TransformConfig(rotation_block=16)),
        "smoothed": replace(paper, transform=TransformConfig(smoothing=0.15)),
        "rotated and smoothed": replace(paper, transform=TransformConfig(rotation_block=16, smoothing=0.15)),
        "static activations": replace(paper, activation_scaling=StaticConfig()),
        "activations per step": replace(paper, activation_scaling=PerStepConfig()),
    }
    varied = {name: replace(paper, compensation=config) for name, config in compensations.items()} | others
    table = {"nearest, whole": arms(setting)["nearest, whole"], "DA-PTQ": paper}
    return table | {f"DA-PTQ, {name}": recipe for name, recipe in varied.items()}


def match(paper: Recipe, plus: Recipe, budget_mib: float) -> dict[str, Recipe]:
    """The knapsack at the bytes of DA-PTQ, in the paper's layer scope, with nearest and with our rounding."""
    knapsack = KnapsackConfig(budget_mib=budget_mib)
    same = replace(paper, allocation=knapsack, sensitivity=RoundingSensitivityConfig(), drift_model=plus.drift_model)
    ours = replace(plus, weight_bits=paper.weight_bits, allocation=knapsack)
    return dict(zip(MATCHED, (same, ours), strict=True))
