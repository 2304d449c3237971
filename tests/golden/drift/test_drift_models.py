"""Displacement Jacobians against finite differences of MuJoCo's forward kinematics, and G against loops over them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA as SPACE
from daptq.action_space import ActionDimension, ActionSpace
from daptq.drift import poses
from daptq.drift.contract import mean_square, normalised
from daptq.drift.models.kinematic import Commands, KinematicConfig
from daptq.drift.models.kinematic import displacement_jacobian as kinematic_jacobian
from daptq.drift.models.se3 import Se3Config
from daptq.drift.models.se3 import displacement_jacobian as se3_jacobian
from daptq.drift.models.virtual_chain import VirtualChainConfig, drift_weights
from daptq.drift.serial_chain import damped_inverse
from daptq.environments.kinematics import POINTING_DOWN, ArmKinematics, euler_from_matrix
from daptq.environments.tabletop.objects import SCENES
from daptq.environments.tabletop.scene import FINGER_CLOSED, FINGER_OPEN, build_model
from daptq.environments.tabletop.world import HOME_POSITION
from daptq.robots.widowx_250 import JOINTS, SITE

Array = NDArray[np.float64]

LEVER, TRAVEL, GAP = 0.1, 0.011, 0.03
CHUNK = 4
# Central differences with a step of 1e-6: truncation 1e-12, cancellation of metres 1e-16 / 1e-6 ~ 1e-10; times ten.
STEP, TOLERANCE = 1e-6, 1e-9

JOINT = ActionDimension(kind="joint-delta", unit="rad")

FLYING_GRIPPER = f"""
<mujoco><compiler angle="radian"/><worldbody><body name="gripper"><freejoint/>
  <geom size="0.01"/><site name="tool" pos="{LEVER} 0 0"/><site name="tip" pos="{LEVER} {GAP} 0"/>
  <body name="finger" pos="{LEVER} 0 0"><joint type="slide" axis="0 1 0"/><geom size="0.01"/></body>
</body></worldbody></mujoco>"""


def chunks_of(n: int, width: int = 7, *, size: float = 0.3, seed: int = 0) -> Tensor:
    """Chunks whose rotations are large, where small-angle formulas fail."""
    return size * torch.randn(n, CHUNK, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def differences(points: Callable[[Array], Array], chunk: Array) -> Array:
    """Derivative (chunk, rows, chunk * action) of a function of the chunk, by central differences."""
    columns = []
    for index in np.ndindex(*chunk.shape):
        up, down = chunk.copy(), chunk.copy()
        up[index] += STEP
        down[index] -= STEP
        columns.append((points(up) - points(down)) / (2 * STEP))
    return np.stack(columns, axis=-1)


def flying_points(chunk: Array, angles: Array, frame: str) -> Array:
    """Tool point and finger travel of a free body in MuJoCo that composes its pose from quaternions."""
    model = mujoco.MjModel.from_xml_string(FLYING_GRIPPER)
    data = mujoco.MjData(model)
    quaternion = Rotation.from_matrix(Rotation.from_euler("XYZ", angles).as_matrix() @ POINTING_DOWN).as_quat()[
        [3, 0, 1, 2]
    ]
    position = np.zeros(3)
    rows = []
    for action in chunk:
        turn = np.array([1.0, 0.0, 0.0, 0.0])
        for axis, angle in zip(np.eye(3), action[3:6], strict=True):
            one, product = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(one, axis, angle)
            mujoco.mju_mulQuat(product, turn, one)
            turn = product
        moved, product = action[:3].copy(), np.zeros(4)
        if frame == "tool":
            mujoco.mju_rotVecQuat(moved, action[:3].copy(), quaternion)
            mujoco.mju_mulQuat(product, quaternion, turn)
        else:
            mujoco.mju_mulQuat(product, turn, quaternion)
        position, quaternion = position + moved, product
        data.qpos[:] = [*position, *quaternion, TRAVEL * action[6]]
        mujoco.mj_kinematics(model, data)
        tool, body = data.site_xpos[0].copy(), data.body("finger")
        travel = float((body.xpos - tool) @ body.xmat.reshape(3, 3)[:, 1])
        rows.append([*tool, travel, *(data.site_xpos[1] - tool)])
    return np.array(rows)


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_se3_jacobian_is_the_derivative_of_a_flying_gripper(frame: poses.Frame) -> None:
    chunks = chunks_of(3)
    angles = chunks_of(3, 3, seed=1)[:, 0]
    exact = se3_jacobian(chunks, angles, frame=frame, lever=LEVER, gripper_travel=TRAVEL, half_gap=GAP)
    for chunk, start, jacobian in zip(chunks.numpy(), angles.numpy(), exact.numpy(), strict=True):

        def points(c: Array, start: Array = start) -> Array:
            return flying_points(c, start, frame)

        np.testing.assert_allclose(jacobian, differences(points, chunk), rtol=0, atol=TOLERANCE)


def test_the_frames_differ_where_a_gripper_turns() -> None:
    chunks, angles = chunks_of(2), torch.zeros(2, 3, dtype=torch.float64)
    base, tool = (
        se3_jacobian(chunks, angles, frame=frame, lever=LEVER, gripper_travel=TRAVEL, half_gap=GAP)
        for frame in ("base", "tool")
    )
    assert float((base - tool).abs().max()) > 0.1


@cache
def tabletop_model() -> mujoco.MjModel:
    return build_model(next(iter(SCENES)))


@cache
def tabletop_arm() -> ArmKinematics:
    return ArmKinematics(tabletop_model(), JOINTS, SITE)


def fingertips(joints: Array, gripper: float) -> Array:
    """Tool point, travel, and a fingertip relative to the tool point, of the simulated arm."""
    position, rotation = tabletop_arm().forward(joints)
    return np.array([*(position + LEVER * rotation[:, 0]), TRAVEL * gripper, *(GAP * rotation[:, 1])])


def reachable_state(seed: int) -> Tensor:
    draw = np.random.default_rng(seed).uniform(-1, 1, 6)
    return torch.tensor([*(np.array(HOME_POSITION) + 0.04 * draw[:3]), *(0.3 * draw[3:]), 1.0], dtype=torch.float64)


def joints_of(state: Tensor) -> Array:
    """Joints at a state, by the simulator's own inverse kinematics."""
    rotation = Rotation.from_euler("XYZ", state[3:6].numpy()).as_matrix() @ POINTING_DOWN
    start = np.array(KinematicConfig().rest)
    return tabletop_arm().inverse(start, state[:3].numpy(), rotation, iterations=300, tolerance=1e-13)


def test_built_in_arm_is_the_simulated_one() -> None:
    chain = KinematicConfig().chain()
    joints = torch.rand(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    position, rotation = chain.forward(joints)
    jacobian = chain.jacobian(joints)
    for i, q in enumerate(joints.numpy()):
        expected, orientation = tabletop_arm().forward(q)
        # Seven products of rotations and sums below a metre: a few 1e-16 each.
        np.testing.assert_allclose(position[i].numpy(), expected, rtol=0, atol=1e-14)
        np.testing.assert_allclose(rotation[i].numpy(), orientation, rtol=0, atol=1e-14)
        np.testing.assert_allclose(jacobian[i].numpy(), tabletop_arm().jacobian(q), rtol=0, atol=1e-14)
    limits = tabletop_model().jnt_range[[tabletop_model().joint(name).id for name in JOINTS]]
    np.testing.assert_array_equal(torch.stack([chain.low, chain.high], dim=1).numpy(), limits)


def test_conventions_are_the_tabletops() -> None:
    assert np.array_equal(poses.pointing_down().numpy(), POINTING_DOWN)
    angles = chunks_of(5, 3, size=0.6)[:, 0]
    matrices = poses.matrix_from_euler(angles)
    for row, matrix in zip(angles.numpy(), matrices.numpy(), strict=True):
        np.testing.assert_allclose(euler_from_matrix(matrix), row, rtol=0, atol=1e-14)
    vectors = Rotation.from_matrix(matrices.numpy()).as_rotvec()
    # Both take the angle from sums of at most ten products of numbers below 2.
    np.testing.assert_allclose(poses.rotation_vector(matrices).numpy(), vectors, rtol=0, atol=1e-14)
    # The gripper's action runs from -1 to +1 while each fingertip travels from closed to open.
    assert pytest.approx((FINGER_OPEN - FINGER_CLOSED) / 2, rel=1e-12) == Se3Config().gripper_travel
    assert KinematicConfig().gripper_travel == Se3Config().gripper_travel


def test_inverse_kinematics_finds_the_state() -> None:
    chain = KinematicConfig().chain()
    for seed in range(5):
        expected = torch.from_numpy(joints_of(reachable_state(seed)))
        position, rotation = chain.forward(expected[None])
        start = torch.tensor([KinematicConfig().rest], dtype=torch.float64)
        joints, reached = chain.inverse(start, position, rotation)
        assert bool(reached.all())
        # Both stop at pose errors of 1e-11; the arm's least singular value here is above 0.01.
        torch.testing.assert_close(joints[0], expected, rtol=0, atol=2e-9)


def test_joint_space_jacobian_is_the_derivative_of_the_arm() -> None:
    config = KinematicConfig(action_space="joint-delta", lever=LEVER)
    chunk, start = chunks_of(1, seed=3), joints_of(reachable_state(1))

    def points(c: Array) -> Array:
        return np.array([fingertips(start + c[: k + 1, :6].sum(axis=0), c[k, 6]) for k in range(CHUNK)])

    exact = kinematic_jacobian(
        chunk,
        torch.from_numpy(start)[None],
        config.chain(),
        action_space="joint-delta",
        lever=LEVER,
        gripper_travel=TRAVEL,
        half_gap=GAP,
        damping=0.01,
    )
    np.testing.assert_allclose(exact[0].numpy(), differences(points, chunk[0].numpy()), rtol=0, atol=TOLERANCE)


def test_absolute_joints_move_the_arm_until_the_next_command() -> None:
    config = KinematicConfig(action_space="joint", lever=LEVER, gripper_travel=TRAVEL, half_gap=GAP)
    chunks = torch.from_numpy(joints_of(reachable_state(1))) + 0.1 * chunks_of(2, 6, seed=5)
    chunks = torch.cat([chunks, chunks_of(2, 1, seed=6)], dim=2)
    expected = np.zeros((CHUNK * 7, CHUNK * 7))
    for chunk in chunks.numpy():

        def points(c: Array) -> Array:
            return np.array([fingertips(c[k, :6], c[k, 6]) for k in range(CHUNK)])

        expected += loop_metric(differences(points, chunk)[None], 3) / 2
    space = (ActionDimension(kind="joint", unit="rad"),) * 6 + SPACE[6:]
    metric = config.metric(chunks, None, space=space, steps=3)
    # Entries up to 1e6 mm^2 per unit of differences that err by 1e-9.
    np.testing.assert_allclose(metric.numpy(), expected, rtol=0, atol=1e-2)
    anywhere = config.metric(chunks, torch.full((2, 1), torch.nan), space=space, steps=3)
    assert torch.equal(anywhere, metric)


def test_states_may_hold_joints_or_nothing_of_use() -> None:
    chunks, states = chunks_of(3, size=0.02), torch.stack([reachable_state(seed) for seed in range(3)])
    joints = torch.from_numpy(np.stack([joints_of(state) for state in states]))
    spaces: dict[Commands, ActionSpace] = {"cartesian-delta": SPACE, "joint-delta": (JOINT,) * 6 + SPACE[6:]}
    for commands, space in spaces.items():
        by_pose = KinematicConfig(action_space=commands).metric(chunks, states, space=space, steps=2)
        held = KinematicConfig(action_space=commands, state="joints")
        # Inverse kinematics agree to 2e-9, entries of 1e6 mm^2 change with them by at most about 1e2 of that.
        torch.testing.assert_close(held.metric(chunks, joints, space=space, steps=2), by_pose, rtol=0, atol=0.2)
        rest = KinematicConfig(action_space=commands, state="rest")
        assert torch.equal(
            rest.metric(chunks, states[:, :2], space=space, steps=2), rest.metric(chunks, None, space=space, steps=2)
        )
    rest_of_free = Se3Config(state="rest").metric(chunks, states[:, :2], space=SPACE, steps=2)
    assert torch.equal(rest_of_free, Se3Config().metric(chunks, None, space=SPACE, steps=2))


def commanded(chunk: Array, position: Array, rotation: Array) -> list[tuple[Array, Array]]:
    poses = []
    for action in chunk:
        position = position + action[:3]
        rotation = Rotation.from_euler("XYZ", action[3:6]).as_matrix() @ rotation
        poses.append((position, rotation))
    return poses


@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_cartesian_jacobian_is_the_derivative_of_the_arm_that_follows(damping: float) -> None:
    chunk, start = chunks_of(1, size=0.02, seed=4), joints_of(reachable_state(2))
    arm = tabletop_arm()
    pose = arm.forward(start)
    nominal, joints = [], start
    for position, rotation in commanded(chunk[0].numpy(), *pose):
        joints = arm.inverse(joints, position, rotation, iterations=300, tolerance=1e-13)
        jacobian = arm.jacobian(joints)
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + damping**2 * np.eye(6))
        nominal.append((joints, inverse, position, rotation))

    def points(c: Array) -> Array:
        rows = []
        for k, (position, rotation) in enumerate(commanded(c, *pose)):
            q, inverse, p, r = nominal[k]
            error = np.concatenate([position - p, Rotation.from_matrix(rotation @ r.T).as_rotvec()])
            rows.append(fingertips(q + inverse @ error, c[k, 6]))
        return np.array(rows)

    exact = kinematic_jacobian(
        chunk,
        torch.from_numpy(start)[None],
        KinematicConfig().chain(),
        action_space="cartesian-delta",
        lever=LEVER,
        gripper_travel=TRAVEL,
        half_gap=GAP,
        damping=damping,
    )
    # The joints of both agree to 2e-9; the derivative moves with them by a factor of about one over the damping.
    np.testing.assert_allclose(exact[0].numpy(), differences(points, chunk[0].numpy()), rtol=0, atol=2e-7)


def test_damped_inverse_is_that_of_the_formula() -> None:
    jacobian = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, result in zip(jacobian.numpy(), damped_inverse(jacobian, 0.2).numpy(), strict=True):
        expected = one.T @ np.linalg.inv(one @ one.T + 0.04 * np.eye(6))
        # The Gram matrix has a condition number of about 20 / 0.04: 500 * 2e-16 * a few.
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def loop_metric(jacobian: Array, steps: int) -> Array:
    """G written out: mean over samples and executed actions of sums of products, in mm^2."""
    n, _, rows, size = jacobian.shape
    metric = np.zeros((size, size))
    for i in range(n):
        for k in range(steps):
            for row in range(rows):
                metric += 1e6 * np.outer(jacobian[i, k, row], jacobian[i, k, row]) / (n * steps)
    return metric


def origin(state: Tensor) -> tuple[Tensor, Tensor]:
    rotation = poses.matrix_from_euler(state[None, 3:6]) @ poses.pointing_down()
    return torch.zeros(1, 3, dtype=torch.float64), rotation


def test_metric_is_the_mean_square_of_the_displacement() -> None:
    chunks = chunks_of(5, size=0.05)
    states = torch.stack([reachable_state(seed) for seed in range(5)])
    settings = {"lever": LEVER, "gripper_travel": TRAVEL, "half_gap": GAP}
    jacobian = se3_jacobian(chunks, states[:, 3:6], frame="base", **settings)
    metric = Se3Config(half_gap=GAP).metric(chunks.float(), states.float(), space=SPACE, steps=3)
    np.testing.assert_allclose(metric.numpy(), loop_metric(jacobian.numpy(), 3), rtol=0, atol=1.0)  # float32 inputs
    metric = Se3Config(half_gap=GAP).metric(chunks, states, space=SPACE, steps=3)
    # Entries up to 1e6 from sums of 60 terms.
    np.testing.assert_allclose(metric.numpy(), loop_metric(jacobian.numpy(), 3), rtol=0, atol=1e-8)
    error = chunks_of(1, size=1e-3, seed=9).flatten()
    moved = (jacobian @ error)[:, :3].numpy()
    across = np.stack(
        [
            poses.compose(c[None, :, :6], *origin(s), "base")[1][0, 1:4, :, 1]
            for c, s in zip(chunks, states, strict=True)
        ]
    )
    both = [moved[..., :3] + sign * (moved[..., 4:] + moved[..., 3:4] * across) for sign in (1, -1)]
    # What G means: the squared displacement of the two fingertips, averaged.
    expected = 1e6 * float(np.square(both).sum()) / 2 / 15
    assert float(error @ metric @ error) == pytest.approx(expected, rel=1e-12)

    joints = torch.from_numpy(np.stack([joints_of(state) for state in states]))
    followed = kinematic_jacobian(
        chunks, joints, KinematicConfig().chain(), action_space="cartesian-delta", damping=0.01, **settings
    )
    metric = KinematicConfig(half_gap=GAP).metric(chunks, states, space=SPACE, steps=3)
    # The joints agree to 2e-9, entries of 1e6 mm^2 change with them by at most about 1e2 of that.
    np.testing.assert_allclose(metric.numpy(), loop_metric(followed.numpy(), 3), rtol=0, atol=0.2)


def test_batches_do_not_change_the_metric() -> None:
    jacobian = torch.randn(10, CHUNK, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(mean_square(jacobian.split(3), 2), mean_square([jacobian], 2), rtol=1e-13, atol=1e-6)


def test_weights_are_the_diagonal_in_normalised_units() -> None:
    unit = torch.tensor([0.01, 0.02, 0.03, 0.1, 0.2, 0.3, 1.0], dtype=torch.float64)
    actions = chunks_of(6)[:, 0]
    for model in (Se3Config(), KinematicConfig()):
        metric = model.metric(actions[:, None], None, space=SPACE, steps=1).numpy()
        raw = [metric[i, i] * float(unit[i]) ** 2 for i in range(7)]
        expected = [value / (sum(raw) / 7) for value in raw]
        assert model.weights(actions, unit, space=SPACE).tolist() == pytest.approx(expected, rel=1e-12)
        assert torch.equal(model.weights(actions, space=SPACE), normalised(torch.from_numpy(metric), None))


def test_metric_of_the_virtual_chain_is_the_papers_weights() -> None:
    chunks = chunks_of(3)
    metric = VirtualChainConfig().metric(chunks, None, space=SPACE, steps=2)
    weights = drift_weights(chunks[:, :2].reshape(6, 7))
    assert torch.equal(metric, torch.diag(metric.diagonal()))
    expected = torch.cat([weights * 5e5, weights * 5e5, torch.zeros(14, dtype=torch.float64)])
    torch.testing.assert_close(metric.diagonal(), expected, rtol=1e-15, atol=0)
