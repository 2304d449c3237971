"""`benchmarks/simpler.py` and `simpler_expert.py`: what can be checked without ManiSkill."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from daptq.environments.simpler.tasks import TASKS

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def drive(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    return load("simpler")


def evaluation(n: int, base: int, gained: int, lost: int) -> dict[str, Any]:
    """What `evaluate_many` says about two policies, as far as the page needs it; one episode fewer at the last step."""
    after = base + gained - lost

    def counts(successes: int) -> dict[str, Any]:
        return {"successes": successes, "n": n, "at_last_step": {"successes": successes - 1, "n": n}}

    pair = {"only_candidate": gained, "only_baseline": lost, "n": n}
    paired = pair | {"at_last_step": pair | {"only_baseline": lost + 1}}
    return {
        "policies": [{"name": "full"} | counts(base), {"name": "W4"} | counts(after)],
        "comparisons": [{"policy": "W4", "paired": paired}],
    }


def test_evaluations_are_pooled_by_episode(drive: ModuleType) -> None:
    results = [evaluation(96, 40, 3, 9), evaluation(256, 100, 10, 30)]
    assert drive.pooled(results, "full", "at any step")["successes"] == 140
    assert "difference" not in drive.pooled(results, "full", "at any step")
    both = drive.pooled(results, "W4", "at any step")
    assert (both["successes"], both["n"]) == (34 + 80, 352)
    difference = both["difference"]
    assert difference["points"] == pytest.approx(100 * (13 - 39) / 352)
    assert difference["low"] < difference["points"] < difference["high"] < 0
    assert difference["mcnemar_p"] < 0.001
    last = drive.pooled(results, "W4", "at the last step")
    assert (last["successes"], last["difference"]["only_baseline"]) == (112, 41)


def test_the_page_of_the_drive_holds_every_task_by_both_rules(drive: ModuleType) -> None:
    groups = {name: [evaluation(task.initial_states * 4, 20, 1, 2)] for name, task in TASKS.items()}
    groups["all"] = [result for group in groups.values() for result in group]
    summary = {
        group: {rule: {label: drive.pooled(members, label, rule) for label in ("full", "W4")} for rule in drive.RULES}
        for group, members in groups.items()
    }
    provenance = {"time": "2026-01-02T03:04:05", "cpu": "made up"}
    page = drive.page({"summary": summary, "noise_seeds": 4, "note": "A note.", "provenance": provenance}, "stem")
    for text in ("eggplant_in_basket (n = 256)", "all (n = 544)", "spoon_on_towel (n = 96)", "made up", "A note."):
        assert text in page
    assert page.count("| W4 |") == 2
    assert "-1.0 [" in page


def test_the_experts_journal_is_continued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expert = load("simpler_expert")
    driven = []

    class Environment:
        def __init__(self, **settings: Any) -> None:
            pass

        def close(self) -> None:
            pass

    def drive(environment: Any, task: str, state: int) -> dict[str, Any]:
        driven.append(state)
        first = None if state == 5 else 20
        return {"task": task, "state": state, "first_success": first, "success_last_step": state != 7 and state != 5}

    monkeypatch.setattr(expert, "SimplerEnvironment", Environment)
    monkeypatch.setattr(expert, "drive", drive)
    journal = tmp_path / "work" / "expert.jsonl"
    records = expert.episodes(journal, ["carrot_on_plate"])
    assert [next(records)["state"] for _ in range(10)] == list(range(10))
    records.close()
    assert len(journal.read_text().splitlines()) == 10
    continued = list(expert.episodes(journal, ["carrot_on_plate"]))
    assert sorted(driven) == list(range(24)) == [one["state"] for one in continued]
    assert json.loads(journal.read_text().splitlines()[-1])["state"] == 23
    rates = expert.summary(continued)
    assert (rates["any_step"]["successes"], rates["any_step"]["failed_states"]) == (23, [5])
    assert (rates["last_step"]["successes"], rates["last_step"]["failed_states"]) == (22, [5, 7])
