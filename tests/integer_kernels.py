"""The backends that run here and multiply the plainest layer in integers: 4-bit weights by 8-bit activations."""

from __future__ import annotations

import torch

from daptq.catalog import KERNELS
from daptq.kernels.linear.contract import PackedWeight

_PLAIN = PackedWeight.from_integers(torch.zeros(32, 32, dtype=torch.int8), 4)

NAMES = [
    name
    for name in KERNELS.names()
    if KERNELS.load(name).unavailable() is None and KERNELS.load(name).unsupported(_PLAIN, 8) is None
]
