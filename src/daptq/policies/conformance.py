"""The public conformance suite of a VLA family: what every later stage takes for granted, checked on one policy.

It runs the policy on its own example batch; it knows no family.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daptq.errors import CheckFailedError
from daptq.layers.watching import watch_outputs
from daptq.policies.contract import ACTION, ROLES, Batch, Policy

__all__ = ["check_policy"]


def check_policy(policy: Policy, *, seed: int = 0) -> None:
    """Checks that `policy` keeps the contract of `Policy`.

    Args:
        policy: A float policy on the CPU.
        seed: Seed of the example batch and of the diffusion noise.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    batch = policy.example_batch(seed)
    _check_structure(policy)
    _check_every_layer_runs(policy, batch, seed)
    _check_chunk(policy, batch, seed)
    _check_denoised(policy, batch, seed)
    _check_noise(policy, batch, seed)
    _check_rebuilt(policy, batch, seed)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise CheckFailedError(message)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _chunk(policy: Policy, batch: Batch, seed: int) -> Tensor:
    with torch.inference_mode():
        return policy.predict_chunk(batch, _generator(seed))


def _check_structure(policy: Policy) -> None:
    layers = policy.linear_layers()
    for block in policy.blocks():
        _require(block.role in ROLES, f"role of block {block.name} must be one of {ROLES}, got {block.role!r}.")
    for interface in policy.interfaces():
        for path in (interface.producer, interface.consumer):
            _require(path in layers, f"interface layer {path!r} must be a linear layer of a block.")
        parameters = dict(policy.named_parameters())
        for path in interface.constants:
            _require(path in parameters, f"interface constant {path!r} must be a parameter.")
    _require(bool(policy.interfaces()), "a policy must name at least one perception-to-action interface.")
    _require(bool(policy.action_head_blocks()), "a policy must name the blocks of its action head.")


def _check_every_layer_runs(policy: Policy, batch: Batch, seed: int) -> None:
    """The linear layers that run are those that the blocks list, each listed once, in the order of their first call."""
    called: dict[str, None] = {}
    paths = [path for path, module in policy.named_modules() if isinstance(module, nn.Linear)]
    with watch_outputs(policy, paths, lambda path, *_: called.update({path: None})):
        _chunk(policy, batch, seed)
    listed = policy.linear_layers()
    _require(set(called) <= set(listed), f"layers {sorted(set(called) - set(listed))} must be part of a block.")
    _require(
        set(listed) <= set(called), f"layers {sorted(set(listed) - set(called))} must run when a chunk is predicted."
    )


def _check_chunk(policy: Policy, batch: Batch, seed: int) -> None:
    chunk = _chunk(policy, batch, seed)
    expected = (len(batch["task"]), policy.chunk_size, policy.action_dim)
    _require(tuple(chunk.shape) == expected, f"chunk must have shape {expected}, got {tuple(chunk.shape)}.")
    _require(bool(torch.isfinite(chunk).all()), "chunk must be finite.")
    _require(torch.equal(chunk, _chunk(policy, batch, seed)), "the same generator state must give the same chunk.")
    _require(
        not torch.equal(chunk, _chunk(policy, batch, seed + 1)), "another generator state must give another chunk."
    )
    _require(
        policy.denoising_step.index == policy.denoising_steps - 1,
        "denoising_step must count the action head's iterations.",
    )
    other = policy.example_batch(seed + 1)
    _require(not torch.equal(chunk, _chunk(policy, other, seed)), "another observation must give another chunk.")


def _check_denoised(policy: Policy, batch: Batch, seed: int) -> None:
    """The differentiable chunk is the executed one wherever that is not limited, and every layer moves it."""
    executed, free = _chunk(policy, batch, seed), policy.denoised_chunk(batch, _generator(seed))
    unit = policy.action_unit
    _require(tuple(unit.shape) == (policy.action_dim,) and bool((unit > 0).all()), "action_unit must be positive.")
    # A limit cuts off what lies beyond it and a threshold decides a sign: neither turns an action around.
    agree = (executed - free.detach()).abs() <= 1e-5 * unit
    _require(
        bool((agree | (executed * free.detach() > 0)).all()),
        "the chunk before limits must agree with the executed one.",
    )
    modules = dict(policy.named_modules())
    layers = list(policy.linear_layers())
    gradients = torch.autograd.grad(free.sum(), [modules[path].weight for path in layers], allow_unused=True)
    for path, gradient in zip(layers, gradients, strict=True):
        _require(gradient is not None, f"the chunk must depend on layer {path!r}, got no gradient.")


def _check_noise(policy: Policy, batch: Batch, seed: int) -> None:
    answer = policy.predict_noise(batch, _generator(seed))
    shape = tuple(batch[ACTION].shape)
    _require(tuple(answer.predicted.shape) == shape, f"predicted noise must have shape {shape}.")
    _require(tuple(answer.noise.shape) == shape, f"noise must have shape {shape}.")
    error = (answer.predicted - answer.noise).square().mean()
    modules = dict(policy.named_modules())
    heads = [path for path, role in policy.linear_layers().items() if role == "action_head"]
    gradients = torch.autograd.grad(error, [modules[path].weight for path in heads], allow_unused=True)
    for path, gradient in zip(heads, gradients, strict=True):
        _require(gradient is not None, f"the loss must reach action-head layer {path!r}, got no gradient.")


def _check_rebuilt(policy: Policy, batch: Batch, seed: int) -> None:
    rebuilt = type(policy).from_config(policy.config(), policy.files(), empty=True)
    real = [name for name, parameter in rebuilt.named_parameters() if not parameter.is_meta]
    _require(not real, f"an empty policy must hold no parameter, got real ones: {real[:3]}.")
    rebuilt.load_state_dict(policy.state_dict(), assign=True)
    left = [name for name, buffer in rebuilt.named_buffers() if buffer.is_meta]
    _require(not left, f"buffers of an empty policy must be real, got {left[:3]} on the meta device.")
    same = torch.equal(_chunk(rebuilt.eval(), batch, seed), _chunk(policy, batch, seed))
    _require(same, "a policy rebuilt from its configuration and weights must predict the same chunk.")
