"""The Triton kernels equal the reference: in Triton's interpreter, and on a GPU where there is one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton exists for Linux only")

CASES = Path(__file__).with_name("triton_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("interpret", ["1", "0"] if torch.cuda.is_available() else ["1"])
def test_kernels_equal_the_reference(interpret: str) -> None:
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
    # Four products of each of three cases: the comparison sees a scale that is off by a thousandth in every one.
    assert result["with wrong scales"] == 12
