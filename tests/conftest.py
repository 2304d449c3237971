"""Settings that every test relies on: headless rendering, fixed seeds, few threads, the devices that exist."""

from __future__ import annotations

import os
import random

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "2")

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(2)

# A shared machine is slow at times; a deadline would turn that into a failure. The same examples are drawn every time.
settings.register_profile("daptq", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("daptq")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Seeds every global generator before each test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries draw from the global generator)
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The CPU always, CUDA where present."""
    return torch.device(request.param)
