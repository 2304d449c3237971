"""Runs that are killed, fill the disk or get bad input."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from daptq.errors import CalibrationDataError, InvalidInputError, OutputExistsError, OutputWriteError, UnknownNameError
from daptq.packing.checkpoint import load_policy
from daptq.policies.cogact_small import SmallCogACTPolicy
from daptq.quantization.profile import ProfileStage
from daptq.quantization.profiling import Calibration
from daptq.quantization.stage import Inputs
from daptq.recipes import da_ptq, quantize, round_to_nearest

KILLED_RUN = textwrap.dedent(
    """
    import os, signal, sys
    import torch
    torch.set_num_threads(1)
    from daptq.calibration.contract import CalibrationSource
    from daptq.policies.cogact_small import SmallCogACTPolicy
    from daptq.recipes import da_ptq, quantize

    policy = SmallCogACTPolicy.tiny()

    class Source(CalibrationSource):
        hash, licence, description = "cogact-small-4", "CC0-1.0", "made-up states"
        def __iter__(self):
            return iter([policy.example_batch(seed) for seed in range(4)])

    def progress(done, total, stage):
        if [stage, str(done)] == sys.argv[2:]:
            os.kill(os.getpid(), signal.SIGKILL)

    quantize(policy, da_ptq(), data=Source(), output=sys.argv[1], progress=progress)
    """
)


def killed_at(output: Path, stage: str, done: int) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED_RUN, str(output), stage, str(done)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    """Every byte of a checkpoint, except when it was made and the checksum over that."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    manifest = json.loads(files.pop("manifest.json"))
    del manifest["sha256"], manifest["metadata"]["provenance"]["time"]
    return {**files, "manifest": json.dumps(manifest).encode()}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As many threads as the killed process: sums must be taken in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(
    one_thread: None, cogact: SmallCogACTPolicy, held: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, bytes]:
    """The checkpoint of a run that nobody killed."""
    out = tmp_path_factory.mktemp("straight") / "out"
    return content(quantize(cogact, da_ptq(), data=held(cogact, 4), output=out))


@pytest.mark.parametrize(
    ("stage", "done", "again"),
    [
        ("profile", 3, ["check", "profile", "round", "measure", "write"]),
        ("round", 5, ["check", "round", "measure", "write"]),
        ("measure", 2, ["check", "measure", "write"]),
        ("write", 0, ["check", "write"]),
        ("write", 1, []),
    ],
)
def test_killed_run_continues_and_writes_the_same_bytes(
    cogact: SmallCogACTPolicy,
    tmp_path: Path,
    held: Any,
    straight: dict[str, bytes],
    stage: str,
    done: int,
    again: list[str],
) -> None:
    killed_at(tmp_path / "killed", stage, done)
    assert (tmp_path / "killed").exists() is ((stage, done) == ("write", 1))
    stages: list[str] = []
    source = held(cogact, 4)
    quantize(
        cogact,
        da_ptq(),
        data=source,
        output=tmp_path / "killed",
        progress=lambda _done, _total, name: stages.append(name),
    )
    assert list(dict.fromkeys(stages)) == again
    assert content(tmp_path / "killed") == straight
    assert [path.name for path in tmp_path.iterdir()] == ["killed"]


def test_other_inputs_start_over(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, straight: dict[str, bytes]
) -> None:
    killed_at(tmp_path / "out", "write", 0)
    stages: list[str] = []
    source = held(cogact, 4)
    quantize(
        cogact,
        da_ptq(),
        data=source,
        output=tmp_path / "out",
        seed=1,
        progress=lambda _done, _total, name: stages.append(name),
    )
    assert "profile" in stages
    quantize(cogact, da_ptq(), data=source, output=tmp_path / "first", seed=1)
    assert content(tmp_path / "out") == content(tmp_path / "first")
    assert content(tmp_path / "out") != straight, "the comparison can fail"


def test_full_disk_leaves_nothing_under_the_final_name(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(content: Any, path: Path) -> None:
        if "profile" not in str(path):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(content, path)

    with monkeypatch.context() as patched:
        patched.setattr("daptq.artifacts.save_file", full)
        with pytest.raises(OutputWriteError, match="No space left on device"):
            quantize(cogact, da_ptq(), data=held(cogact, 2), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    stages: list[str] = []
    quantize(
        cogact,
        da_ptq(),
        data=held(cogact, 2),
        output=tmp_path / "out",
        progress=lambda _done, _total, name: stages.append(name),
    )
    assert "profile" not in stages
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_existing_output_is_refused_before_any_work(
    cogact: SmallCogACTPolicy, tmp_path: Path, held: Any, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "folder":
        out.mkdir()
        (out / "something").write_text("mine")
    else:
        out.write_text("mine")
    stages: list[str] = []
    with pytest.raises(OutputExistsError, match="new or empty folder"):
        quantize(
            cogact, da_ptq(), data=held(cogact, 2), output=out, progress=lambda _done, _total, name: stages.append(name)
        )
    assert stages == []
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_empty_folder_is_filled(cogact: SmallCogACTPolicy, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    out = quantize(cogact, round_to_nearest(), output=str(tmp_path / "out"))
    assert out == tmp_path / "out"
    assert load_policy(out).name == "tiny"


def test_data_is_needed_by_the_recipe_that_reads_it(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    with pytest.raises(CalibrationDataError, match="data must be given for recipe da-ptq"):
        quantize(cogact, da_ptq(), output=tmp_path / "out")
    with pytest.raises(CalibrationDataError, match="at least one state, got none from 'made-up states'"):
        quantize(cogact, da_ptq(), data=held(cogact, 0), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", [da_ptq(), round_to_nearest()], ids=["da-ptq", "round-to-nearest"])
def test_unknown_source_is_refused_by_every_recipe(cogact: SmallCogACTPolicy, tmp_path: Path, recipe: Any) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'tabletop'"):
        quantize(cogact, recipe, data="tabeltop:train", output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_bad_batch_is_named_before_anything_is_written(cogact: SmallCogACTPolicy, tmp_path: Path, held: Any) -> None:
    source = held(cogact, 3)
    source.batches[2]["action"][0, 0, 0] = torch.nan
    with pytest.raises(CalibrationDataError, match="action of calibration batch 2 must be finite"):
        quantize(cogact, da_ptq(), data=source, output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rows_of_interfaces_are_kept_for_a_compensation_alone(cogact: SmallCogACTPolicy, held: Any) -> None:
    calibration = Calibration.checked(held(cogact, 2), cogact, limit=8, seed=0, progress=lambda *_: None)
    everything = {interface.name for interface in cogact.interfaces()}
    for recipe, names in ((da_ptq(compensation="none"), set()), (da_ptq(), everything)):
        inputs = Inputs(policy=cogact, recipe=recipe, calibration=calibration, progress=lambda *_: None)
        assert set(ProfileStage(inputs=inputs).profile().fitted) == names


def test_quantized_policy_is_refused(cogact: SmallCogACTPolicy, tmp_path: Path) -> None:
    loaded = load_policy(quantize(cogact, round_to_nearest(), output=tmp_path / "first"))
    with pytest.raises(InvalidInputError, match="policy must be in full precision, got 35 quantized layers"):
        quantize(loaded, round_to_nearest(), output=tmp_path / "second")
