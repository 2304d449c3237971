"""What rounding and weighted compensation read of the full-precision policy, from more passes over the data.

Gram matrices of the layers' inputs (GPTQ), and for every interface the matrix H = E[J^T G J], J the derivative of the
executed chunk with respect to the representation: what an error of the representation does to the robot [mm^2]. Both
come from the complete denoising loop; where drift weighs, from one backward pass through it per batch. A pass serves as
many layers as a fixed amount of memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.calibration.contract import batch_size
from daptq.calibration.gram import observe_grams
from daptq.compensation.paired import PairedConfig
from daptq.layers.watching import watch
from daptq.policies.contract import Interface, Policy
from daptq.quantization.allocation import calibrated_layers, float_linear
from daptq.quantization.groups import GROUP_BYTES, groups
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import Calibration, Progress, evaluating
from daptq.quantization.recipe import Recipe
from daptq.quantization.workspace import StageContent
from daptq.rounding.gptq import GptqConfig
from daptq.sensitivity.phi import only_gradients_of
from daptq.sensitivity.rounding import metric_root, probe

__all__ = ["STATISTICS_KIND", "interface_sensitivities", "needs_statistics", "probe_generator", "statistics_content"]

STATISTICS_KIND = "layer-statistics"

BYTES_PER_ENTRY = 8  # of a Gram matrix


def needs_statistics(recipe: Recipe) -> bool:
    """Whether a stage of the recipe reads what this pass collects."""
    return isinstance(recipe.rounding, GptqConfig) or _weighted_map(recipe)


def probe_generator(generator: torch.Generator) -> torch.Generator:
    """The source of random projections that goes with a batch's source of noise."""
    return torch.Generator().manual_seed(generator.initial_seed() ^ 0x9E3779B9)


def statistics_content(
    policy: Policy, recipe: Recipe, profile: DriftProfile, calibration: Calibration, *, progress: Progress
) -> StageContent:
    """Runs the pass.

    Args:
        policy: Full-precision policy.
        recipe: Says which statistics are read.
        profile: Holds the metric G where drift weighs.
        calibration: Checked data.
        progress: Called as progress(done, total, "statistics") after every batch.

    Returns:
        Tensors float64 ``<layer>/gram`` and ``<observed>/sensitivity``, computed group by group as they are taken.
    """
    rounding = recipe.rounding if isinstance(recipe.rounding, GptqConfig) else None
    weighted = rounding is not None and rounding.drift_weighted
    names = calibrated_layers(policy, recipe) if rounding is not None else ()
    sizes = {name: BYTES_PER_ENTRY * float_linear(policy, name).in_features ** 2 for name in names}
    root = None
    if weighted or _weighted_map(recipe):
        assert profile.metric is not None
        root = metric_root(profile.metric)
    interfaces = interfaces_of(policy, recipe) if _weighted_map(recipe) else ()

    def tensors() -> Iterator[tuple[str, Tensor]]:
        passes = groups(sizes, GROUP_BYTES) or [()]
        for number, group in enumerate(passes):

            def report(done: int, number: int = number) -> None:
                progress(number * calibration.batches + done, len(passes) * calibration.batches, "statistics")

            yield from _one_pass(
                policy,
                group,
                calibration,
                weighted=weighted,
                root=root,
                interfaces=interfaces if number == 0 else (),
                report=report,
            )

    return tensors(), {}


def _one_pass(
    policy: Policy,
    group: tuple[str, ...],
    calibration: Calibration,
    *,
    weighted: bool,
    root: Float[Tensor, "k k"] | None,
    interfaces: tuple[Interface, ...],
    report: Callable[[int], None],
) -> Iterator[tuple[str, Tensor]]:
    """The statistics of one group of layers, and of the interfaces."""
    parameters = {name: float_linear(policy, name).weight for name in group if weighted}
    backward = root is not None and bool(parameters or interfaces)
    sensitivities: dict[str, Tensor] = {}
    with (
        evaluating(policy),
        only_gradients_of(policy, parameters),
        observe_grams(policy, group, weighted=weighted) as grams,
    ):
        for index, (batch, generator) in enumerate(calibration):
            if backward:
                assert root is not None
                states = batch_size(batch)
                with _representation_gradients(policy, interfaces, states) as gradients:
                    value = probe(policy.denoised_chunk(batch, generator), root, probe_generator(generator))
                    torch.autograd.grad(value, [*parameters.values(), *gradients.leaves], allow_unused=True)
                for observed, total in gradients.sums.items():
                    added = total.mT @ total * (states / calibration.states)
                    sensitivities[observed] = sensitivities.get(observed, torch.zeros_like(added)) + added
            else:
                with torch.no_grad():
                    policy.denoised_chunk(batch, generator)
            report(index + 1)
    yield from grams.tensors().items()
    yield from ((f"{observed}/sensitivity", h) for observed, h in sensitivities.items())


def interface_sensitivities(statistics: Artifact | None) -> dict[str, Float[Tensor, "d d"]]:
    """H of every interface by observed module, as far as the pass collected it."""
    if statistics is None:
        return {}
    ending = "/sensitivity"
    names = [name for name in statistics.tensor_names if name.endswith(ending)]
    return {name.removesuffix(ending): statistics.tensor(name) for name in names}


def _weighted_map(recipe: Recipe) -> bool:
    return isinstance(recipe.compensation, PairedConfig) and recipe.compensation.weighted


@dataclass(frozen=True, kw_only=True)
class _Gradients:
    """What one backward pass says about representations.

    Attributes:
        sums: float64 (states, d) by observed module, added up over the uses of a representation.
        leaves: Representations that depend on no parameter with a gradient; the backward pass must be asked for them.
    """

    sums: dict[str, Float[Tensor, "states d"]] = field(default_factory=dict)
    leaves: list[Tensor] = field(default_factory=list)


@contextmanager
def _representation_gradients(policy: Policy, interfaces: tuple[Interface, ...], states: int) -> Iterator[_Gradients]:
    """Within the block, gradients with respect to the representation of each state are added up over its uses.

    The first rows that an interface's observed module reads are those of the states, see `Interface.observed`.
    """
    gradients = _Gradients()

    def add(observed: str, gradient: Tensor) -> None:
        rows = gradient.detach()[:states].reshape(-1, gradient.shape[-1]).to(torch.float64)
        gradients.sums[observed] = gradients.sums[observed] + rows if observed in gradients.sums else rows

    def add_hook(observed: str, representation: Tensor) -> None:
        if not representation.requires_grad:
            gradients.leaves.append(representation.requires_grad_())
        representation.register_hook(lambda gradient: add(observed, gradient))

    with watch(policy, [interface.observed for interface in interfaces], add_hook):
        yield gradients
