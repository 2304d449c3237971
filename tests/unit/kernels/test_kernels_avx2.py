"""The AVX2 kernel's registration, what it refuses, and the cache of compiled sources."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from daptq.errors import BackendUnavailableError
from daptq.kernels import compiled
from daptq.kernels.linear.backends import avx2
from daptq.kernels.linear.contract import PackedWeight
from daptq.layers.quantized_linear import QuantizedLinear

runs_here = pytest.mark.skipif(avx2.unavailable() is not None, reason=str(avx2.unavailable()))
has_compiler = pytest.mark.skipif("no C++ compiler" in str(avx2.unavailable()), reason="there is no g++")

LOAD = """
import logging, sys
from pathlib import Path
from daptq.kernels.compiled import load_source
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
print(load_source(Path(sys.argv[1])))
"""

# Every bit width and remainder of a tile, on a processor that is taken to have no 8-bit dot products.
PLAIN_AVX2 = """
import torch
torch.cpu._is_vnni_supported = lambda: False
from daptq.kernels.linear.backends import avx2
from daptq.kernels.linear.backends import reference
from daptq.kernels.linear.contract import PackedWeight
assert avx2._flags() == ("-mavx2",)
assert avx2.unavailable() is None
generator = torch.Generator().manual_seed(0)
for num_bits in (2, 3, 4, 8):
    for rows, in_features, out_features in ((1, 40, 7), (2, 192, 48), (3, 65, 33), (4, 768, 32), (21, 300, 50)):
        high = 2 ** (num_bits - 1)
        for low in (-high, high - 1):
            shape = (out_features, in_features)
            integers = torch.randint(low, high, shape, generator=generator, dtype=torch.int8)
            weight = PackedWeight.from_integers(integers, num_bits)
            x = torch.randn(rows, in_features, generator=generator)
            for given in (x, x.sign()):
                scale, bias = torch.rand(out_features, 1, generator=generator), torch.randn(out_features)
                result = avx2.prepare(weight).run(given, scale, bias)
                assert torch.equal(result, reference.prepare(weight).run(given, scale, bias)), (num_bits, rows)
                assert bool(result.any())
print("equal")
"""


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of compiled sources that nobody has used."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled.load_source.cache_clear()
    yield compiled.kernel_cache()
    compiled.load_source.cache_clear()


def small_source(folder: Path, text: str = 'extern "C" int daptq_test() { return 3; }') -> Path:
    source = folder / "small.cpp"
    source.write_text(text, encoding="utf-8")
    return source


def packed(in_features: int, out_features: int, num_bits: int) -> PackedWeight:
    return PackedWeight.from_integers(torch.ones(out_features, in_features, dtype=torch.int8), num_bits)


# --- the operation ---------------------------------------------------------------------------------------------------


@runs_here
@pytest.mark.parametrize("stored_bits", [2, 4, 8])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("static", [True, False])
def test_operation_passes_opcheck(stored_bits: int, bias: bool, static: bool) -> None:
    tiles = avx2.to_tiles(torch.randint(-2, 2, (10, 24), dtype=torch.int8), stored_bits)
    arguments = (
        torch.randn(3, 24),
        tiles,
        torch.rand(10, 1),
        torch.randn(10) if bias else None,
        stored_bits,
        8,
        torch.tensor(0.1) if static else None,
    )
    torch.library.opcheck(torch.ops.daptq.linear_w4a8_avx2.default, arguments)


@runs_here
def test_operation_refuses_what_does_not_belong_together() -> None:
    run = torch.ops.daptq.linear_w4a8_avx2.default
    tiles, scale = avx2.to_tiles(torch.ones(16, 32, dtype=torch.int8), 4), torch.ones(16, 1)
    x = torch.randn(2, 32)
    assert run(x, tiles, scale, None, 4).shape == (2, 16)
    for arguments, message in (
        ((x.double(), tiles, scale, None, 4), "x must be a float32 matrix"),
        ((torch.randn(2, 33), tiles, scale, None, 4), "tiles must be 512 contiguous bytes"),
        ((x, tiles, torch.ones(17, 1), None, 4), "tiles must be 512 contiguous bytes"),
        ((x, tiles, scale, None, 3), "stored_bits must be 2, 4 or 8"),
        ((x, tiles, scale, None, 4, 5), "activation_bits must be 4 or 8"),
        ((x, tiles, scale.double(), None, 4), "weight_scale must be float32"),
        ((x, tiles, scale, torch.ones(15), 4), "bias must be float32"),
        ((x, tiles, scale, None, 4, 8, torch.ones(2)), "activation_scale must be one float32"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(*arguments)


@runs_here
def test_kernel_without_dot_products_equals_the_reference() -> None:
    command = [sys.executable, "-c", PLAIN_AVX2]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() == ["equal"]


# --- where it cannot run ---------------------------------------------------------------------------------------------


def test_rows_whose_sums_could_overflow_are_refused() -> None:
    # 2^31 - 1 over 127 * 128 is 132104.06.
    assert avx2.unsupported(packed(132104, 1, 8), 8) is None
    assert "exact up to 132104 input features" in str(avx2.unsupported(packed(132105, 1, 8), 8))
    assert avx2.unsupported(packed(132105, 1, 4), 8) is None


def test_other_devices_are_refused() -> None:
    weight = PackedWeight(packed=torch.zeros(2, 4, dtype=torch.uint8, device="meta"), in_features=8, num_bits=4)
    assert "runs on the CPU only, not on meta" in str(avx2.unsupported(weight, 8))


def test_a_processor_without_avx2_is_named_and_an_explicit_choice_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert "this processor has no AVX2" in str(avx2.unavailable())
    with pytest.raises(BackendUnavailableError, match="'avx2' must be able to run here, but this processor has no"):
        QuantizedLinear(packed(32, 16, 4), torch.ones(16, 1), backend="avx2")


def test_a_machine_without_a_compiler_is_named(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(compiled, "COMPILER", "g++-of-the-year-3000")
    with pytest.raises(BackendUnavailableError, match=r"there is no C\+\+ compiler called g\+\+-of-the-year-3000"):
        QuantizedLinear(packed(32, 16, 4), torch.ones(16, 1), backend="avx2")


# --- the cache of compiled sources -----------------------------------------------------------------------------------


@has_compiler
def test_a_compiler_error_is_the_reason_and_leaves_nothing(empty_cache: Path, tmp_path: Path) -> None:
    reason = compiled.load_source(small_source(tmp_path, "int f() { return no_such_name; }"))
    assert reason is not None
    assert "could not compile small.cpp" in reason
    assert "no_such_name" in reason
    assert not list(empty_cache.rglob("*.so"))


@has_compiler
def test_a_cache_that_cannot_be_written_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compiled, "kernel_cache", lambda: tmp_path / "file")
    compiled.load_source.cache_clear()
    assert "could not be compiled and loaded" in str(compiled.load_source(small_source(tmp_path)))
    compiled.load_source.cache_clear()


@has_compiler
def test_processes_that_start_at_once_compile_once(empty_cache: Path, tmp_path: Path) -> None:
    source = small_source(tmp_path)

    def start(_: int) -> list[str]:
        command = [sys.executable, "-c", LOAD, str(source)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        outputs = list(pool.map(start, range(3)))
    assert [lines[-1] for lines in outputs] == ["None"] * 3
    assert sum("compiling small.cpp" in line for lines in outputs for line in lines) == 1
    libraries = list(empty_cache.rglob("*"))
    assert [path.name for path in libraries if path.suffix == ".so"] == ["small.so"]
    assert not [path for path in libraries if path.name.startswith("tmp")]
    # A later process finds it, another source is another library.
    assert start(0) == ["None"]
    small_source(tmp_path, 'extern "C" int daptq_test() { return 4; }')
    assert any("compiling" in line for line in start(0))
    assert len(list(empty_cache.rglob("*.so"))) == 2


@has_compiler
def test_flags_and_versions_are_part_of_the_name(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = small_source(tmp_path)
    assert compiled.load_source(source) is None
    assert compiled.load_source(source, ("-DOTHER",)) is None
    assert len(list(empty_cache.rglob("small.so"))) == 2
    compiled.load_source.cache_clear()
    monkeypatch.setattr(torch, "__version__", "0.0.1")
    assert compiled.load_source(source) is None
    assert len(list(empty_cache.rglob("small.so"))) == 3
