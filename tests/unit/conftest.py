"""Made-up results that a test may change."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.unit.made_up_results import synthetic_benchmark, synthetic_result


@pytest.fixture
def result() -> dict[str, Any]:
    return copy.deepcopy(synthetic_result())


@pytest.fixture
def benchmark() -> dict[str, Any]:
    return copy.deepcopy(synthetic_benchmark())
