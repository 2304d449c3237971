"""Drift models by name, with their default settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from daptq.drift.contract import DriftModel
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.se3 import Se3Config
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.errors import UnknownNameError

__all__ = ["DriftModelName", "drift_model_config"]

DriftModelName = Literal["virtual-chain", "se3", "kinematic"]

_MODELS: Mapping[str, type[DriftModel]] = {
    model.method: model for model in (VirtualChainConfig, Se3Config, KinematicConfig)
}


def drift_model_config(name: str) -> DriftModel:
    """The drift model called `name`, with its defaults.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in _MODELS:
        raise UnknownNameError("drift model", name, _MODELS)
    return _MODELS[name]()
