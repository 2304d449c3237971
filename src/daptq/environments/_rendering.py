"""Fast off-screen pictures of a MuJoCo model: one graphics context for all image sizes, no shadows, no reflections.

MuJoCo's own `Renderer` makes a context per image size; switching between contexts costs more than drawing the scene.
The context comes from MuJoCo's `MUJOCO_GL` setting (`egl` or `osmesa` where there is no display).
"""

from __future__ import annotations

import contextlib

import mujoco
import numpy as np
from jaxtyping import UInt8

from daptq.observations import CameraSize


class CameraRenderer:
    """Draws pictures from the named cameras of a model.

    Args:
        model: Model to draw. Its `vis.quality.shadowsize` and `offsamples` should be 0 before this is made.
        max_size: Largest edge of a picture in pixels.
        hidden_group: Geom group that is not drawn, where the model keeps what only collides.
    """

    def __init__(self, model: mujoco.MjModel, max_size: int, *, hidden_group: int = 4) -> None:
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=4 * model.ngeom + 16)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[hidden_group] = 0
        self._cameras: dict[str, mujoco.MjvCamera] = {}
        self._window: mujoco.GLContext | None = mujoco.GLContext(max_size, max_size)
        self._window.make_current()
        self._context: mujoco.MjrContext | None = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)

    def render(self, data: mujoco.MjData, camera: str, size: CameraSize) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the picture of `camera` in this size, RGB, top row first.

        The camera's vertical field of view is the same in every size: a wider picture shows more to the sides.
        """
        if self._window is None or self._context is None:
            raise RuntimeError("renderer must be open, got a closed one. Make a new environment.")
        if camera not in self._cameras:
            view = mujoco.MjvCamera()
            view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            view.fixedcamid = self._model.camera(camera).id
            self._cameras[camera] = view
        self._window.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._option, None, self._cameras[camera], everything, self._scene)
        viewport = mujoco.MjrRect(0, 0, size.width, size.height)
        mujoco.mjr_render(viewport, self._scene, self._context)
        pixels = np.empty((*size, 3), dtype=np.uint8)
        mujoco.mjr_readPixels(pixels, None, viewport, self._context)
        return np.ascontiguousarray(pixels[::-1])

    def close(self) -> None:
        """Frees the graphics context; errors of a driver that is already closed are ignored."""
        context, self._context = self._context, None
        window, self._window = self._window, None
        with contextlib.suppress(Exception):
            if window is not None:
                window.make_current()  # what is freed is freed in the current context, which may be another renderer's
            if context is not None:
                context.free()
            if window is not None:
                window.free()
