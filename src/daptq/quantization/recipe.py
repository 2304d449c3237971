"""A recipe: every setting of one quantization run as plain data, validated when built, that survives JSON.

A recipe says what is done, part by part; it knows neither a policy nor data. A part is done by a method that is chosen
by name, or in one way; one that is None is left out.
"""

from __future__ import annotations

import functools
import operator
import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, get_args

from daptq.activation_scaling.contract import ActivationScaling
from daptq.activation_scaling.dynamic import DynamicConfig
from daptq.allocation.contract import AllocationMethod
from daptq.allocation.plan import WEIGHT_BITS
from daptq.allocation.verification import VerificationConfig
from daptq.catalog import (
    ACTIVATION_SCALINGS,
    ALLOCATIONS,
    COMPENSATIONS,
    DRIFT_MODELS,
    ROUNDINGS,
    SENSITIVITIES,
    Catalog,
)
from daptq.compensation.contract import CompensationMethod
from daptq.drift.contract import DriftModel
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import InvalidInputError, RecipeError, require_one_of
from daptq.interfaces.as_json import interface_from_json, interface_to_json
from daptq.interfaces.contract import Interface
from daptq.kernels.linear.arithmetic import ACTIVATION_BITS
from daptq.methods import Method, Needs
from daptq.policies.contract import Role
from daptq.rounding.contract import RoundingMethod
from daptq.rounding.nearest import NearestConfig
from daptq.rounding.transform import TransformConfig
from daptq.sensitivity.contract import SensitivityMethod
from daptq.sensitivity.phi import SensitivityConfig

__all__ = [
    "METHOD_PARTS",
    "OPTIONAL_PARTS",
    "PLAIN_PARTS",
    "DriftHorizon",
    "Folding",
    "Order",
    "Recipe",
    "RoleActivationBits",
    "RoleBits",
    "build",
    "method_named",
    "part_from_json",
]

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


METHOD_PARTS: Mapping[str, tuple[Catalog, type[Method]]] = {
    "rounding": (ROUNDINGS, RoundingMethod),
    "activation_scaling": (ACTIVATION_SCALINGS, ActivationScaling),
    "drift_model": (DRIFT_MODELS, DriftModel),
    "sensitivity": (SENSITIVITIES, SensitivityMethod),
    "allocation": (ALLOCATIONS, AllocationMethod),
    "compensation": (COMPENSATIONS, CompensationMethod),
}
"""Parts that are done by a method: where its name is looked up, and its contract."""

PLAIN_PARTS: Mapping[str, type[Any]] = {
    "weight_bits": RoleBits,
    "activation_bits": RoleActivationBits,
    "transform": TransformConfig,
    "verification": VerificationConfig,
}
"""Parts that are done in one way, with these settings."""

OPTIONAL_PARTS = ("allocation", "compensation")
"""Parts of `METHOD_PARTS` that a recipe may leave out."""

JSON_KEYS: Mapping[str, str] = {"drift_model": "drift"}
"""Keys of a recipe's JSON object that differ from the names of the fields."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A complete quantization run.

    Attributes:
        name: Name of the recipe in the catalog.
        weight_bits: Bits of the weights by role.
        activation_bits: Bits of the activations that a quantized layer multiplies with, by role.
        activation_scaling: How activations are scaled.
        transform: Smoothing and rotation of the inputs of quantized layers.
        rounding: How weights are rounded.
        calibration_states: Number of calibration states.
        drift_model: What an error in an action does to the robot.
        drift_horizon: Which actions of a chunk the drift model counts: those that are executed before the next
            prediction, or the whole ``"chunk"``, for a policy whose chunks are executed in part now and in whole later.
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
    activation_scaling: ActivationScaling = field(default_factory=DynamicConfig)
    transform: TransformConfig = field(default_factory=TransformConfig)
    rounding: RoundingMethod = field(default_factory=NearestConfig)
    calibration_states: int = 512
    drift_model: DriftModel = field(default_factory=VirtualChainConfig)
    drift_horizon: DriftHorizon = "executed"
    sensitivity: SensitivityMethod = field(default_factory=SensitivityConfig)
    compensation: CompensationMethod | None = None
    interfaces: tuple[Interface, ...] | None = None
    allocation: AllocationMethod | None = None
    verification: VerificationConfig | None = None
    order: Order = "compensation-first"
    folding: Folding = "auto"
    float_where_faster: bool = False

    def __post_init__(self) -> None:
        if type(self.float_where_faster) is not bool:
            raise RecipeError(
                f"float_where_faster must be true or false, got {self.float_where_faster!r}. Choose one of these."
            )
        for part, (catalog, contract) in METHOD_PARTS.items():
            config = getattr(self, part)
            if not isinstance(config, contract) and (config is not None or part not in OPTIONAL_PARTS):
                names = f"{', '.join(catalog.names())}{', or None' if part in OPTIONAL_PARTS else ''}"
                raise RecipeError(
                    f"{part} must be the settings of one of {names}, got {config!r}. Pass its configuration."
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
        self._check_methods()

    def _check_methods(self) -> None:
        """Refuses methods that do not go together."""
        allocation, sensitivity = self.allocation, self.sensitivity
        if allocation is not None and allocation.needs.costs and not sensitivity.gives_costs:
            raise RecipeError(
                f"sensitivity must be {_that(SENSITIVITIES, 'gives_costs')} for the allocation {allocation.method}, "
                f"got {sensitivity.method!r}. A budget is spent by what rounding to each number of bits costs."
            )
        if self.verification is not None and not sensitivity.gives_costs:
            raise RecipeError(
                f"sensitivity must be {_that(SENSITIVITIES, 'gives_costs')} for a verification, got "
                f"{sensitivity.method!r}. Layers are promoted by what rounding costs."
            )
        if self.float_where_faster and allocation is not None and not allocation.keeps_layers:
            raise RecipeError(
                f"float_where_faster must be false with the allocation {allocation.method}, which keeps no layer, got "
                f"true. Allocations that keep layers: {_that(ALLOCATIONS, 'keeps_layers')}."
            )

    @property
    def needs(self) -> Needs:
        """What is measured for this recipe: the union of what its methods say."""
        parts = (self.rounding, self.activation_scaling, self.transform, self.compensation, self.allocation)
        needs = functools.reduce(
            operator.or_, (part.needs for part in (*parts, self.verification) if part is not None), Needs()
        )
        return needs | self.sensitivity.needs if needs.scores else needs

    def to_json(self) -> dict[str, Any]:
        """The recipe as a JSON object; each part that is done by a method names it."""
        obj = asdict(self)
        obj["interfaces"] = None if self.interfaces is None else [interface_to_json(one) for one in self.interfaces]
        for part in (*METHOD_PARTS, *PLAIN_PARTS):
            config = getattr(self, part)
            if isinstance(config, Method):
                obj[part] = {"method": config.method, **obj[part]}
        return {JSON_KEYS.get(name, name): value for name, value in obj.items()}

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> Recipe:
        """The recipe that `to_json` wrote.

        Raises:
            RecipeError: A key is unknown or missing, or a value is outside its range.
            InvalidInputError: An interface is not complete.
            UnknownNameError: No method of a kind has the name that is given; the message suggests near names.
        """
        names = {key: name for name, key in JSON_KEYS.items()}
        values = {names.get(key, key): value for key, value in _in_todays_form(obj).items()}
        for part, (catalog, _) in METHOD_PARTS.items():
            if isinstance(values.get(part), Mapping):
                values[part] = part_from_json(catalog, values[part])
        for part, kind in PLAIN_PARTS.items():
            if isinstance(values.get(part), Mapping):
                settings = {key: value for key, value in values[part].items() if key != "method"}
                values[part] = build(kind, settings, part)
        if values.get("interfaces") is not None:
            values["interfaces"] = tuple(interface_from_json(entry) for entry in values["interfaces"])
        return build(cls, values, "recipe")


def method_named(catalog: Catalog, name: str) -> type[Method]:
    """The class of a method's configuration.

    Args:
        catalog: Methods of one kind.
        name: A name of the catalog.

    Raises:
        UnknownNameError: No method has this name; the message suggests near names.
        InvalidInputError: What the module provides is no configuration, or calls itself by another name.
    """
    found = catalog.provided(name)
    fits = isinstance(found, type) and issubclass(found, Method) and is_dataclass(found)
    if not fits:
        raise InvalidInputError(
            f"{catalog.provides} of the {catalog.kind} {name!r} must be a dataclass of its settings, got {found!r}. "
            "Correct the module."
        )
    if found.method != name:
        raise InvalidInputError(
            f"{catalog.kind} {name!r} must have its name as its method, got {found.method!r}. Correct the module."
        )
    return found


def part_from_json(catalog: Catalog, obj: Mapping[str, Any]) -> Any:
    """The configuration of a part whose methods the catalog finds.

    Args:
        catalog: Methods of one kind; what each module provides is the class of its configuration.
        obj: The configuration's settings, and under ``"method"`` its name in the catalog.

    Raises:
        RecipeError: There is no method, a setting is unknown or missing, or a value is outside its range.
        UnknownNameError: No method has this name; the message suggests near names.
    """
    values = dict(obj)
    name = values.pop("method", None)
    if not isinstance(name, str):
        raise RecipeError(
            f"method of the {catalog.kind} must be one of {', '.join(catalog.names())}, got {name!r}. Name one."
        )
    return build(method_named(catalog, name), values, f"{catalog.kind} {name}")


def build(kind: type[Any], values: Mapping[str, Any], label: str) -> Any:
    """Builds a configuration, naming what is unknown or missing.

    Args:
        kind: Dataclass of the settings.
        values: Settings by name.
        label: What is built, for messages.

    Raises:
        RecipeError: A setting is unknown or missing, of the wrong type, or outside its range.
    """
    known = typing.get_type_hints(kind).keys() & {entry.name for entry in fields(kind)}
    if unknown := sorted(set(values) - known):
        choices = f"Choose from {', '.join(sorted(known))}." if known else "It has none."
        raise RecipeError(f"{label} must have known settings only, got {unknown}. {choices}")
    try:
        return kind(**values)
    except TypeError as error:
        raise RecipeError(f"{label} must be complete and of the right types: {error}. Correct the setting.") from error


def _that(catalog: Catalog, condition: str) -> str:
    """The methods of a kind that fulfil a condition, an attribute of their classes."""
    found = catalog.usable(lambda name, _: bool(getattr(method_named(catalog, name), condition)))
    return " or ".join(repr(name) for name, fulfils in found.items() if fulfils) or "one that no installed one is"


def _in_todays_form(obj: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe in which activations, as checkpoints of version 0.1 write them, are scaled by a method with a name."""
    values = dict(obj)
    if isinstance(before := values.pop("activations", None), Mapping):
        name = before.get("scaling", "dynamic")
        settings = {} if name == "dynamic" else {k: v for k, v in before.items() if k != "scaling"}
        values["activation_scaling"] = {"method": name, **settings}
    return values
