"""Choices of a kernel that outlive the process."""

from __future__ import annotations

import json
import logging
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType

import pytest
import torch

import daptq.kernels.linear.backends.float32_carried as carried
from daptq import catalog
from daptq.errors import BackendUnavailableError
from daptq.kernels.linear.contract import PackedWeight, PreparedLinear
from daptq.layers import choices, picker
from daptq.layers.quantized_linear import QuantizedLinear

NAME = "2x512x64-w4a8-dynamic-cpu-"


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Path:
    """The folder of the choices of a machine on which nothing was chosen yet; every kernel but one is slow there."""
    monkeypatch.setattr(choices, "choices_folder", lambda: tmp_path / "choices")
    caplog.set_level(logging.INFO, logger="daptq.kernels")
    fresh_process(monkeypatch)
    pretend_fastest(monkeypatch, "Float32CarriedLinear")
    return tmp_path / "choices"


def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picker, "_choices", {})


def pretend_fastest(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def time(prepared: PreparedLinear, _: object) -> float:
        return 1e-3 if type(prepared).__name__ == name else 1.0

    monkeypatch.setattr(picker, "_time", time)


def chosen() -> str | None:
    """The kernel that a new layer takes."""
    integers = torch.randint(-7, 8, (64, 512), dtype=torch.int8)
    layer = QuantizedLinear.from_integers(integers, torch.ones(64, 1))
    layer(torch.randn(2, 512))
    return layer.backend


def test_a_later_process_takes_the_choice_without_measuring(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert chosen() == "float32-carried"
    path = folder / f"{NAME}{torch.get_num_threads()}.json"
    document = json.loads(path.read_text())
    assert document["kernel"] == "float32-carried"
    assert document["milliseconds"]["float32-carried"] == 1.0
    assert document["milliseconds"]["reference"] == 1000.0
    assert document["bfloat16_milliseconds"] > 0
    fresh_process(monkeypatch)
    pretend_fastest(monkeypatch, "ReferenceLinear")
    assert chosen() == "float32-carried"
    assert "is float32-carried (measured by an earlier process on this machine)" in caplog.text
    path.unlink()
    fresh_process(monkeypatch)
    assert chosen() == "reference"


def test_of_processes_that_measure_side_by_side_the_first_to_finish_decides(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = f"{NAME}{torch.get_num_threads()}.json"

    def another_process_finishes(prepared: PreparedLinear, _: object) -> float:
        document = {
            "schema_version": 2,
            "kernel": "reference",
            "milliseconds": {"reference": 3.0, "float32-carried": 4.0},
            "bfloat16_milliseconds": 2.0,
        }
        folder.mkdir(exist_ok=True)
        (folder / file).write_text(json.dumps(document))
        return 1e-3 if type(prepared).__name__ == "Float32CarriedLinear" else 1.0

    monkeypatch.setattr(picker, "_time", another_process_finishes)
    assert chosen() == "reference"
    assert "is reference (measured by another process on this machine at the same time)" in caplog.text
    assert json.loads((folder / file).read_text())["milliseconds"]["reference"] == 3.0
    assert [path.name for path in folder.iterdir()] == [file]
    assert chosen() == "reference"


def test_what_was_measured_is_asked_without_preparing_the_weight_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        PackedWeight.from_integers(torch.ones(64, 512, dtype=torch.int8), 4),
        torch.ones(64, 1),
        None,
        torch.randn(2, 512),
    )
    first = picker.measured(*arguments)
    monkeypatch.setattr(picker, "prepare", None)
    assert picker.measured(*arguments) is first


def test_another_shape_or_number_of_threads_is_measured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        pretend_fastest(monkeypatch, "ReferenceLinear")
        assert chosen() == "reference"
    finally:
        torch.set_num_threads(threads)
    assert sorted(path.name for path in folder.iterdir()) == [f"{NAME}{threads}.json", f"{NAME}{threads + 1}.json"]


def test_a_kept_choice_that_cannot_run_any_more_is_measured_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen()
    fresh_process(monkeypatch)
    monkeypatch.setattr(carried, "unavailable", lambda: "it was taken away")
    assert chosen() not in (None, "float32-carried")
    with pytest.raises(BackendUnavailableError, match="it was taken away"):
        QuantizedLinear.from_integers(torch.ones(4, 4, dtype=torch.int8), torch.ones(4, 1), backend="float32-carried")


def test_a_kept_choice_that_computes_something_else_is_not_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen()
    fresh_process(monkeypatch)

    def negated(weight: PackedWeight) -> carried.Float32CarriedLinear:
        return carried.Float32CarriedLinear(PackedWeight.from_integers(-weight.integers(), weight.num_bits))

    monkeypatch.setattr(carried, "prepare", negated)
    assert chosen() not in (None, "float32-carried")
    assert "kernel float32-carried differs from the reference" in caplog.text


DAMAGED = [
    *("", "[]", "{}", '{"schema_version": 2}', "\x00"),
    '{"schema_version": 2, "kernel": "reference", "milliseconds": [], "bfloat16_milliseconds": 1.0}',
    '{"schema_version": 2, "kernel": "reference", "milliseconds": {}, "bfloat16_milliseconds": 1.0}',
    '{"schema_version": 2, "kernel": "reference", "milliseconds": {"reference": 1.0}}',
    '{"schema_version": 2, "kernel": "reference", "milliseconds": {"reference": 1.0}, "bfloat16_milliseconds": 0.0}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_said_and_measured_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, content: str
) -> None:
    chosen()
    fresh_process(monkeypatch)
    (folder / f"{NAME}{torch.get_num_threads()}.json").write_text(content)
    pretend_fastest(monkeypatch, "ReferenceLinear")
    assert chosen() == "reference"
    assert "could not be read" in caplog.text


def test_another_schema_and_unknown_kernels_are_not_taken(folder: Path) -> None:
    folder.mkdir()
    good = {
        "schema_version": 2,
        "kernel": "reference",
        "milliseconds": {"reference": 3.0, "fbgemm": 4.0},
        "bfloat16_milliseconds": 2.0,
    }
    for document in (good | {"schema_version": 1}, good | {"kernel": "x"}):
        (folder / "shape.json").write_text(json.dumps(document))
        assert choices.recall("shape") is None
    (folder / "shape.json").write_text(json.dumps(good))
    recalled = choices.recall("shape")
    assert recalled is not None
    assert recalled.kernel == "reference"
    assert recalled.slower
    assert [recalled.ratio_to_bfloat16(kernel) for kernel in ("reference", "fbgemm", "x", None)] == [1.5, 2, None, None]


def test_a_folder_that_cannot_be_written_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file in the way")
    assert chosen() == "float32-carried"
    assert "the choice of a kernel is not kept for later processes" in caplog.text


def test_processor_torch_and_sources_are_part_of_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = set()

    def machine() -> str:
        choices._machine.cache_clear()
        return choices.choices_folder().name

    try:
        assert machine() == machine()
        seen.add(machine())
        monkeypatch.setattr(torch, "__version__", "0.0.1")
        seen.add(machine())
        processor = tmp_path / "cpuinfo"
        processor.write_text("model name : made of wood\nflags : nails\n")
        monkeypatch.setattr(choices, "_PROCESSOR", processor)
        seen.add(machine())
        processor.write_text("model name : made of wood\nflags : screws\n")
        seen.add(machine())
        (tmp_path / "choices.py").write_text("")
        (tmp_path / "kernel.cpp").write_text("int f();")
        monkeypatch.setattr(choices, "__file__", str(tmp_path / "choices.py"))
        seen.add(machine())
        (tmp_path / "kernel.cpp").write_text("int g();")
        seen.add(machine())
        assert len(seen) == 6
    finally:
        choices._machine.cache_clear()


def test_a_kernel_of_another_distribution_that_is_broken_is_no_candidate(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = ModuleType("acme_kernel")
    for name in ("unavailable", "unsupported", "prepare"):
        setattr(module, name, getattr(carried, name))
    monkeypatch.setitem(sys.modules, "acme_kernel", module)
    points = [EntryPoint("acme-kernel", "acme_kernel", "daptq.kernel")]
    monkeypatch.setattr(catalog, "entry_points", lambda *, group: points if group == "daptq.kernel" else [])
    monkeypatch.setattr(catalog, "_warn", catalog.LOG.warning)
    assert chosen() in ("acme-kernel", "float32-carried")
    (path,) = folder.iterdir()
    path.write_text(path.read_text().replace('"kernel": "float32-carried"', '"kernel": "acme-kernel"'))
    # It was chosen once; since then it lost something that it needs.
    monkeypatch.delitem(sys.modules, "acme_kernel")
    fresh_process(monkeypatch)
    assert chosen() == "float32-carried"
    assert "kernel 'acme-kernel' of another distribution is left out" in caplog.text
