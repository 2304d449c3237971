"""What must hold for every chunk, every state and every rounding error."""

from __future__ import annotations

from dataclasses import asdict
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionKind, ActionSpace, ActionUnit
from daptq.catalog import DRIFT_MODELS
from daptq.drift.contract import DriftModel
from daptq.drift.models.action import ActionConfig
from daptq.drift.models.kinematic import KinematicConfig
from daptq.drift.models.se3 import Se3Config
from daptq.drift.models.virtual_chain import VirtualChainConfig
from daptq.sensitivity.probe import metric_root, probe
from daptq.sensitivity.rounding import RoundingSensitivity

SEEDS = st.integers(0, 10_000)
CHUNK = 3
MODELS: list[DriftModel] = [
    VirtualChainConfig(),
    Se3Config(),
    Se3Config(frame="tool", half_gap=0.02),
    KinematicConfig(),
    KinematicConfig(action_space="joint-delta"),
    KinematicConfig(action_space="joint"),
    ActionConfig(),
]
SPACE = END_EFFECTOR_DELTA


def space_of(model: DriftModel) -> ActionSpace:
    """Seven dimensions that the model reads."""
    if isinstance(model, KinematicConfig) and model.action_space != "cartesian-delta":
        return (*(ActionDimension(kind=model.action_space, unit="rad") for _ in model.joints), SPACE[6])
    return SPACE


models = pytest.mark.parametrize(
    "model", MODELS, ids=["virtual chain", "se3 base", "se3 tool", "cartesian", "joint deltas", "joints", "action"]
)


def draws(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chunks_of(n: int, seed: int) -> Tensor:
    return 0.02 * draws(n, CHUNK, 7, seed=seed)


def states_of(n: int, seed: int) -> Tensor:
    home = torch.tensor([0.24, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    spread = torch.tensor([0.03, 0.03, 0.03, 0.2, 0.2, 0.5, 0.0], dtype=torch.float64)
    return home + spread * (2 * torch.rand(n, 7, generator=torch.Generator().manual_seed(seed)).double() - 1)


def least_eigenvalue(matrix: Tensor) -> float:
    return float(torch.linalg.eigvalsh(matrix)[0])


def translations(metric: Tensor) -> Tensor:
    """The part of a metric that belongs to translation errors."""
    kept = torch.arange(CHUNK * 7).reshape(CHUNK, 7)[:, :3].flatten()
    return metric[kept][:, kept]


def test_every_listed_model_is_tested() -> None:
    listed = {DRIFT_MODELS.load(name).DRIFT_MODEL for name in DRIFT_MODELS.names()}
    assert {type(model) for model in MODELS} == listed
    assert {kind.method for kind in listed} == set(DRIFT_MODELS.names())


@models
@given(seed=SEEDS, steps=st.integers(1, CHUNK), known=st.booleans())
def test_metric_is_symmetric_positive_and_ends_with_the_executed_actions(
    model: DriftModel, seed: int, steps: int, known: bool
) -> None:
    states = states_of(2, seed) if known else None
    metric = model.metric(chunks_of(2, seed), states, space=space_of(model), steps=steps)
    assert metric.dtype == torch.float64
    assert torch.equal(metric, metric.mT)
    largest = float(metric.abs().max())
    assert largest > 0
    assert least_eigenvalue(metric) >= -1e-12 * largest
    assert not metric[7 * steps :].any()
    assert bool(metric.diagonal()[7 * steps - 1] > 0)  # The last executed action's gripper moves the fingers.


@models
@given(n=st.integers(1, 8), seed=SEEDS, scaled=st.booleans())
def test_weights_average_one_and_are_not_negative(model: DriftModel, n: int, seed: int, scaled: bool) -> None:
    unit = draws(7, seed=seed).abs() + 1e-3 if scaled else None
    weights = model.weights(chunks_of(n, seed)[:, 0], unit, space=space_of(model))
    assert weights.shape == (7,)
    assert weights.dtype == torch.float64
    # Seven divisions and a sum of seven, rounded to 1.1e-16 each.
    assert abs(float(weights.mean()) - 1.0) <= 1e-15
    assert bool((weights >= 0).all())


@models
@given(seed=SEEDS, data=st.data())
def test_metric_does_not_depend_on_the_order_of_chunks(model: DriftModel, seed: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(4)))
    chunks, states = chunks_of(4, seed), states_of(4, seed)
    direct = model.metric(chunks, states, space=space_of(model), steps=2)
    permuted = model.metric(chunks[order], states[order], space=space_of(model), steps=2)
    # Inverse kinematics stops for all samples together, at pose errors below 1e-11.
    torch.testing.assert_close(permuted, direct, rtol=0, atol=1e-9 * float(direct.max()))


@given(seed=SEEDS, size=st.floats(0.0, 0.1), lever=st.floats(0.0, 0.3))
def test_translations_in_the_base_frame_leave_the_metric_alone(seed: int, size: float, lever: float) -> None:
    chunks = torch.zeros(2, CHUNK, 7, dtype=torch.float64)
    states = states_of(2, seed)
    still = Se3Config(lever=lever).metric(chunks, states, space=SPACE, steps=CHUNK)
    chunks[..., :3] = size * draws(2, CHUNK, 3, seed=seed)
    chunks[..., 6] = draws(2, CHUNK, seed=seed)
    torch.testing.assert_close(
        Se3Config(lever=lever).metric(chunks, states, space=SPACE, steps=CHUNK), still, rtol=0, atol=1e-8
    )


def test_in_the_tool_frame_translations_do_change_the_metric() -> None:
    chunks = torch.zeros(1, CHUNK, 7, dtype=torch.float64)
    still = Se3Config(frame="tool").metric(chunks, None, space=SPACE, steps=CHUNK)
    chunks[..., :3] = 0.05
    assert float((Se3Config(frame="tool").metric(chunks, None, space=SPACE, steps=CHUNK) - still).abs().max()) > 10.0


@given(seed=SEEDS, damping=st.floats(1e-3, 1.0))
def test_an_arm_never_follows_a_translation_more_than_a_free_gripper(seed: int, damping: float) -> None:
    chunks, states = chunks_of(2, seed), states_of(2, seed)
    free = translations(Se3Config(lever=0.0).metric(chunks, states, space=SPACE, steps=CHUNK))
    arm = translations(KinematicConfig(lever=0.0, damping=damping).metric(chunks, states, space=SPACE, steps=CHUNK))
    # J J^T (J J^T + l^2 I)^-1 is symmetric with eigenvalues in [0, 1); entries reach 3e6 mm^2.
    assert least_eigenvalue(free - arm) >= -1e-6
    assert float((free - arm).diagonal().min()) > 0


def test_a_stiff_arm_is_a_free_gripper() -> None:
    chunks, states = chunks_of(2, 0), states_of(2, 0)
    free = Se3Config().metric(chunks, states, space=SPACE, steps=CHUNK)
    arm = KinematicConfig(damping=1e-5).metric(chunks, states, space=SPACE, steps=CHUNK)
    # The least singular value of the arm is above 0.01 here: (1e-5 / 0.01)^2 of at most 3e6 mm^2.
    torch.testing.assert_close(arm, free, rtol=0, atol=6.0)


@pytest.mark.parametrize("kind", [Se3Config, KinematicConfig])
@given(seed=SEEDS)
def test_fingertips_add_displacement_and_see_every_rotation(
    kind: type[Se3Config] | type[KinematicConfig], seed: int
) -> None:
    chunks, states = chunks_of(2, seed), states_of(2, seed)
    point, tips = (kind(half_gap=gap).metric(chunks, states, space=SPACE, steps=CHUNK) for gap in (0.0, 0.02))
    assert least_eigenvalue(tips - point) >= -1e-6  # Entries reach 3e6 mm^2.
    still = torch.zeros(1, 1, 7, dtype=torch.float64)
    yaw = [float(kind(half_gap=gap).metric(still, None, space=SPACE, steps=1)[5, 5]) for gap in (0.0, 0.02)]
    # A gripper that points down: (20 mm per rad)^2, and nothing without fingertips; the arm follows to a few percent.
    assert yaw[0] < 1.0
    assert yaw[1] == pytest.approx(400.0, rel=0.1)


@given(seed=SEEDS, shift=st.floats(-0.1, 0.1))
def test_metric_of_a_free_gripper_does_not_depend_on_where_it_is(seed: int, shift: float) -> None:
    chunks, states = chunks_of(2, seed), states_of(2, seed)
    moved = states.clone()
    moved[:, :3] += shift
    for model in (Se3Config(), Se3Config(frame="tool")):
        assert torch.equal(
            model.metric(chunks, states, space=SPACE, steps=2), model.metric(chunks, moved, space=SPACE, steps=2)
        )


DIMENSIONS = st.builds(
    ActionDimension,
    kind=st.sampled_from(get_args(ActionKind)),
    unit=st.sampled_from(get_args(ActionUnit)),
    arm=st.integers(0, 2),
)
SPACES = st.lists(DIMENSIONS, min_size=1, max_size=9).map(tuple)


@given(space=SPACES, steps=st.integers(1, CHUNK), factor=st.floats(0.1, 10.0), seed=SEEDS)
def test_the_action_model_reads_every_space_and_scales_with_its_lengths(
    space: ActionSpace, steps: int, factor: float, seed: int
) -> None:
    model = ActionConfig()
    assert model.refuses(space) is None
    chunks = draws(2, CHUNK, len(space), seed=seed)
    metric = model.metric(chunks, None, space=space, steps=steps)
    assert torch.equal(metric, torch.diag(metric.diagonal()))
    assert bool((metric.diagonal()[: steps * len(space)] > 0).all())
    assert not metric[steps * len(space) :].any()
    # The mean over fewer actions is larger; the sum over actions is the same.
    whole = model.metric(chunks, None, space=space, steps=CHUNK)
    torch.testing.assert_close(metric.trace(), whole.trace(), rtol=1e-13, atol=0)
    longer = ActionConfig(**{name: factor * length for name, length in asdict(model).items()})
    expected = [1.0 if dimension.unit == "m" else factor**2 for dimension in space] * CHUNK
    scaled = longer.metric(chunks, None, space=space, steps=CHUNK).diagonal()
    torch.testing.assert_close(
        scaled, whole.diagonal() * torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0
    )


@given(space=SPACES)
def test_only_the_action_model_reads_every_space(space: ActionSpace) -> None:
    for model in MODELS:
        reason = model.refuses(space)
        assert reason is None or reason.startswith("it reads "), reason
        if len(space) != 7 and not isinstance(model, ActionConfig):
            assert reason is not None


def costs(weights: dict[str, Tensor], changes: dict[str, Tensor], seed: int) -> dict[str, dict[int, float]]:
    """Second moments of two steps of a product of layers, in the order of `weights`."""
    generator = torch.Generator().manual_seed(seed)
    sensitivity = RoundingSensitivity(
        weights, lambda name, bits: weights[name].detach() + changes[name] / 2 ** (bits - 2), (2, 3)
    )
    root = metric_root(torch.eye(4, dtype=torch.float64))
    for step in range(2):
        inputs = draws(5, 3, seed=seed + step)
        chunk = (inputs @ weights["a"].mT @ weights["b"].mT).reshape(5, 2, 2)
        sensitivity.update(probe(chunk, root, generator))
    return sensitivity.second_moment()


@given(SEEDS)
def test_cost_is_quadratic_zero_without_a_change_and_blind_to_order(seed: int) -> None:
    weights = {"a": draws(6, 3, seed=seed).requires_grad_(), "b": draws(4, 6, seed=seed + 1).requires_grad_()}
    changes = {"a": draws(6, 3, seed=seed + 2), "b": torch.zeros(4, 6, dtype=torch.float64)}
    result = costs(weights, changes, seed)
    assert result["b"] == {2: 0.0, 3: 0.0}
    assert result["a"][3] > 0
    # Three bits change half as much here; a product that nearly cancels keeps 1e-16 of its terms of about 10.
    assert result["a"][2] == pytest.approx(4 * result["a"][3], rel=1e-9, abs=1e-12)
    assert costs({"b": weights["b"], "a": weights["a"]}, changes, seed) == result


@given(SEEDS, st.integers(1, 5))
def test_root_times_its_transpose_is_the_metric(seed: int, rank: int) -> None:
    factor = draws(5, rank, seed=seed)
    metric = factor @ factor.mT
    root = metric_root(metric)
    torch.testing.assert_close(root @ root.mT, metric, rtol=0, atol=1e-13)
