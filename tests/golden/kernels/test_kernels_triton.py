"""What the Triton kernels keep beyond a backend's contract: in the interpreter, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Triton is not imported here: its LLVM and that of Mesa, which other tests draw with, do not go together.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("interpret", ["1", "0"] if torch.cuda.is_available() else ["1"])
def test_half_precision_is_summed_in_float32(interpret: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(CASES)],
        env={**os.environ, "TRITON_INTERPRET": interpret},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["differences"] == []
    assert result["cases"] >= 20
    assert result["checked"] == 2
    # Two products of each of three cases: the comparison sees a scale that is off by a thousandth in every one.
    assert result["with wrong scales"] == 6
