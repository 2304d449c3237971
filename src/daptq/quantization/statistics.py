"""What rounding and weighted compensation read of the full-precision policy, from more passes over the data.

Gram matrices of the layers' inputs (GPTQ), and for every interface the matrix H = E[J^T G J], J the derivative of the
executed chunk with respect to the representation: what an error of the representation does to the robot [mm^2], where
errors of several rows of a state count as independent. Both come from the complete denoising loop; where drift weighs,
from one backward pass through it per batch. A pass serves as many layers as a fixed amount of memory holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.artifacts import Artifact
from daptq.calibration.contract import batch_size
from daptq.calibration.gram import observe_grams
from daptq.interfaces.contract import Interface
from daptq.policies.contract import Batch, Policy
from daptq.policies.taps import check_mask, watch_taps
from daptq.quantization.allocation import calibrated_layers, float_linear
from daptq.quantization.interfaces import interfaces_of
from daptq.quantization.profile import DriftProfile
from daptq.quantization.profiling import GROUP_BYTES, Calibration, evaluating, groups
from daptq.quantization.stage import Inputs, Stage, StageContent
from daptq.sensitivity.gradients import only_gradients_of
from daptq.sensitivity.probe import metric_root, probe, probe_generator

__all__ = ["StatisticsStage", "interface_sensitivities"]

BYTES_PER_ENTRY = 8  # of a Gram matrix


@dataclass(frozen=True, kw_only=True)
class StatisticsStage(Stage[Artifact]):
    """Tensors float64 ``<layer>/gram`` and ``<interface>/sensitivity``, computed group by group as they are taken.

    Attributes:
        inputs: Policy, recipe and data.
        profile: Holds the metric G where drift weighs.
    """

    name = "statistics"
    kind = "layer-statistics"

    inputs: Inputs
    profile: DriftProfile

    def compute(self) -> StageContent:
        """Runs the passes."""
        return self._tensors(), {}

    def read(self, artifact: Artifact) -> Artifact:
        """The artifact: its tensors are read layer by layer."""
        return artifact

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        policy, recipe, calibration = self.inputs.policy, self.inputs.recipe, self.inputs.data
        needs = recipe.needs
        names = calibrated_layers(policy, recipe) if needs.grams else ()
        sizes = {name: BYTES_PER_ENTRY * float_linear(policy, name).in_features ** 2 for name in names}
        root = None
        if needs.weighted_grams or needs.interface_sensitivities:
            assert self.profile.metric is not None, "the recipe needs the metric"
            root = metric_root(self.profile.metric)
        interfaces = interfaces_of(policy, recipe) if needs.interface_sensitivities else ()
        passes = groups(sizes, GROUP_BYTES) or [()]
        for number, group in enumerate(passes):

            def report(done: int, number: int = number) -> None:
                total = len(passes) * calibration.batches
                self.inputs.progress(number * calibration.batches + done, total, "statistics")

            yield from _one_pass(
                policy,
                group,
                calibration,
                weighted=needs.weighted_grams,
                root=root,
                interfaces=interfaces if number == 0 else (),
                report=report,
            )


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
                gradients = _RepresentationGradients(policy, interfaces, batch)
                with gradients.watched(policy):
                    value = probe(policy.denoised_chunk(batch, generator), root, probe_generator(generator))
                    torch.autograd.grad(value, [*parameters.values(), *gradients.leaves], allow_unused=True)
                for name, product in gradients.products():
                    added = product * (states / calibration.states)
                    sensitivities[name] = sensitivities.get(name, torch.zeros_like(added)) + added
            else:
                with torch.no_grad():
                    policy.denoised_chunk(batch, generator)
            report(index + 1)
    yield from grams.tensors().items()
    yield from ((f"{name}/sensitivity", h) for name, h in sensitivities.items())


def interface_sensitivities(statistics: Artifact | None) -> dict[str, Float[Tensor, "d d"]]:
    """H of every interface by name, as far as the pass collected it."""
    if statistics is None:
        return {}
    ending = "/sensitivity"
    names = [name for name in statistics.tensor_names if name.endswith(ending)]
    return {name.removesuffix(ending): statistics.tensor(name) for name in names}


class _RepresentationGradients:
    """What one backward pass says about the representations of a batch.

    Args:
        policy: Says which rows are padding.
        interfaces: Where representations are read.
        batch: What the policy reads.

    Attributes:
        leaves: Representations that depend on no parameter with a gradient; the backward pass must be asked for them.
    """

    def __init__(self, policy: Policy, interfaces: tuple[Interface, ...], batch: Batch) -> None:
        self.leaves: list[Tensor] = []
        self._interfaces = {interface.name: interface for interface in interfaces}
        self._masks = {name: policy.interface_mask(name, batch) for name in self._interfaces}
        self._states = batch_size(batch)
        self._sums: dict[str, Float[Tensor, "states rows d"]] = {}
        self._seen: dict[str, list[Tensor]] = {}

    @contextmanager
    def watched(self, policy: Policy) -> Iterator[None]:
        """Within the block gradients with respect to each row of a representation are added up over its uses."""
        with watch_taps(policy, {name: interface.tap for name, interface in self._interfaces.items()}, self._follow):
            yield

    def products(self) -> Iterator[tuple[str, Float[Tensor, "d d"]]]:
        """Sum of g g^T over the rows of all states, by interface; the rows of a state add up as independent errors."""
        for name, total in self._sums.items():
            rows = total.flatten(0, 1)
            yield name, rows.mT @ rows

    def _follow(self, name: str, representation: Tensor) -> None:
        seen = self._seen.setdefault(name, [])
        constant = self._interfaces[name].tap.rows(representation.detach(), self._states) is None
        # A tensor that is read again has one gradient for all its uses.
        if constant or any(representation is other for other in seen):
            return
        seen.append(representation)
        if not representation.requires_grad:
            self.leaves.append(representation.requires_grad_())
        representation.register_hook(lambda gradient: self._add(name, gradient))

    def _add(self, name: str, gradient: Tensor) -> None:
        rows = self._interfaces[name].tap.rows(gradient.detach(), self._states)
        assert rows is not None
        rows = rows.to(torch.float64)
        mask = self._masks[name]
        if mask is not None:
            check_mask(rows, mask)
            rows = rows * mask.to(rows.device).unsqueeze(2)
        self._sums[name] = self._sums[name] + rows if name in self._sums else rows
