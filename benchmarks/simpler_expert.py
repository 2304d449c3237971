"""How often the scripted expert of `simpler` succeeds, in every official initial state of every task.

    python benchmarks/simpler_expert.py [--task NAME]…

Needs the extra `simpler`, but no graphics driver. Writes results/<date>-simpler-expert.json and .md beside this file
once every state has been driven; finished episodes are kept in runs/simpler-expert.jsonl, so that a killed run
continues. Remove that file after the expert has changed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from _page import RESULTS, write_table

from daptq.artifacts import provenance
from daptq.environments.simpler import SimplerEnvironment
from daptq.environments.simpler.expert import SimplerExpert
from daptq.environments.simpler.tasks import TASKS
from daptq.environments.simpler.world import asset_folder
from daptq.statistics.proportion import wilson_interval

STAGES = "tasks/bridge_v2_real2sim_dataset/stages"


def drive(environment: SimplerEnvironment, task: str, state: int) -> dict[str, Any]:
    """One episode to its horizon."""
    expert = SimplerExpert()
    environment.reset(seed=state, options={"task": task})
    steps = range(environment.horizon_of(task))
    successes = [environment.advance(expert.action(environment))["success"] for _ in steps]
    first = successes.index(True) + 1 if any(successes) else None
    return {"task": task, "state": state, "first_success": first, "success_last_step": successes[-1]}


def episodes(journal: Path, tasks: list[str]) -> Iterator[dict[str, Any]]:
    """The episodes that the journal holds, then the missing ones of `tasks` as they are driven."""
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    yield from done
    known = {(one["task"], one["state"]) for one in done}
    environment = SimplerEnvironment(image_size={})
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("a") as file:
        for task in tasks:
            for state in range(TASKS[task].initial_states):
                if (task, state) not in known:
                    one = drive(environment, task, state)
                    file.write(json.dumps(one) + "\n")
                    file.flush()
                    yield one
    environment.close()


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Both success rates with Wilson's 95 % interval, and the failed states."""
    rates = {}
    for rule in ("any_step", "last_step"):
        good = [one["first_success"] is not None if rule == "any_step" else one["success_last_step"] for one in records]
        low, high = wilson_interval(sum(good), len(good))
        failed = [one["state"] for one, fine in zip(records, good, strict=True) if not fine]
        rates[rule] = {"successes": sum(good), "n": len(good), "low": low, "high": high, "failed_states": failed}
    return rates


def stage_hashes() -> dict[str, str]:
    """Which collision surfaces the scenes have: SHA-256 of every stage, so that stand-ins cannot pass for originals."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((asset_folder() / STAGES).iterdir())
    }


def page(result: Mapping[str, Any], stem: str) -> str:
    """The Markdown page."""
    origin = result["provenance"]
    rows = []
    for task, rates in result["tasks"].items():
        cells = [
            f"{rate['successes']}/{rate['n']} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}] %"
            for rate in (rates["any_step"], rates["last_step"])
        ]
        rows.append(f"| `{task}` | {cells[0]} | {cells[1]} |")
    table = "\n".join(rows)
    return f"""# Scripted expert of simpler

Every official initial state once, {origin["time"][:10]}, {origin["cpu"]}. Written by `benchmarks/simpler_expert.py`;
the failed states are in [{stem}.json]({stem}.json). Intervals are Wilson's, 95 %.

| task | success at any step | at the last step |
|---|---:|---:|
{table}

{result["note"]}
"""


def main() -> None:
    """Runs what is missing and writes the results."""
    parser = argparse.ArgumentParser(description="Success of the scripted expert in every initial state.")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="drive this task alone; may be repeated")
    parser.add_argument("--journal", type=Path, default=Path("runs/simpler-expert.jsonl"))
    parser.add_argument("--note", default="", help="sentence for the page, for example about the assets")
    options = parser.parse_args()
    by_task: dict[str, list[dict[str, Any]]] = {task: [] for task in TASKS}
    for one in episodes(options.journal, options.task or list(TASKS)):
        by_task[one["task"]].append(one)
        print(one, flush=True)
    if any(len(records) < TASKS[task].initial_states for task, records in by_task.items()):
        return
    described = provenance(seed=0)
    result = {
        "schema_version": 1,
        "tasks": {task: summary(sorted(records, key=lambda one: one["state"])) for task, records in by_task.items()},
        "stages_sha256": stage_hashes(),
        "note": options.note,
        "provenance": described,
    }
    stem = f"{described['time'][:10]}-simpler-expert"
    write_table(RESULTS, stem, result, page(result, stem))


if __name__ == "__main__":
    main()
