"""Times every linear layer of a quantized policy against the best way to run that layer in float, and writes JSON.

    python benchmarks/layer_times.py CHECKPOINT --threads 2 --output benchmarks/results/<date>-layer-times.json

Layers of one shape and form are measured once, at the rows that they have in a control step, with the activations of
that step. Candidates take turns in every round; a ratio is taken within rounds and is less than 1 where the low-bit
layer is faster. A layer is measured by itself, called from Python: runtimes that fuse a whole graph have no calls to
pay for, and are compared with in ``daptq benchmark``. The page beside the JSON is written from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn

from daptq.artifacts import provenance, write_json
from daptq.benchmarking.benchmark import interleaved_times, percentiles, ratio_interval
from daptq.benchmarking.control_step import control_step
from daptq.benchmarking.exported_step import required
from daptq.layers.bfloat16_linear import BFloat16Linear
from daptq.layers.quantized_linear import QuantizedLinear
from daptq.layers.watching import watch
from daptq.packing.checkpoint import load_policy
from daptq.policies.contract import Policy

OURS = "low-bit"
CALLS = 5  # in a row: a single one is too short for the clock
Form = tuple[int, int, int, int]  # rows, inputs, outputs, bits


def inputs_of(policy: Policy) -> dict[str, Tensor]:
    """What every linear layer reads in a control step, rows (m, in), at its first call."""
    seen: dict[str, Tensor] = {}

    def note(name: str, x: Tensor) -> None:
        seen.setdefault(name, x.detach().reshape(-1, x.shape[-1]).clone())

    with watch(policy, policy.linear_layers(), note):
        control_step(policy).run(policy)
    return seen


def float_linear(layer: QuantizedLinear | BFloat16Linear) -> nn.Linear:
    """The layer in float32."""
    weight = layer.dequantize() if isinstance(layer, QuantizedLinear) else layer.weight.float()
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.weight.data = weight
    if layer.bias is not None:
        linear.bias.data = layer.bias.float()
    return linear.requires_grad_(False)


def candidates(layer: QuantizedLinear | BFloat16Linear, x: Tensor) -> dict[str, Callable[[], object]]:
    """The layer and what it is compared with."""
    linear = float_linear(layer)
    rounded, narrow = float_linear(layer).bfloat16(), x.bfloat16()
    runtime = required("openvino")
    exported = torch.export.export(linear, (x,))
    model = runtime.compile_model(
        runtime.convert_model(exported),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()},
    )
    request, array = model.create_infer_request(), x.numpy()
    once: dict[str, Callable[[], object]] = {
        OURS: lambda: layer(x),
        "torch-float32": lambda: linear(x),
        "torch-bfloat16": lambda: rounded(narrow),
        "openvino-float32": lambda: request.infer([array], share_inputs=True, share_outputs=True),
    }
    return {name: repeated(run) for name, run in once.items()}


def repeated(run: Callable[[], object]) -> Callable[[], None]:
    """Several calls in a row."""

    def calls() -> None:
        for _ in range(CALLS):
            run()

    return calls


def measure(checkpoint: Path, repeats: int, threads: int, seed: int) -> dict[str, Any]:
    """The result as a JSON object."""
    torch.set_num_threads(threads)
    policy = load_policy(checkpoint)
    control_step(policy).run(policy)  # Layers take their kernels; those that are hooked would choose by themselves.
    with torch.inference_mode():
        inputs = inputs_of(policy)
    forms: dict[Form, dict[str, Any]] = {}
    for name, role in policy.linear_layers().items():
        layer, x = policy.get_submodule(name), inputs[name]
        assert isinstance(layer, QuantizedLinear | BFloat16Linear)
        bits = layer.num_bits if isinstance(layer, QuantizedLinear) else 16
        form = (len(x), layer.in_features, layer.out_features, bits)
        if form in forms:
            forms[form]["layers"].append(name)
            continue
        with torch.inference_mode(False), torch.no_grad():
            runs = candidates(layer, x.clone())
            times = interleaved_times(runs, repeats=repeats, warmup=3, seed=seed, progress=lambda _: None)
        best = min(set(runs) - {OURS}, key=lambda candidate: float(np.median(times[candidate])))
        forms[form] = {
            **dict(zip(("rows", "in_features", "out_features", "bits"), form, strict=True)),
            "role": role,
            "layers": [name],
            "candidates": [
                {"name": key, "call_ms": percentiles(values / CALLS).to_json()} for key, values in times.items()
            ],
            "best_float": best,
            "ratio_to_best_float": ratio_interval(times[OURS] / times[best], seed).to_json(),
        }
        print(form, best, interval(forms[form]["ratio_to_best_float"]), flush=True)
    return {
        "schema_version": 1,
        "device": "cpu",
        "policy": policy.name,
        "forms": list(forms.values()),
        "provenance": {**provenance(seed=seed), "threads": threads, "repeats": repeats},
    }


def page(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    origin = result["provenance"]
    measured = (
        f"Every linear layer of {result['policy']}, by shape and bits, at the rows of one control step; "
        f"{origin['threads']} threads, n = {origin['repeats']} interleaved rounds, {origin['cpu']}, "
        f"{origin['time'][:10]}. A ratio below 1 means that the low-bit layer is faster. "
        "Written by `benchmarks/layer_times.py`."
    )
    lines = ["# Layers: low-bit time against the best float time", "", measured, ""]
    lines += ["| rows x in x out | bits | layers | low-bit [us] | best float [us] | of | ratio |"]
    lines += ["|---|---:|---:|---:|---:|---|---:|"]
    for form in result["forms"]:
        times = {entry["name"]: 1e3 * entry["call_ms"]["p50"] for entry in form["candidates"]}
        shape = f"{form['rows']} x {form['in_features']} x {form['out_features']}"
        best = form["best_float"]
        lines.append(
            f"| {shape} | {form['bits']} | {len(form['layers'])} | {times[OURS]:.1f} | {times[best]:.1f} | {best} | "
            f"{interval(form['ratio_to_best_float'])} |"
        )
    return "\n".join(lines) + "\n"


def interval(ratio: dict[str, float]) -> str:
    """Median with its interval."""
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="JSON file; the page gets its name.")
@click.option("--repeats", default=50, show_default=True, help="Measured rounds for each form of a layer.")
@click.option("--threads", default=2, show_default=True, help="Threads of every candidate.")
@click.option("--seed", default=0, show_default=True, help="Seed of the order and the bootstrap.")
def main(checkpoint: Path, output: Path, repeats: int, threads: int, seed: int) -> None:
    """Measures the layers of CHECKPOINT and writes the result."""
    result = measure(checkpoint, repeats, threads, seed)
    write_json(output, result)
    output.with_suffix(".md").write_text(page(result), encoding="utf-8")
    print(page(result))


if __name__ == "__main__":
    main()
