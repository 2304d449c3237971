"""Peak memory of loading a policy and running one control step, measured in a process of its own.

The process loads the policy and runs a step, which brings in libraries and chooses kernels, gives all that back, and
does it again. What is measured is the largest resident set of the second time minus the resident set before it:
weights, activations, what loading needs for a moment, and the pages of the checkpoint that were read. Linux only.
On a CUDA device it is what torch has allocated there, at most during the second time minus before it: weights and
activations of a step whose denoising loop is no CUDA graph. Memory of the host is not measured then.

    python -m daptq.benchmarking.peak_memory POLICY DEVICE THREADS SEED
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
from pathlib import Path

from daptq.errors import DaptqError

__all__ = ["peak_bytes"]

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def peak_bytes(source: str, *, device: str, threads: int, seed: int) -> int:
    """Bytes that loading a policy and one control step add to a fresh process at most.

    Args:
        source: Name or folder of the policy.
        device: Where it runs and whose memory is measured, ``"cpu"`` or ``"cuda"``.
        threads: Threads of torch.
        seed: Seed of the observation and of the diffusion noise.

    Raises:
        DaptqError: The process failed.
    """
    command = [sys.executable, "-m", "daptq.benchmarking.peak_memory", source, device, str(threads), str(seed)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["without a message"])[-1]
        raise DaptqError(
            f"peak memory of {source} must be measurable in a process of its own, got {last} Load it alone."
        )
    return json.loads(result.stdout.splitlines()[-1])["peak_bytes"]


def _measure(source: str, device: str, threads: int, seed: int) -> int:
    """The same, in this process."""
    import torch

    from daptq.evaluation.describe import single_observation
    from daptq.packing.checkpoint import load_policy
    from daptq.policies.execution import noise_generator

    torch.set_num_threads(threads)

    def step() -> None:
        policy = load_policy(source).to(device)
        # Memory depends on the shapes of an observation, not on what is in it: no simulator is started here.
        with torch.inference_mode():
            policy.predict_chunk(single_observation(policy, seed), noise_generator(seed, 0))

    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        allocated = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - allocated
    ctypes.CDLL(None).malloc_trim(0)
    _RESET.write_text(_RESET_PEAK)
    before = _kilobytes("VmRSS")
    step()
    return 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(field: str) -> int:
    """A field of this process's status [KiB]."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, field
    return int(match.group(1))


if __name__ == "__main__":
    measured = _measure(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(f"\n{json.dumps({'peak_bytes': measured})}\n")
