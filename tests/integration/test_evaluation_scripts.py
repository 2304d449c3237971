"""`scripts/demo.py` and `benchmarks/first_drive.py`: what can be checked without quantizing the reference policy."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daptq.errors import UnknownNameError
from tests.unit.made_up_results import synthetic_result, typed

ROOT = Path(__file__).parents[2]


def load(path: str) -> ModuleType:
    """A script as a module; it may import the files beside it."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend((ROOT / path).parent)
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    """The folder of a previous demo."""
    folder = tmp_path / "runs" / "demo"
    (folder / "quantized").mkdir(parents=True)
    (folder / "evaluation.json").write_text("old")
    return folder


def test_a_failed_demo_leaves_the_previous_one(previous: Path) -> None:
    with pytest.raises(UnknownNameError, match="'refrence'"):
        load("scripts/demo.py").main(["--policy", "refrence", "--output", str(previous)])
    assert (previous / "evaluation.json").read_text() == "old"
    assert [entry.name for entry in previous.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize("before", ["none", "previous", "interrupted"])
def test_a_finished_demo_replaces_the_previous_one(
    previous: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    if before == "none":
        previous.rename(previous.with_name("elsewhere"))
    if before == "interrupted":  # killed between the two renames
        previous.rename(previous.with_name(".demo.previous"))

    def run(options: Any, work: Path) -> None:
        (work / "evaluation.json").write_text("new")

    demo = load("scripts/demo.py")
    monkeypatch.setattr(demo, "_run", run)
    demo.main(["--output", str(previous)])
    assert (previous / "evaluation.json").read_text() == "new"
    assert not (previous / "quantized").exists()
    left = {entry.name for entry in previous.parent.iterdir()}
    assert left == ({"demo", "elsewhere"} if before == "none" else {"demo"})


@pytest.fixture
def result() -> dict[str, Any]:
    made: dict[str, Any] = copy.deepcopy(synthetic_result())
    made["provenance"] |= {"cpu": "made up", "cpu_count": 2, "python": "3.11.7"}
    return made


def test_the_page_of_the_first_drive_states_its_conditions(result: dict[str, Any]) -> None:
    page = load("benchmarks/first_drive.py").page(typed(result), "2026-01-02-first-drive")
    for text in (
        "40 paired episodes",
        "2026-01-02",
        "made up\n(2 CPUs)",
        "[2026-01-02-first-drive.json]",
    ):
        assert text in page
    for comparison in result["comparisons"]:
        assert f"McNemar p = {comparison['paired']['mcnemar_p']:.3g}" in page
    assert page.count("| stack_green_on_yellow | 10 |") == 1
    assert all(len(line) <= 120 or line.startswith(("|", "-")) for line in page.splitlines())
