"""A writer that is killed or meets a full disk leaves nothing under the final name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch

from daptq.artifacts import read_artifact, write_artifact

WRITER = """
import sys, time
from pathlib import Path
import torch
from daptq.artifacts import write_artifact

def stream():
    for index in range(3):
        yield f"t{index}", torch.full((1000,), float(index))
        print("yielded", flush=True)
    time.sleep(float(sys.argv[2]))

write_artifact(Path(sys.argv[1]), kind="policy", tensors=stream(), metadata={}, max_shard_bytes=4000)
"""

LIMITED = """
import resource, sys
from pathlib import Path
import torch
from daptq.artifacts import write_artifact
from daptq.errors import OutputWriteError

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_artifact(Path(sys.argv[1]), kind="policy", tensors={"a": torch.zeros(100_000)}, metadata={})
except OutputWriteError as error:
    print(error)
    sys.exit(2)
"""


def _start_writer(directory: Path, seconds: float) -> subprocess.Popen[str]:
    """A writer that has written two shards and now waits."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory), str(seconds)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(3):
        assert process.stdout.readline() == "yielded\n"
    return process


def _finish(process: subprocess.Popen[str]) -> int:
    process.communicate()
    return process.returncode


def test_a_killed_writer_leaves_no_final_name_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    process = _start_writer(tmp_path / "a", 60)
    process.send_signal(signal.SIGKILL)
    assert _finish(process) == -signal.SIGKILL
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".a.")
    assert left.endswith(".partial")
    write_artifact(tmp_path / "a", kind="policy", tensors={"x": torch.ones(2)}, metadata={})
    assert os.listdir(tmp_path) == ["a"]
    assert torch.equal(read_artifact(tmp_path / "a", kind="policy").tensor("x"), torch.ones(2))


def test_a_living_writer_is_not_cleaned_up(tmp_path: Path) -> None:
    process = _start_writer(tmp_path / "a", 2)
    write_artifact(tmp_path / "b", kind="policy", tensors={}, metadata={})
    (temporary,) = tmp_path.glob(".a.*.partial")
    # A second writer of the same name removes what killed writers left, and must leave this one alone.
    write_artifact(tmp_path / "a", kind="policy", tensors={}, metadata={})
    assert temporary.is_dir()
    # Whoever comes second finds the name taken and says so, without touching the first one's artifact.
    assert _finish(process) == 1
    assert not temporary.exists()
    assert read_artifact(tmp_path / "a", kind="policy").tensor_names == ()


def test_an_undisturbed_writer_finishes(tmp_path: Path) -> None:
    process = _start_writer(tmp_path / "a", 0)
    assert _finish(process) == 0
    assert read_artifact(tmp_path / "a", kind="policy").tensor_names == ("t0", "t1", "t2")


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The kernel itself refuses the write, as on a full disk."""
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "a")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2, result.stderr
    assert "a must be writable, got" in result.stdout
    assert list(tmp_path.iterdir()) == []
