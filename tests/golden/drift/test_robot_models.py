"""Chains read from robot models against MuJoCo's own kinematics of the whole model."""

from __future__ import annotations

import math
from pathlib import Path

import mujoco
import numpy as np
import torch

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension
from daptq.drift.mjcf import read_chain
from daptq.drift.models.kinematic import KinematicConfig
from daptq.robots.widowx_250 import JOINTS, MJCF, SITE

CHUNK = 4

ODD_ROBOT = """
<mujoco><compiler angle="degree"/>
<default><joint axis="0 1 0" range="-90 90"/><default class="roll"><joint axis="1 0 0"/></default></default>
<worldbody><body pos="0.1 0.2 0.3" quat="0.9 0.1 -0.3 0.2"><geom size="0.01"/>
  <joint name="a" pos="0.01 0.02 0.03"/><joint name="b" axis="0 2 1" pos="-0.02 0 0.05" range="-30 60"/>
  <body pos="0 0.3 0" childclass="roll"><geom size="0.01"/><joint name="c"/>
    <body pos="0.2 0 0" quat="0 1 0 1"><geom size="0.01"/><joint name="d" class="main" limited="false"/>
      <site name="hand" pos="0.05 0.01 0" quat="1 0 0 0.5"/>
    </body></body></body></worldbody></mujoco>"""


def test_a_robot_from_a_file_moves_as_in_the_simulator(tmp_path: Path) -> None:
    path = tmp_path / "odd.xml"
    path.write_text(ODD_ROBOT)
    names = ("a", "b", "c", "d")
    config = KinematicConfig(
        robot=str(path), joints=names, site="hand", rest=(0.1, 0.2, -0.3, 0.4), action_space="joint-delta"
    )
    chain = config.chain()
    model = mujoco.MjModel.from_xml_string(ODD_ROBOT)
    data = mujoco.MjData(model)
    joints = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    position, rotation = chain.forward(joints)
    jacobian = chain.jacobian(joints)
    for i, q in enumerate(joints.numpy()):
        data.qpos[:] = q
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        full = np.zeros((6, 4))
        mujoco.mj_jacSite(model, data, full[:3], full[3:], 0)
        np.testing.assert_allclose(position[i].numpy(), data.site_xpos[0], rtol=0, atol=1e-14)
        np.testing.assert_allclose(rotation[i].numpy(), data.site_xmat[0].reshape(3, 3), rtol=0, atol=1e-14)
        np.testing.assert_allclose(jacobian[i].numpy(), full, rtol=0, atol=1e-14)
    np.testing.assert_allclose(chain.low[:3].numpy(), model.jnt_range[:3, 0], rtol=1e-15)
    np.testing.assert_allclose(chain.high[:3].numpy(), model.jnt_range[:3, 1], rtol=1e-15)
    assert math.isinf(float(chain.low[3]))
    chunks = 0.3 * torch.randn(2, CHUNK, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    space = (ActionDimension(kind="joint-delta", unit="rad"),) * 4 + END_EFFECTOR_DELTA[6:]
    metric = config.metric(chunks, None, space=space, steps=CHUNK)
    assert metric.shape == (CHUNK * 5, CHUNK * 5)
    assert float(metric.diagonal().min()) > 0


def test_a_saved_model_is_read_as_the_model(tmp_path: Path) -> None:
    path = tmp_path / "saved.xml"
    mujoco.mj_saveLastXML(str(path), mujoco.MjModel.from_xml_string(ODD_ROBOT))
    joints = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ("a", "b", "c", "d")
    saved, original = (read_chain(xml, names, "hand").forward(joints) for xml in (path.read_text(), ODD_ROBOT))
    torch.testing.assert_close(saved[0], original[0], rtol=0, atol=1e-5)  # MuJoCo writes six digits


UNUSED = """
<mujoco><compiler angle="radian"/>
<asset><mesh name="hull" file="not_there.stl"/>
<material name="steel" texture="t"/><texture name="t" file="no.png"/></asset>
<default><geom type="mesh" mesh="hull" material="steel"/><site material="steel"/></default>
<worldbody><frame euler="0 0 0.5"><body pos="0.1 0 0" euler="0.3 0.2 0.1"><geom mass="1"/>
  <joint name="a" axis="0 1 0"/>
  <body pos="0 0 0.2"><camera name="c"/><geom/><site name="hand" pos="0 0 0.1"/><site name="other"/></body>
</body></frame></worldbody>
<actuator><motor joint="a"/></actuator><sensor><framepos objtype="site" objname="other"/></sensor>
</mujoco>"""


def test_missing_meshes_and_everything_beside_the_way_do_no_harm() -> None:
    bare = """<mujoco><compiler angle="radian"/><worldbody><frame euler="0 0 0.5">
    <body pos="0.1 0 0" euler="0.3 0.2 0.1"><geom size="0.01"/><joint name="a" axis="0 1 0"/>
    <site name="hand" pos="0 0 0.3"/></body></frame></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(bare)
    data = mujoco.MjData(model)
    data.qpos[:] = 0.4
    mujoco.mj_kinematics(model, data)
    joints = torch.full((1, 1), 0.4, dtype=torch.float64)
    position, rotation = read_chain(UNUSED, ("a",), "hand").forward(joints)
    np.testing.assert_allclose(position[0].numpy(), data.site_xpos[0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(rotation[0].numpy(), data.site_xmat[0].reshape(3, 3), rtol=0, atol=1e-15)


def test_the_built_in_arm_is_its_text_bit_for_bit() -> None:
    chain = KinematicConfig().chain()
    x, y, z = [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]
    positions = [
        [0.0, 0.0, 0.072],
        [0.0, 0.0, 0.03865],
        [0.04975, 0.0, 0.25],
        [0.175, 0.0, 0.0],
        [0.075, 0.0, 0.0],
        [0.065, 0.0, 0.0],
        [0.093575, 0.0, 0.0],
    ]
    expected = {
        "positions": positions,
        "rotations": [[x, y, z]] * 7,
        "axes": [z, y, y, x, y, x],
        "low": [-3.14158, -1.88496, -2.14675, -3.14158, -1.74533, -3.14158],
        "high": [3.14158, 1.98968, 1.6057, 3.14158, 2.14675, 3.14158],
    }
    for name, values in expected.items():
        assert getattr(chain, name).numpy().tobytes() == np.array(values).tobytes(), name


def test_the_built_in_arm_is_read_from_its_own_text() -> None:
    longer = MJCF.replace('pos="0.093575 0 0"', 'pos="0.193575 0 0"')
    joints = torch.zeros(1, 6, dtype=torch.float64)
    position, rotation = KinematicConfig().chain().forward(joints)
    moved, _ = read_chain(longer, JOINTS, SITE).forward(joints)
    torch.testing.assert_close(moved, position + 0.1 * rotation[:, :, 0], rtol=0, atol=1e-15)
