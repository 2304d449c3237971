"""Times the action head of CogACT alone, at its public size, in 4-bit weights against every way to run it in float.

    python benchmarks/dit_b.py --threads 2 --repeats 20 --output benchmarks/results/<date>-dit-b.json

DiT-B: 12 blocks of width 768, 12 heads, chunks of 16 actions and one token of the condition, a cognition feature of
4096, classifier-free guidance (34 rows), ten steps of DDIM. The weights are random: times do not depend on them, and
what the numbers mean for a robot is measured elsewhere. Candidates take turns in every repetition. The page beside the
JSON is written from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from daptq.artifacts import provenance, write_json
from daptq.benchmarking.benchmark import interleaved_times, percentiles, ratio_interval
from daptq.benchmarking.exported_step import Run, inductor, onnx_runtime, openvino
from daptq.benchmarking.float_paths import Skipped
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.packing.checkpoint import replace_module
from daptq.packing.size import weight_bytes_resident
from daptq.policies.diffusion import ddim_sample, ddim_steps, squared_cosine_alphas
from daptq.policies.dit import DiT
from daptq.rounding.nearest import round_weight

OURS, EAGER = "daptq-w4a8", "torch-float32"
SIZE = {
    "action_dim": 7,
    "chunk_size": 16,
    "condition_size": 4096,
    "hidden_size": 768,
    "depth": 12,
    "num_heads": 12,
}
STEPS, GUIDANCE = 10, 1.5


class Head(nn.Module):
    """The denoising loop around a diffusion transformer, as a policy runs it."""

    def __init__(self, net: DiT) -> None:
        super().__init__()
        self.net = net
        self.steps = ddim_steps(squared_cosine_alphas(100), STEPS)

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """The normalised action chunk."""
        fused = self.net.denoise(noise, condition, GUIDANCE, self.steps)
        if fused is not None:
            return fused

        def predict(sample: Tensor, timestep: int, _: int) -> Tensor:
            return self.net.guided(sample, torch.full((1,), timestep), condition, GUIDANCE)

        return ddim_sample(predict, noise, self.steps)


class ExportedHead:
    """The head as a graph, loop unrolled, for runtimes."""

    def __init__(self, head: Head, inputs: tuple[Tensor, Tensor]) -> None:
        self._inputs = inputs
        with torch.no_grad():
            self.program = torch.export.export(head, inputs, strict=False)

    def inputs(self) -> tuple[Tensor, ...]:
        """Noise and condition."""
        return self._inputs


def random_head(depth: int) -> Head:
    """The head in float32 with random weights; the last layer is not zero, as training would leave it."""
    torch.manual_seed(0)
    net = DiT(**{**SIZE, "depth": depth})
    net.initialize()
    nn.init.normal_(net.final_layer.linear.weight, std=0.02)
    return Head(net.eval().requires_grad_(False))


def quantized(head: Head) -> Head:
    """The head with every linear layer in 4 bits, activations in 8."""
    low_bit = copy.deepcopy(head)
    for path, module in list(low_bit.named_modules()):
        if isinstance(module, nn.Linear):
            rounded = round_weight(module.weight, 4)
            layer = QuantizedLinear.from_integers(rounded.integers, rounded.scale, module.bias)
            replace_module(low_bit, path, layer)
    return low_bit


def eager(head: Head, inputs: tuple[Tensor, Tensor]) -> Run:
    """The head called from Python."""

    def run() -> Tensor:
        with torch.inference_mode():
            return head(*inputs)[0]

    return run


def bfloat16(head: Head, inputs: tuple[Tensor, Tensor]) -> Run:
    """The head in bfloat16; autocast turns what a layer reads."""
    cast = eager(copy.deepcopy(head).to(torch.bfloat16), (inputs[0].bfloat16(), inputs[1].bfloat16()))

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cast().float()

    return run


def candidates(head: Head, inputs: tuple[Tensor, Tensor]) -> tuple[dict[str, Run], list[Skipped]]:
    """The float candidates that run here, and those that do not."""
    exported = ExportedHead(head, inputs)
    builders: dict[str, Callable[[], Run]] = {
        EAGER: lambda: eager(head, inputs),
        "torch-bfloat16": lambda: bfloat16(head, inputs),
        "torch-compile": lambda: inductor(exported),
        "openvino-float32": lambda: openvino(exported),
        "onnxruntime-float32": lambda: onnx_runtime(exported),
    }
    runs, skipped = {}, []
    for name, build in builders.items():
        try:
            runs[name] = build()
            runs[name]()
        # Exporters and compilers of other projects raise anything at all; the reason goes into the result.
        except Exception as error:  # noqa: BLE001
            runs.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            skipped.append(Skipped(name=name, reason=f"cannot run here: {type(error).__name__}: {reason}"))
        print(f"built {name}", flush=True)
    return runs, skipped


def measure(depth: int, repeats: int, threads: int, seed: int) -> dict[str, Any]:
    """The result as a JSON object."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, SIZE["chunk_size"], SIZE["action_dim"], generator=generator)
    inputs = (noise, torch.randn(1, 1, SIZE["condition_size"], generator=generator))
    head = random_head(depth)
    low_bit = quantized(head)
    ours = eager(low_bit, inputs)
    ours()  # Layers choose their kernels in the first call.
    fused = low_bit.net.denoise(*inputs, GUIDANCE, low_bit.steps) is not None
    runs, skipped = candidates(head, inputs)
    expected = runs[EAGER]()
    differences = {name: float((run() - expected).abs().max()) for name, run in {OURS: ours, **runs}.items()}
    times = interleaved_times({OURS: ours, **runs}, repeats=repeats, warmup=2, seed=seed, progress=print)
    fastest = min(runs, key=lambda name: float(np.median(times[name])))
    return {
        "schema_version": 1,
        "device": "cpu",
        "size": {**SIZE, "depth": depth, "denoising_steps": STEPS, "guidance": GUIDANCE, "rows": 34},
        "heads": [
            {
                "name": name,
                "weight_bytes": weight_bytes_resident(module),
                "denoising_ms": percentiles(times[name]).to_json(),
            }
            for name, module in ((OURS, low_bit), (EAGER, head))
        ],
        "fused": fused,
        "float_path": {"name": fastest, "p50": float(np.median(times[fastest]))},
        "ratio_to_float_path": {OURS: ratio_interval(times[OURS] / times[fastest], seed).to_json()},
        "ratio_to_eager": {OURS: ratio_interval(times[OURS] / times[EAGER], seed).to_json()},
        "float_paths": [
            {"name": name, "denoising_ms": percentiles(times[name]).to_json(), "max_abs_difference": differences[name]}
            for name in runs
        ],
        "skipped": [asdict(left_out) for left_out in skipped],
        "provenance": {**provenance(seed=seed), "threads": threads, "repeats": repeats},
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    origin, size = result["provenance"], result["size"]
    ours, plain = result["heads"]
    measured = (
        f"{size['depth']} blocks of width {size['hidden_size']}, {size['rows']} rows, {size['denoising_steps']} "
        f"steps of DDIM with guidance, random weights; {origin['threads']} threads, "
        f"n = {origin['repeats']} interleaved repetitions, {origin['cpu']}, {origin['time'][:10]}. "
        "Written by `benchmarks/dit_b.py`."
    )
    lines = [
        "# DiT-B action head alone",
        "",
        measured,
        "",
        "| candidate | p50 [ms] | p95 [ms] |",
        "|---|---:|---:|",
    ]
    timed = [(OURS, ours["denoising_ms"]), *((path["name"], path["denoising_ms"]) for path in result["float_paths"])]
    lines += [f"| `{name}` | {times['p50']:.1f} | {times['p95']:.1f} |" for name, times in timed]
    against_path, against_eager = result["ratio_to_float_path"][OURS], result["ratio_to_eager"][OURS]
    ratios = (
        f"Time divided by that of the best float path (`{result['float_path']['name']}`) in the same repetition, with "
        f"95 % interval: {interval(against_path)}; by eager float32: {interval(against_eager)}. Weights: "
        f"{ours['weight_bytes'] / 2**20:.1f} MiB instead of {plain['weight_bytes'] / 2**20:.1f}."
    )
    lines += ["", ratios, ""]
    lines += [f"`{left_out['name']}` was left out: {left_out['reason']}" for left_out in result["skipped"]]
    return "\n".join(lines).rstrip() + "\n"


def interval(ratio: dict[str, float]) -> str:
    """Median with its interval."""
    return f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


@click.command()
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file; the page gets its name.")
@click.option("--repeats", default=20, show_default=True, help="Measured repetitions, each runs everything once.")
@click.option("--threads", default=2, show_default=True, help="Threads of every runtime.")
@click.option("--depth", default=SIZE["depth"], show_default=True, help="Blocks, fewer to try the script.")
@click.option("--seed", default=0, show_default=True, help="Seed of the inputs, the order and the bootstrap.")
def main(output: Path, repeats: int, threads: int, depth: int, seed: int) -> None:
    """Measures and writes the result."""
    result = measure(depth, repeats, threads, seed)
    write_json(output, result)
    output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
