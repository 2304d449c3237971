"""A recipe: every setting of one quantization run as plain data, validated when built, that survives JSON.

A recipe says what is done, stage by stage; it knows neither a policy nor data. A stage that is None is left out.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from daptq.allocation.even import EvenConfig
from daptq.allocation.knapsack import KnapsackConfig
from daptq.allocation.plan import WEIGHT_BITS
from daptq.allocation.top_fraction import TopFractionConfig
from daptq.allocation.verification import VerificationConfig
from daptq.catalog import COMPENSATIONS, DRIFT_MODELS, Catalog
from daptq.compensation.contract import CompensationMethod
from daptq.drift.contract import DriftModel
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import RecipeError, require_one_of
from daptq.interfaces.as_json import interface_from_json, interface_to_json
from daptq.interfaces.contract import Interface
from daptq.kernels.linear.arithmetic import ACTIVATION_BITS
from daptq.policies.contract import Role
from daptq.rounding.activations import ActivationConfig
from daptq.rounding.gptq import GptqConfig
from daptq.rounding.nearest import NearestConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.phi import SensitivityConfig
from daptq.sensitivity.rounding import RoundingSensitivityConfig

__all__ = ["DriftHorizon", "Folding", "Order", "Recipe", "RoleActivationBits", "RoleBits", "stage_from_json"]

Order = Literal["compensation-first", "allocation-first"]
Folding = Literal["auto", "consumer", "producer"]
DriftHorizon = Literal["executed", "chunk"]


@dataclass(frozen=True, kw_only=True)
class RoleBits:
    """Bits of the weights by role; None leaves the role in bfloat16.

    Attributes:
        vision: Vision towers.
        connector: Projections into the language model.
        language: Language model.
        action_head: Action decoder.
    """

    vision: int | None = None
    connector: int | None = None
    language: int | None = 4
    action_head: int | None = 4

    def __post_init__(self) -> None:
        for role in fields(self):
            bits = getattr(self, role.name)
            if bits is not None and (type(bits) is not int or bits not in WEIGHT_BITS):
                raise RecipeError(
                    f"weight_bits of {role.name} must be one of {', '.join(map(str, WEIGHT_BITS))}, or None for "
                    f"bfloat16, got {bits}. Choose one of these."
                )

    @classmethod
    def everywhere(cls, bits: int | None) -> RoleBits:
        """The same bits in every role."""
        return cls(vision=bits, connector=bits, language=bits, action_head=bits)

    def of(self, role: Role) -> int | None:
        """Bits of one role."""
        return getattr(self, role)


@dataclass(frozen=True, kw_only=True)
class RoleActivationBits:
    """Bits of the activations that quantized layers multiply with, by role: 4 or 8, or 16 for floating point.

    Attributes:
        vision: Vision towers.
        connector: Projections into the language model.
        language: Language model.
        action_head: Action decoder.
    """

    vision: int = 8
    connector: int = 8
    language: int = 8
    action_head: int = 8

    def __post_init__(self) -> None:
        for role in fields(self):
            bits = getattr(self, role.name)
            if type(bits) is not int or bits not in ACTIVATION_BITS:
                raise RecipeError(
                    f"activation_bits of {role.name} must be one of {', '.join(map(str, ACTIVATION_BITS))}, got "
                    f"{bits!r}. Choose one of these."
                )

    @classmethod
    def everywhere(cls, bits: int) -> RoleActivationBits:
        """The same bits in every role."""
        return cls(vision=bits, connector=bits, language=bits, action_head=bits)

    def of(self, role: Role) -> int:
        """Bits of one role."""
        return getattr(self, role)


# Methods that a stage can be done with; the key "method" of a stage's JSON names one.
_STAGES: Mapping[str, tuple[type[Any], ...]] = {
    "weight_bits": (RoleBits,),
    "activation_bits": (RoleActivationBits,),
    "activations": (ActivationConfig,),
    "transform": (TransformConfig,),
    "rounding": (NearestConfig, GptqConfig),
    "sensitivity": (SensitivityConfig, RoundingSensitivityConfig),
    "allocation": (TopFractionConfig, KnapsackConfig, EvenConfig),
    "verification": (VerificationConfig,),
}

# Stages whose methods the catalog finds, those of other distributions included.
_FOUND: Mapping[str, Catalog] = {"drift": DRIFT_MODELS, "compensation": COMPENSATIONS}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete quantization run.

    Attributes:
        name: Name of the recipe in the catalog.
        weight_bits: Bits of the weights by role.
        activation_bits: Bits of the activations that a quantized layer multiplies with, by role.
        activations: How activations are scaled.
        transform: Smoothing and rotation of the inputs of quantized layers.
        rounding: How weights are rounded.
        calibration_states: Number of calibration states.
        drift: Drift model.
        drift_horizon: Which actions of a chunk the matrix G counts: those that are executed before the next prediction,
            or the whole ``"chunk"``, for a policy whose chunks are executed in part now and in whole later.
        sensitivity: How layers are scored.
        compensation: Compensation of the perception-to-action interfaces, or None.
        interfaces: These interfaces; None for those that the policy's family names.
        allocation: Which layer gets how many bits, or None for the bits of its role.
        verification: Joint measurement of the allocated bits, which promotes layers until its gate holds, or None.
        order: Whether compensation is solved with every layer quantized and then bits are allocated (Algorithm 1 of
            arXiv 2604.11572), or the other way round (its section 3.5).
        float_where_faster: Whether layers that are faster in bfloat16 than with any low-bit kernel, as measured on this
            machine at the policy's own shapes, stay bfloat16.
        folding: Which folds of an interface can take its map: those into what consumes the representation, those into
            what produces it, or ``"auto"``, all of them: the first whose layers stay in floating point, else the last.
            With compensation first nothing is allocated yet, so consumers that are needed are kept in floating point.
    """

    name: str
    weight_bits: RoleBits = field(default_factory=RoleBits)
    activation_bits: RoleActivationBits = field(default_factory=RoleActivationBits)
    activations: ActivationConfig = field(default_factory=ActivationConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    rounding: NearestConfig | GptqConfig = field(default_factory=NearestConfig)
    calibration_states: int = 512
    drift: DriftModel = field(default_factory=VirtualChainConfig)
    drift_horizon: DriftHorizon = "executed"
    sensitivity: SensitivityConfig | RoundingSensitivityConfig = field(default_factory=SensitivityConfig)
    compensation: CompensationMethod | None = None
    interfaces: tuple[Interface, ...] | None = None
    allocation: TopFractionConfig | KnapsackConfig | EvenConfig | None = None
    verification: VerificationConfig | None = None
    order: Order = "compensation-first"
    folding: Folding = "auto"
    float_where_faster: bool = False

    def __post_init__(self) -> None:
        if type(self.float_where_faster) is not bool:
            raise RecipeError(
                f"float_where_faster must be true or false, got {self.float_where_faster!r}. Choose one of these."
            )
        if not isinstance(self.drift, DriftModel):
            raise RecipeError(
                f"drift must be the settings of a drift model, got {self.drift!r}. Pass for example Se3Config()."
            )
        if not isinstance(self.compensation, CompensationMethod | None):
            raise RecipeError(
                f"compensation must be the settings of a compensation or None, got {self.compensation!r}. Pass for "
                "example CsrcConfig()."
            )
        if type(self.calibration_states) is not int or self.calibration_states < 1:
            raise RecipeError(
                f"calibration_states must be a positive integer, got {self.calibration_states}. The paper uses 512."
            )
        for label, choices in (
            ("order", get_args(Order)),
            ("folding", get_args(Folding)),
            ("drift_horizon", get_args(DriftHorizon)),
        ):
            require_one_of(label, getattr(self, label), choices, RecipeError)
        if isinstance(self.allocation, KnapsackConfig) and not self.needs_costs:
            raise RecipeError(
                f"sensitivity must be 'rounding' for the allocation {self.allocation.method}, got "
                f"{self.sensitivity.method!r}. A budget is spent by what rounding to each number of bits costs."
            )
        if self.float_where_faster and isinstance(self.allocation, EvenConfig):
            raise RecipeError(
                f"float_where_faster must be false with the allocation {self.allocation.method}, got true. "
                "An even spread of bits keeps no layer."
            )
        if self.verification is not None and not self.needs_costs:
            raise RecipeError(
                f"sensitivity must be 'rounding' for a verification, got {self.sensitivity.method!r}. "
                "Layers are promoted by what rounding costs."
            )

    @property
    def needs_data(self) -> bool:
        """Whether the run looks at calibration data."""
        rounding = isinstance(self.rounding, GptqConfig) or self.needs_ranges
        return self.compensation is not None or self.scores_layers or rounding

    @property
    def needs_ranges(self) -> bool:
        """Whether the ranges of the layers' inputs are measured."""
        return self.transform.smoothing > 0 or self.activations.scaling != "dynamic"

    @property
    def scores_layers(self) -> bool:
        """Whether layers are scored."""
        return self.verification is not None or isinstance(self.allocation, TopFractionConfig | KnapsackConfig)

    @property
    def needs_costs(self) -> bool:
        """Whether the scores are what rounding costs, in place of the paper's phi."""
        return isinstance(self.sensitivity, RoundingSensitivityConfig)

    @property
    def needs_metric(self) -> bool:
        """Whether a stage reads the matrix G of the drift model."""
        weighted_rounding = isinstance(self.rounding, GptqConfig) and self.rounding.drift_weighted
        weighted_map = self.compensation is not None and self.compensation.weighs_by_drift
        costs = self.scores_layers and self.needs_costs
        return weighted_rounding or weighted_map or costs

    def to_json(self) -> dict[str, Any]:
        """The recipe as a JSON object; each stage names its method."""
        obj = asdict(self)
        obj["interfaces"] = None if self.interfaces is None else [interface_to_json(one) for one in self.interfaces]
        for stage in (*_STAGES, *_FOUND):
            config = getattr(self, stage)
            if hasattr(config, "method"):
                obj[stage] = {"method": config.method, **obj[stage]}
        return obj

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            RecipeError: A key is unknown or missing, or a value is outside its range.
            InvalidInputError: An interface is not complete.
            UnknownNameError: No method of a stage has the name that is given; the message suggests near names.
        """
        values = dict(obj)
        for stage, catalog in _FOUND.items():
            if isinstance(values.get(stage), Mapping):
                values[stage] = stage_from_json(catalog, values[stage])
        for stage, methods in _STAGES.items():
            if isinstance(values.get(stage), Mapping):
                values[stage] = _stage_from_json(stage, methods, values[stage])
        if values.get("interfaces") is not None:
            values["interfaces"] = tuple(interface_from_json(entry) for entry in values["interfaces"])
        return _build(cls, values, "recipe")


def stage_from_json(catalog: Catalog, obj: Mapping[str, Any]) -> Any:
    """The configuration of a stage whose methods the catalog finds.

    Args:
        catalog: Methods of the stage; what each module provides is the class of its configuration.
        obj: The configuration's settings, and under ``"method"`` its name in the catalog.

    Raises:
        RecipeError: There is no method, a setting is unknown or missing, or a value is outside its range.
        UnknownNameError: No method has this name; the message suggests near names.
    """
    values = dict(obj)
    name = values.pop("method", None)
    if not isinstance(name, str):
        raise RecipeError(
            f"method of a {catalog.kind} must be one of {', '.join(catalog.names())}, got {name!r}. Name one."
        )
    return _build(catalog.provided(name), values, f"{catalog.kind} {name}")


def _stage_from_json(stage: str, methods: tuple[type[Any], ...], obj: Mapping[str, Any]) -> Any:
    """The configuration of one stage."""
    values = dict(obj)
    name = values.pop("method", None)
    by_name = {getattr(method, "method", None): method for method in methods}
    require_one_of(f"method of {stage}", name, by_name, RecipeError)
    return _build(by_name[name], values, stage)


def _build(kind: type[Any], values: Mapping[str, Any], label: str) -> Any:
    """Builds a configuration, naming what is unknown or missing."""
    known = typing.get_type_hints(kind).keys() & {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        raise RecipeError(
            f"{label} must have known settings only, got {unknown}. Choose from {', '.join(sorted(known))}."
        )
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{label} must be complete and of the right types: {error}. Correct the setting.") from error
