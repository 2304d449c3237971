"""Benchmark environments, one per file; `contract` holds what each fulfils, and the public checks.

Importing this package imports no simulator.
"""

import os
import sys

# MuJoCo chooses its graphics library when it is first imported, and without a screen its default choice cannot draw.
if sys.platform == "linux" and not os.environ.get("DISPLAY"):
    os.environ.setdefault("MUJOCO_GL", "egl")
