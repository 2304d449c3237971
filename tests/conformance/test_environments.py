"""Every environment of the catalog keeps the contract, and the suite that says so notices when one does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from jaxtyping import Float
from numpy.typing import NDArray

from daptq.action_space import ActionDimension, ActionSpace
from daptq.catalog import ENVIRONMENTS
from daptq.environments.conformance import check_environment
from daptq.environments.contract import Environment, Info, Observation
from daptq.environments.tabletop import VARIANTS, TabletopEnvironment, make
from daptq.errors import CheckFailedError, InvalidInputError
from daptq.observations import STATE

# Packages that exclude the locked ones or need a download: `make test-libero` and `make test-simpler` check these.
OWN_LANE = {"libero", "simpler"}


@pytest.mark.parametrize("name", sorted(set(ENVIRONMENTS.names()) - OWN_LANE))
def test_environment_keeps_the_contract(name: str) -> None:
    module = ENVIRONMENTS.load(name)
    check_environment(lambda: module.make(image_size={"front": 32, "observation.images.wrist": (24, 32)}))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_the_contract(variant: str) -> None:
    check_environment(lambda: make(image_size={"front": 16}, horizon=8, variant=variant))


def test_the_catalog_lists_the_embedded_environment() -> None:
    assert "tabletop" in ENVIRONMENTS.names()


def test_every_environment_with_a_lane_exists_and_checks_the_contract_there() -> None:
    assert set(ENVIRONMENTS.names()) >= OWN_LANE
    for name in OWN_LANE:
        source = (Path(__file__).parents[1] / name / f"test_{name}.py").read_text(encoding="utf-8")
        assert "check_environment(" in source


class _Blind(TabletopEnvironment):
    """A sound environment without pictures: the defects below are planted in it."""

    def __init__(self) -> None:
        super().__init__(image_size={}, horizon=8)


class _Planar(_Blind):
    """Its actions are places of the gripper over the table."""

    action_dimensions: ClassVar[ActionSpace] = (ActionDimension(kind="plane", unit="m"),) * 2

    def __init__(self) -> None:
        super().__init__()
        low, high = np.array([0.2, -0.1], np.float32), np.array([0.3, 0.1], np.float32)
        self.action_space = gymnasium.spaces.Box(low, high)

    def advance(self, action: Float[np.ndarray, "2"]) -> Info:
        if np.shape(action) != (2,):
            raise InvalidInputError("action must be 2 numbers")
        return super().advance(np.array([*(action - self._position[:2]), 0, 0, 0, 0, 1], np.float32))


class _OtherDimensions(_Blind):
    action_dimensions: ClassVar[ActionSpace] = _Planar.action_dimensions


class _NoDimensions(_Blind):
    action_dimensions: ClassVar[ActionSpace] = ()


class _StateOfRows(_Blind):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = gymnasium.spaces.Dict({STATE: gymnasium.spaces.Box(-1, 1, (1, 7), np.float32)})


class _WrongJacobian(_Blind):
    def jacobian(self) -> Float[np.ndarray, "6 6"]:
        jacobian = super().jacobian()
        jacobian[3:] *= -1
        return jacobian


class _Unseeded(_Blind):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, Info]:
        observation, info = super().reset(seed=None, options=options)
        return observation, {**info, "seed": seed}


class _ForgetsTheCommandedPose(_Blind):
    def get_state(self) -> Float[np.ndarray, " state"]:
        state = super().get_state()
        state[8:14] = [0.24, 0, 0.17, 0, 0, 0]
        return state


class _AcceptsAnything(_Blind):
    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        return super().step(np.nan_to_num(np.resize(action, 7)).clip(-1, 1))


class _TerminatesOnItsOwn(_Blind):
    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, info["step_index"] == 7, truncated, info


class _NeverTruncates(_Blind):
    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, False, info


class _DoubleState(_Blind):
    def observe(self) -> Observation:
        return {key: value.astype(np.float64) for key, value in super().observe().items()}


class _NoSuccessFlag(_Blind):
    def step(self, action: NDArray[np.float32]) -> tuple[Observation, float, bool, bool, Info]:
        observation, reward, terminated, truncated, info = super().step(action)
        del info["success_by_task"]
        return observation, reward, terminated, truncated, info


class _HidesWhatIsHeld(_Blind):
    def privileged_state(self) -> dict[str, Any]:
        state = super().privileged_state()
        del state["held"]
        return state


class _StandsStillAtTheHorizon(_Blind):
    def advance(self, action: NDArray[np.float32]) -> Info:
        return self._info() if self._step >= self.horizon else super().advance(action)


class _SaysThatStatesComeBack(_Blind):
    def initial_states_of(self, task: str) -> int:
        return 24


@pytest.mark.parametrize("sound", [_Blind, _Planar])
def test_the_environment_of_the_planted_defects_is_sound(sound: type[Environment]) -> None:
    check_environment(sound)


def test_the_width_of_the_state_is_that_of_its_space() -> None:
    environment = _Blind()
    assert environment.state_dim == 7
    environment.close()


@pytest.mark.parametrize(
    ("defective", "message"),
    [
        (_OtherDimensions, r"Box of shape \(2,\), for 2 plane \[m\], got Box"),
        (_NoDimensions, "action_dimensions must hold one ActionDimension or more"),
        (_StateOfRows, "must have one axis"),
        (_WrongJacobian, "finite differences"),
        (_Unseeded, "same seed"),
        (_ForgetsTheCommandedPose, "restored episode"),
        (_AcceptsAnything, "refuse a bad action"),
        (_TerminatesOnItsOwn, "never terminate"),
        (_NeverTruncates, "truncated at step 8"),
        (_DoubleState, "must be float32"),
        (_NoSuccessFlag, "success_by_task"),
        (_HidesWhatIsHeld, "'held' or None"),
        (_SaysThatStatesComeBack, "24 initial states must come back"),
        (_StandsStillAtTheHorizon, "beyond the horizon"),
    ],
)
def test_a_planted_defect_is_found(defective: type[Environment], message: str) -> None:
    with pytest.raises(CheckFailedError, match=message):
        check_environment(defective)
