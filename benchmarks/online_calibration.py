"""A monitor at the interface of a quantized policy: false alarms, a moved camera with and without a refresh.

    python benchmarks/online_calibration.py [--variant camera-pose-2] [--episodes 40] [--policy runs/.../da-ptq]

Takes a reference in the nominal scene, watches other nominal episodes, then moves the camera: first the policy goes on
as it is, then gain and shift at the interface are refreshed from episodes under the moved camera, once for channels
that moved beyond chance and once for all. Judged episodes start from the same states with the same noise in all runs.
Finished episodes are kept under runs/online, so that a killed run continues; remove that folder after the policy has
changed. Writes results/<date>-online-calibration.json and .md beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _page import add_results_argument, add_work_argument, run_benchmark, write_table

import daptq
from daptq.artifacts import provenance, read_artifact, write_artifact
from daptq.closed_loop.interface_stream import EpisodeStream, watch_episodes
from daptq.closed_loop.rollout import EpisodeRecord
from daptq.evaluation.request import Evaluation
from daptq.evaluation.watched_drive import drive
from daptq.interfaces.affine import AffineMap
from daptq.metrics.drift import episode_drift
from daptq.metrics.pairs import paired_summary
from daptq.metrics.success import Rate, success_summary
from daptq.monitoring.interface_reference import InterfaceReference
from daptq.monitoring.monitor import InterfaceMonitor, MonitorConfig
from daptq.monitoring.refresh import RefreshConfig, Refreshed, folds_for_refresh, refreshed_maps
from daptq.monitoring.shift_detector import Assessment
from daptq.numerics.moments import Moments
from daptq.policies.contract import Policy
from daptq.report.wording import rate_text

REFERENCE_SEED, JUDGED_SEED, REFRESH_SEED = 1000, 0, 2000


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark.

    Args:
        arguments: Command-line arguments; None for those of the process.
    """
    parser = argparse.ArgumentParser(description="Detection of a moved camera, with and without a refresh.")
    parser.add_argument("--policy", default="reference", help="policy to watch: name or folder")
    parser.add_argument("--label", default=None, help="name of the policy on the page")
    parser.add_argument("--variant", default="camera-pose-2", help="what changes")
    parser.add_argument("--reference-episodes", type=int, default=80, help="episodes of the reference")
    parser.add_argument("--episodes", type=int, default=40, help="judged episodes of each run")
    parser.set_defaults(significance={"significant channels": 3.0, "every channel": 0.0})
    parser.add_argument("--refresh-episodes", type=int, default=16, help="episodes that a refresh is taken from")
    parser.add_argument("--batch", type=int, default=8, help="episodes that share one call of the policy")
    add_work_argument(parser, "online")
    add_results_argument(parser)
    options = parser.parse_args(arguments)
    result = measured(options)
    stem = f"{result['provenance']['time'][:10]}-online-calibration"
    write_table(options.results, stem, result, page(result, stem))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every part; a JSON object."""
    policy = daptq.load_policy(options.policy)
    normal = Watched(policy, options, "reference", None)
    reference = InterfaceReference.of(normal.run(options.reference_episodes, REFERENCE_SEED)[1])
    runs: dict[str, Run] = {}

    def judge(name: str, run: Watched) -> None:
        records, streams = run.run(options.episodes, JUDGED_SEED)
        monitor = InterfaceMonitor(policy, reference)
        runs[name] = (records, [monitor.assess(stream) for stream in streams])

    judge("nominal", Watched(policy, options, "nominal", None))
    judge("changed", Watched(policy, options, "changed", options.variant))
    _, recent = Watched(policy, options, "recent", options.variant).run(options.refresh_episodes, REFRESH_SEED)
    for name, significance in options.significance.items():
        limits = RefreshConfig(significance=significance)
        maps = refreshed_maps(reference, recent, limits, folds=folds_for_refresh(policy))
        refreshed = Refreshed(policy, maps)
        judge(f"refreshed: {name}", Watched(policy, options, f"refreshed-{significance:g}", options.variant, maps))
        refreshed.undo()
    return {
        "schema_version": 1,
        "policy": options.label or policy.name,
        "variant": options.variant,
        "seed": JUDGED_SEED,
        "reference_episodes": options.reference_episodes,
        "refresh_episodes": options.refresh_episodes,
        "episodes": options.episodes,
        "false_alarm_rate": MonitorConfig().false_alarm_rate,
        "horizon": MonitorConfig().horizon,
        "runs": [summarised(name, runs) for name in runs],
        "provenance": provenance(seed=JUDGED_SEED),
    }


Run = tuple[Sequence[EpisodeRecord], Sequence[Assessment]]


@dataclass(frozen=True)
class Watched:
    """Episodes of one part, with what passed the interfaces; finished groups are kept, so that a rerun continues.

    Attributes:
        policy: The policy, with `maps` already in its weights.
        options: Batch and folder.
        name: Name of the part.
        variant: Variant of the scene.
        maps: The maps that the policy has absorbed, by interface.
    """

    policy: Policy
    options: argparse.Namespace
    name: str
    variant: str | None
    maps: Mapping[str, AffineMap] = field(default_factory=dict)

    def run(self, episodes: int, seed: int) -> tuple[list[EpisodeRecord], list[EpisodeStream]]:
        """Records and streams of all episodes."""
        records: list[EpisodeRecord] = []
        streams: list[EpisodeStream] = []
        while (folder := self.options.work / self.name / str(len(records))).exists():
            group, some = _read(folder)
            records, streams = records + group, streams + some
        request = Evaluation(
            candidates=[self.policy], variant=self.variant, episodes=episodes, seed=seed, batch=self.options.batch
        )
        driven = drive(
            request,
            self.policy,
            lambda instructions: watch_episodes(self.policy, instructions, self.maps),
            skip=len(records),
        )
        for group, some in driven:
            _write(self.options.work / self.name / str(len(records)), group, some)
            records, streams = records + group, streams + some
            print(f"{self.name}: {len(records)} of {episodes}", flush=True)
        return records[:episodes], streams[:episodes]


def _write(folder: Path, records: Sequence[EpisodeRecord], streams: Sequence[EpisodeStream]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    content = [
        (f"{index}/{number}/{key}", value)
        for index, stream in enumerate(streams)
        for number, moments in enumerate(stream.moments.values())
        for key, value in moments.tensors().items()
    ]
    metadata = {
        "records": [record.to_json() for record in records],
        "instructions": [stream.instruction for stream in streams],
        "interfaces": list(streams[0].moments),
    }
    write_artifact(folder, kind="watched-episodes", tensors=iter(content), metadata=metadata)


def _read(folder: Path) -> tuple[list[EpisodeRecord], list[EpisodeStream]]:
    artifact = read_artifact(folder, kind="watched-episodes")
    streams = [
        EpisodeStream(
            instruction=instruction,
            moments={
                name: Moments.from_tensors(
                    {key: artifact.tensor(f"{index}/{number}/{key}") for key in ("count", "mean", "scatter")}
                )
                for number, name in enumerate(artifact.metadata["interfaces"])
            },
        )
        for index, instruction in enumerate(artifact.metadata["instructions"])
    ]
    return [EpisodeRecord.from_json(record) for record in artifact.metadata["records"]], streams


def summarised(name: str, runs: Mapping[str, Run]) -> dict[str, Any]:
    """Success, monitor and distances of one run."""
    records, assessments = runs[name]
    nominal = runs["nominal"][0]
    flagged = [number for number, assessment in enumerate(assessments, start=1) if assessment.shifted]
    first = assessments[flagged[0] - 1] if flagged else assessments[-1]
    drift = episode_drift(nominal, records, seed=JUDGED_SEED)
    return {
        "run": name,
        **success_summary(records).to_json(),
        "against_nominal": paired_summary(nominal, records).to_json(),
        "against_changed": (
            paired_summary(runs["changed"][0], records).to_json() if name.startswith("refreshed") else None
        ),
        "drift_to_nominal": drift.model_dump(mode="json", include={"n", "position_mm", "rotation_deg"}),
        "flagged_after_episodes": flagged[0] if flagged else None,
        "largest_statistic": max(assessment.statistic for assessment in assessments),
        "threshold": first.threshold,
        "scores": [assessment.score for assessment in assessments],
        "p_values": [assessment.p_value for assessment in assessments],
        "explanation": first.explanation,
    }


def page(result: Mapping[str, Any], stem: str) -> str:
    """The Markdown page.

    Args:
        result: What `measured` returned.
        stem: Name of the JSON file without its ending.
    """
    provenance_ = result["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in provenance_["versions"].items() if version)
    explanations = "\n".join(f"- {run['run']}: {run['explanation']}." for run in result["runs"])
    return f"""# On-line calibration under a changed scene

{result["policy"]} on `tabletop`, {provenance_["time"][:10]}, {provenance_["cpu"]} ({provenance_["cpu_count"]} CPUs).
Written by `benchmarks/online_calibration.py`; more in [{stem}.json]({stem}.json).

The reference is {result["reference_episodes"]} nominal episodes. The change is the variant `{result["variant"]}`; a
refresh is taken from {result["refresh_episodes"]} other episodes under it. Each run is {result["episodes"]} episodes
from the same initial states with the same diffusion noise. The monitor flags a shift within {result["horizon"]}
unchanged episodes with probability at most {result["false_alarm_rate"]}.

{table(result["runs"])}

Success at any step with Wilson intervals, differences with Tango's, drift with bootstrap intervals over episodes; 95 %.
Drift: root mean square distance of the end-effector to the same policy's nominal episode, whole episodes.

At the flag, or after the last episode:

{explanations}

Python {provenance_["python"]}, {versions}.
"""


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """One row per run."""
    header = (
        "run",
        "n",
        "success",
        "to changed [points]",
        "drift to nominal [mm]",
        "median score",
        "flag after episode",
    )
    rows = []
    for run in runs:
        paired, drift = run["against_changed"], run["drift_to_nominal"]["position_mm"]["rms"]
        points = "-" if paired is None else f"{paired['difference']:+.1f} [{paired['low']:+.1f}, {paired['high']:+.1f}]"
        flag = run["flagged_after_episodes"]
        rows.append(
            (
                run["run"],
                str(run["n"]),
                rate_text(Rate.from_json({name: run[name] for name in Rate.model_fields})),
                points,
                f"{drift['value']:.1f} [{drift['low']:.1f}, {drift['high']:.1f}]",
                f"{np.median(run['scores']):.3g}",
                "none" if flag is None else str(flag),
            )
        )
    lines = [header, ("---", *("---:" for _ in header[1:])), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    run_benchmark(main)
