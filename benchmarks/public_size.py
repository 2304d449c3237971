"""Quantizes a CogACT of the public size and runs one control step, each in a process of its own, measuring memory.

    python benchmarks/public_size.py write
    python benchmarks/public_size.py quantize
    python benchmarks/public_size.py quantize --kill round:112 --kill write:0
    python benchmarks/public_size.py step
    python benchmarks/public_size.py step --device cuda
    python benchmarks/public_size.py report

Weights are random (the public ones cannot be had everywhere), of the public shapes: DINOv2 ViT-L/14 with registers,
SigLIP So400M/14, Llama-2 7B, DiT-B. `write` makes the bfloat16 checkpoint shard by shard; `quantize` runs `da_ptq` with
four random calibration states on the streamed policy; with `--kill` its process is killed five seconds after a stage
has come so far, and started again. `report` compares the files of both runs and writes results/<date>-public-size.json
and .md beside this file. What the steps measure is kept in the working folder. On a CUDA device `step` also measures
what torch allocates there at most, and replays the denoising loop as a CUDA graph, recorded in the first step.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from _page import RESULTS, write_table
from torch import Tensor, nn

from daptq.artifacts import provenance, write_artifact, write_json
from daptq.benchmarking.device import DEVICES, device_name, find_device
from daptq.calibration.contract import CalibrationSource
from daptq.evaluation.describe import single_observation
from daptq.json_model import read_json
from daptq.observations import TASK
from daptq.packing.checkpoint import POLICY_KIND, load_policy
from daptq.policies.captured import captured_denoising
from daptq.policies.cogact_public import PublicCogACTConfig, PublicCogACTPolicy
from daptq.policies.contract import Batch, Policy
from daptq.policies.execution import noise_generator
from daptq.policies.tokenizer import train_tokenizer
from daptq.recipes import da_ptq, quantize

STATES = 4
KILL_AFTER = 5.0  # seconds
GIB = 2**30


class RandomStates(CalibrationSource):
    """One batch of random images and actions."""

    licence, description = "CC0-1.0", f"{STATES} random states"
    hash = hashlib.sha256(b"public-size-0").hexdigest()

    def __init__(self, policy: Policy) -> None:
        self.batch: Batch = {}
        for seed in range(STATES // 2):
            for key, value in policy.example_batch(seed).items():
                before = self.batch.get(key)
                joined = value if before is None else before + value if key == TASK else torch.cat([before, value])
                self.batch[key] = joined

    def __iter__(self) -> Iterator[Batch]:
        return iter([self.batch])


def main() -> None:
    """Runs one of the steps."""
    parser = argparse.ArgumentParser(description="A CogACT of the public size on a small machine.")
    parser.add_argument("step", choices=["write", "quantize", "step", "report", "quantize-here", "step-here"])
    parser.add_argument("--folder", type=Path, default=Path("runs/public-size"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="what step runs on")
    parser.add_argument("--kill", action="append", default=[], metavar="STAGE:DONE", help="may be repeated")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder: Path = options.folder
    name = "killed" if options.kill else "straight"
    if options.step == "write":
        write(folder / "policy")
    elif options.step == "quantize-here":
        quantize_here(folder, options.kill[0] if options.kill else "straight")
    elif options.step == "step-here":
        step_here(folder / "straight", find_device(options.device))
    elif options.step == "quantize":
        measured = [run(["quantize-here", "--kill", name], folder, options.threads, kill) for kill in options.kill]
        measured.append(run(["quantize-here", "--kill", name], folder, options.threads, None))
        write_json(folder / f"{name}.json", {"runs": measured, "threads": options.threads})
    elif options.step == "step":
        write_json(folder / "step.json", run(["step-here", "--device", options.device], folder, options.threads, None))
    else:
        report(folder)


def write(directory: Path) -> None:
    """Writes the random checkpoint; one shard is in memory at a time."""
    tokenizer = train_tokenizer(["put the spoon on the towel", "stack the green block on the yellow block"], 400)
    config = PublicCogACTConfig(
        name="cogact-public-size",
        action_low=(-0.03, -0.03, -0.03, -0.1, -0.1, -0.1, 0.0),
        action_high=(0.03, 0.03, 0.03, 0.1, 0.1, 0.1, 1.0),
        action_mask=(True,) * 6 + (False,),
        cameras={"primary": 224},
    )
    with torch.device("meta"):
        policy = PublicCogACTPolicy(config, tokenizer)
    count = sum(parameter.numel() for parameter in policy.parameters())
    print(f"{count / 1e9:.2f} billion parameters")
    metadata = {
        "family": policy.family,
        "name": policy.name,
        "config": policy.config(),
        "provenance": provenance(seed=0),
    }
    write_artifact(directory, kind=POLICY_KIND, tensors=random_tensors(policy), metadata=metadata, files=policy.files())


def random_tensors(policy: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the policy: gains of 1, everything else normal with standard deviation 0.02, bfloat16."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in policy.state_dict().items():
        if parameter.dim() == 1 and name.endswith(("weight", "gamma")):
            yield name, torch.ones(parameter.shape, dtype=torch.bfloat16)
        else:
            yield name, torch.randn(parameter.shape, generator=generator).mul_(0.02).to(torch.bfloat16)


def run(arguments: list[str], folder: Path, threads: int, kill: str | None) -> dict[str, Any]:
    """Runs a step of this script in a process of its own.

    Args:
        arguments: The step and its options.
        folder: Working folder.
        threads: Threads of torch.
        kill: ``"<stage>:<done>"``, where the process is killed; None to let it finish.

    Returns:
        Peak resident bytes, seconds, and what the process printed last when it finished.
    """
    command = [sys.executable, __file__, *arguments, "--folder", str(folder), "--threads", str(threads)]
    start, peak, last = time.monotonic(), 0, ""
    stages: dict[str, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last, elapsed = line.strip(), time.monotonic() - start
            print(f"{elapsed:8.1f} s  {last}", flush=True)
            peak = max(peak, peak_of(process.pid))
            stages[last.partition(" ")[0]] = elapsed
            if kill is not None and last.startswith(kill.replace(":", " ") + "/"):
                time.sleep(KILL_AFTER)
                peak = max(peak, peak_of(process.pid))
                process.kill()
                break
    measured: dict[str, Any] = {"killed_at": kill, "seconds": time.monotonic() - start, "peak_bytes": peak}
    if kill is not None:
        return measured
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**measured, "finished_by": stages, **json.loads(last)}


def peak_of(pid: int | str) -> int:
    """Largest resident set of a process so far [bytes], from its VmHWM."""
    match = re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(match.group(1)) if match else 0


def quantize_here(folder: Path, name: str) -> None:
    """Quantizes the checkpoint in this process, telling every step of every stage."""
    policy = load_policy(folder / "policy", stream=True)
    quantize(
        policy,
        da_ptq(calibration_states=STATES),
        data=RandomStates(policy),
        output=folder / name,
        progress=lambda done, total, stage: print(f"{stage} {done}/{total}", flush=True),
    )
    print(json.dumps({"peak_bytes": peak_of("self")}))


def step_here(packed: Path, device: torch.device) -> None:
    """Loads the packed folder in this process and runs control steps on one observation."""
    times = [time.monotonic()]
    policy = load_policy(packed).to(device)
    times.append(time.monotonic())
    print(f"loaded {times[1] - times[0]:.1f} s", flush=True)
    with captured_denoising(policy), torch.inference_mode():
        for step in range(3):
            chunk = policy.predict_chunk(single_observation(policy, 0), noise_generator(0, step)).cpu()
            times.append(time.monotonic())
            print(f"step {step} {times[-1] - times[-2]:.2f} s", flush=True)
    assert bool(torch.isfinite(chunk).all())
    load, *steps = (later - earlier for earlier, later in pairwise(times))
    measured: dict[str, Any] = {"peak_bytes": peak_of("self"), "load_seconds": load, "step_seconds": steps}
    measured["device_name"] = device_name(device)
    if device.type == "cuda":
        measured["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    print(json.dumps(measured))


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of every file; of the manifest without its time, and the checksum that covers the time."""
    found: dict[str, str] = {}
    for path in sorted(directory.iterdir()):
        digest = hashlib.sha256()
        if path.name == "manifest.json":
            manifest = read_json(path)
            del manifest["sha256"], manifest["metadata"]["provenance"]["time"]
            digest.update(json.dumps(manifest).encode())
        else:
            with path.open("rb") as stream:
                while block := stream.read(1 << 22):
                    digest.update(block)
        found[path.name] = digest.hexdigest()
    return found


def report(folder: Path) -> None:
    """Writes what was measured as JSON and as a page."""
    straight, killed = (digests(folder / name) for name in ("straight", "killed"))
    now = datetime.now(timezone.utc)
    data = {
        "schema_version": 1,
        "provenance": provenance(seed=0),
        "parameters": sum(parameter.numel() for parameter in load_policy(folder / "policy", stream=True).parameters()),
        "checkpoint_bytes": sum(path.stat().st_size for path in (folder / "policy").iterdir()),
        "packed_bytes": sum(path.stat().st_size for path in (folder / "straight").iterdir()),
        "straight": read_json(folder / "straight.json"),
        "killed": read_json(folder / "killed.json"),
        "step": read_json(folder / "step.json"),
        "digests": straight,
        "identical": straight == killed,
    }
    name = f"{now:%Y-%m-%d}-public-size"
    write_table(RESULTS, name, data, page(data, name))


def page(data: dict[str, Any], name: str) -> str:
    """The results as a page."""
    origin, step = data["provenance"], data["step"]
    rows = [
        ("quantize", *_run_cells(data["straight"]["runs"][0])),
        *((_label(entry["killed_at"]), *_run_cells(entry)) for entry in data["killed"]["runs"]),
        ("load, and one control step", *_run_cells(step)),
    ]
    table = "\n".join(f"| {label} | {peak} | {minutes} |" for label, peak, minutes in rows)
    same = "the same bytes in every file" if data["identical"] else "**other bytes**"
    steps = ", ".join(f"{seconds:.2f}" for seconds in step["step_seconds"])
    on_device = f" ({step['peak_device_bytes'] / GIB:.2f} GiB of its memory)" if "peak_device_bytes" in step else ""
    return f"""# A CogACT of the public size

{data["parameters"] / 1e9:.2f} billion random parameters, {data["checkpoint_bytes"] / GIB:.2f} GiB in bfloat16,
{origin["time"][:10]}, {origin["cpu"]} ({origin["cpu_count"]} CPUs, threads of torch: {data["straight"]["threads"]},
shared with other work). Written by `benchmarks/public_size.py`; everything is in [{name}.json]({name}.json).

| process | peak resident memory [GiB] | minutes |
| --- | ---: | ---: |
{table}

`da_ptq` with {STATES} calibration states writes {data["packed_bytes"] / GIB:.2f} GiB. The killed and continued run
wrote {same} as the one that nobody killed ({len(data["digests"])} files; the time of the run is left out of the
comparison). Loading took {step["load_seconds"]:.1f} s; control steps on {step["device_name"]}{on_device} took
{steps} s, the first of which chooses kernels. Each number is one measurement on a shared machine: memory repeats,
times say no more than their order.
"""


def _label(killed_at: str | None) -> str:
    return "quantize, continued to the end" if killed_at is None else f"quantize, killed at {killed_at}"


def _run_cells(entry: dict[str, Any]) -> tuple[str, str]:
    return f"{entry['peak_bytes'] / GIB:.2f}", f"{entry['seconds'] / 60:.1f}"


if __name__ == "__main__":
    main()
