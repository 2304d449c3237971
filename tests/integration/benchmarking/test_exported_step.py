"""The exported control step says what the policy says, and reads all its inputs."""

from __future__ import annotations

import pytest
import torch
from torch.export.passes import move_to_device_pass

from daptq.benchmarking.control_step import control_step
from daptq.benchmarking.exported_step import ExportedStep, required
from daptq.errors import MissingDependencyError
from daptq.policies import cogact_small as cogact


def devices(program: torch.export.ExportedProgram) -> set[str]:
    """Where its tensors are, and where its operations make new ones."""
    tensors = (*program.state_dict.values(), *program.constants.values())
    made = (node.kwargs["device"] for node in program.graph.nodes if "device" in node.kwargs)
    return {str(tensor.device) for tensor in tensors} | {str(device) for device in made}


@pytest.mark.slow
def test_the_exported_step_is_the_policy() -> None:
    policy = cogact.POLICY.tiny()
    step = control_step(policy)
    exported = ExportedStep(policy, step)
    graph = exported.program.module()
    inputs = exported.inputs()
    assert [tuple(tensor.shape) for tensor in inputs] == [(1, 16, 7), (1, 3, 64, 64), (1, 7)]
    expected = step.run(policy)
    # The same operations in the same order: nothing but their order of execution could differ.
    assert torch.allclose(graph(*inputs)[0], expected, atol=1e-6)
    for changed in range(len(inputs)):
        others = [tensor + 0.3 if index == changed else tensor for index, tensor in enumerate(inputs)]
        assert not torch.allclose(graph(*others)[0], expected, atol=1e-4), changed


def test_the_exported_step_leaves_nothing_on_the_device_that_it_is_moved_from() -> None:
    policy = cogact.POLICY.tiny()
    exported = ExportedStep(policy, control_step(policy))
    inputs = [tensor.to("meta") for tensor in exported.inputs()]
    assert devices(exported.program) == {"cpu"}
    moved = move_to_device_pass(exported.program, "meta")
    assert devices(moved) == {"meta"}
    assert moved.module()(*inputs).device.type == "meta"


def test_a_package_that_is_not_there_is_named() -> None:
    with pytest.raises(MissingDependencyError, match=r"package no_such_runtime must be installed.*daptq\[benchmark\]"):
        required("no_such_runtime")
