"""The public conformance suite of a VLA family: what everything else takes for granted, checked on one policy.

It runs the policy on its own example batch; it knows no family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from daptq.errors import CheckFailedError, require_check
from daptq.layers.watching import watch_outputs
from daptq.observations import ACTION, STATE, TASK, is_camera
from daptq.policies.contract import ROLES, Batch, Condition, Policy, PredictionKind
from daptq.policies.interface_conformance import check_folds

__all__ = ["check_policy"]

CHANGES = 3  # random changes of weights, to see whether a layer matters


def check_policy(policy: Policy, *, seed: int = 0) -> None:
    """Checks that `policy` keeps the contract of `Policy`.

    Args:
        policy: A float policy on the CPU.
        seed: Seed of the example batch and of the diffusion noise.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    batch = policy.example_batch(seed)
    _check_inputs(policy, batch)
    _check_structure(policy)
    _check_head_stack(policy)
    _check_every_layer_runs(policy, batch, seed)
    _check_chunk(policy, batch, seed)
    _check_noise(policy, seed)
    _check_parts(policy, batch, seed)
    _check_loop(policy, batch, seed)
    _check_unlimited(policy, batch, seed)
    _check_dependence(policy, batch, seed)
    _check_target(policy, batch, seed)
    check_folds(policy, batch, seed)
    _check_rebuilt(policy, batch, seed)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _chunk(policy: Policy, batch: Batch, seed: int) -> Tensor:
    with torch.inference_mode():
        return policy.predict_chunk(batch, _generator(seed))


def _check_inputs(policy: Policy, batch: Batch) -> None:
    """The example batch holds what the policy says it reads, under full keys and in the sizes that it says."""
    states = {STATE} if policy.state_dim else set()
    wanted = {TASK, ACTION, *policy.cameras, *states}
    require_check(set(batch) == wanted, f"the example batch must have the keys {sorted(wanted)}, got {sorted(batch)}")
    count = len(batch[TASK])
    for key, size in policy.cameras.items():
        require_check(is_camera(key), f"camera {key!r} must be a full key such as observation.images.front")
        shape = tuple(batch[key].shape)
        expected = (count, 3, *(shape[2:] if size is None else size))
        require_check(shape == expected, f"pictures of {key} must have shape {expected}, got {shape}")
    for key in states:
        shape, expected = tuple(batch[key].shape), (count, policy.state_dim)
        require_check(shape == expected, f"{key} must have shape {expected}, got {shape}")
    require_check(len(policy.action_space) > 0, "a policy must declare an action space of one dimension or more")


def _check_structure(policy: Policy) -> None:
    layers, idle = policy.linear_layers(), policy.idle_layers()
    for block in policy.blocks():
        require_check(block.role in ROLES, f"role of block {block.name} must be one of {ROLES}, got {block.role!r}")
    for path in idle:
        require_check(path in layers, f"idle layer {path!r} must be a linear layer of a block")
    _check_interfaces(policy)


def _check_head_stack(policy: Policy) -> None:
    """The stack's modules hold layers of the action head alone, in the order in which these run."""
    layers = policy.linear_layers()
    inside: list[str] = []
    for path in policy.head_stack():
        found = [name for name in layers if name == path or name.startswith(f"{path}.")]
        require_check(bool(found), f"block {path!r} of the action head's stack must hold linear layers of the policy")
        roles = {layers[name] for name in found}
        require_check(roles == {"action_head"}, f"block {path!r} of the action head's stack must be of the action head")
        inside += found
    ordered = [name for name in layers if name in inside]
    require_check(inside == ordered, "the action head's stack must name each block once, in execution order")


def _check_interfaces(policy: Policy) -> None:
    """Taps and folds lead to modules, layers and parameters, and no two interfaces share a name."""
    modules, parameters = dict(policy.named_modules()), dict(policy.named_parameters())
    layers, idle = policy.linear_layers(), policy.idle_layers()
    names = [interface.name for interface in policy.interfaces()]
    require_check(len(set(names)) == len(names), f"names of interfaces must be unique, got {names}")
    for interface in policy.interfaces():
        require_check(interface.tap.module in modules, f"tap of interface {interface.name!r} must be at a module")
        for fold in interface.folds:
            for path in fold.layers:
                require_check(path in layers, f"interface layer {path!r} must be a linear layer of a block")
                require_check(path not in idle, f"interface layer {path!r} must not be idle")
            for path in fold.parameters:
                require_check(path in parameters, f"interface parameter {path!r} must be a parameter")


def _check_every_layer_runs(policy: Policy, batch: Batch, seed: int) -> None:
    """The linear layers that run are those that the blocks list."""
    called: dict[str, None] = {}
    paths = [path for path, module in policy.named_modules() if isinstance(module, nn.Linear)]
    with watch_outputs(policy, paths, lambda path, *_: called.update({path: None})):
        _chunk(policy, batch, seed)
    listed = policy.linear_layers()
    require_check(set(called) <= set(listed), f"layers {sorted(set(called) - set(listed))} must be part of a block")
    require_check(
        set(listed) <= set(called), f"layers {sorted(set(listed) - set(called))} must run when a chunk is predicted"
    )


def _check_chunk(policy: Policy, batch: Batch, seed: int) -> None:
    chunk = _chunk(policy, batch, seed)
    expected = (len(batch[TASK]), policy.chunk_size, policy.action_dim)
    require_check(tuple(chunk.shape) == expected, f"chunk must have shape {expected}, got {tuple(chunk.shape)}")
    require_check(bool(torch.isfinite(chunk).all()), "chunk must be finite")
    require_check(torch.equal(chunk, _chunk(policy, batch, seed)), "the same generator state must give the same chunk")
    same = torch.equal(chunk, _chunk(policy, batch, seed + 1))
    if policy.deterministic:
        require_check(same, "another generator state must give the same chunk of a deterministic policy")
        require_check(policy.denoising_steps == 1, "a deterministic policy must have one denoising step")
    else:
        require_check(not same, "another generator state must give another chunk")
    require_check(
        policy.denoising_step.index == policy.denoising_steps - 1,
        "denoising_step must count the action head's iterations",
    )
    other = policy.example_batch(seed + 1)
    require_check(not torch.equal(chunk, _chunk(policy, other, seed)), "another observation must give another chunk")


def _check_noise(policy: Policy, seed: int) -> None:
    """The noise of a sample depends on its own generator alone."""
    several = policy.noise(2, [_generator(seed), _generator(seed + 1)])
    require_check(len(several) == 2, f"noise of two samples must have two rows, got {len(several)}")
    alone = policy.noise(1, [_generator(seed + 1)])
    require_check(torch.equal(several[1:], alone), "noise of a sample must depend on its own generator alone")


def _check_parts(policy: Policy, batch: Batch, seed: int) -> None:
    """The chunk is made of its parts, and `denoise` knows nothing but what it is given."""
    with torch.inference_mode():
        condition, noise = policy.condition(batch), policy.noise(len(batch[TASK]), _generator(seed))
        policy.condition(policy.example_batch(seed + 1))
        chunk = policy.executed(policy.denoise(condition, noise), batch)
    same = torch.equal(chunk, _chunk(policy, batch, seed))
    require_check(same, "denoise must depend on the condition and the noise that it is given alone")


def _check_loop(policy: Policy, batch: Batch, seed: int) -> None:
    """A loop that runs in place of `denoise` is asked once for each chunk, and what it answers is executed."""
    answers: list[Tensor] = []

    def loop(condition: Condition, noise: Tensor) -> Tensor:
        answers.append(policy.denoise(condition, noise).flip(1))
        return answers[-1]

    with policy.running(loop):
        chunk = _chunk(policy, batch, seed)
    require_check(len(answers) == 1, f"the denoising loop must run once for a chunk, got {len(answers)} times")
    with torch.inference_mode():
        executed = policy.executed(answers[0], batch)
    require_check(torch.equal(chunk, executed), "what the denoising loop answers must be what is executed")


def _check_unlimited(policy: Policy, batch: Batch, seed: int) -> None:
    """The differentiable chunk is the executed one wherever that is not limited."""
    executed, free = _chunk(policy, batch, seed), policy.denoised_chunk(batch, _generator(seed))
    unit = policy.action_unit
    require_check(tuple(unit.shape) == (policy.action_dim,) and bool((unit > 0).all()), "action_unit must be positive")
    # A limit cuts off what lies beyond it and a threshold decides a sign: neither turns an action around.
    agree = (executed - free.detach()).abs() <= 1e-5 * unit
    require_check(
        bool((agree | (executed * free.detach() > 0)).all()),
        "the chunk before limits must agree with the executed one",
    )


def _check_dependence(policy: Policy, batch: Batch, seed: int) -> None:
    """All linear layers move the chunk but the idle ones, which do not move one bit of it."""

    def chunks() -> Tensor:
        with torch.no_grad():
            return torch.stack([_chunk(policy, batch, seed), policy.denoised_chunk(batch, _generator(seed))])

    idle = policy.idle_layers()
    layers = list(policy.linear_layers())
    gradients = _gradients(policy, layers, policy.denoised_chunk(batch, _generator(seed)).sum())
    for path in idle:
        gradient = gradients[path]
        still = gradient is None or not bool(gradient.any())
        require_check(still, f"the chunk must not depend on idle layer {path!r}, got a gradient")
    if idle and _moves(policy, idle, chunks, seed):
        moving = [path for path in idle if _moves(policy, [path], chunks, seed)]
        raise CheckFailedError(
            f"the chunk must not depend on idle layer {(moving or idle)[0]!r}, got another chunk with other weights."
        )
    for path in layers:
        if path not in idle:
            _require_dependence(policy, path, gradients[path], chunks, f"the chunk must depend on layer {path!r}", seed)


def _gradients(policy: Policy, layers: Sequence[str], value: Tensor) -> dict[str, Tensor | None]:
    """The gradient of a number with respect to the weight of every layer; None where there is none."""
    modules = dict(policy.named_modules())
    found = torch.autograd.grad(value, [modules[path].weight for path in layers], allow_unused=True)
    return dict(zip(layers, found, strict=True))


def _require_dependence(
    policy: Policy, path: str, gradient: Tensor | None, answer: Callable[[], Tensor], demand: str, seed: int
) -> None:
    """A gradient may be 0 by chance, where activations are dead; then other weights decide."""
    require_check(gradient is not None, f"{demand}, got no gradient")
    assert gradient is not None
    if not bool(gradient.any()):
        require_check(_moves(policy, [path], answer, seed), f"{demand}, got the same answer with other weights")


def _moves(policy: Policy, layers: Sequence[str], answer: Callable[[], Tensor], seed: int) -> bool:
    """Whether one of a few random changes of what the layers hold changes the answer in any bit."""
    before = answer()
    parameters = [parameter for path in layers for parameter in policy.get_submodule(path).parameters()]
    kept = [parameter.detach().clone() for parameter in parameters]
    generator = _generator(seed)
    try:
        for _ in range(CHANGES):
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=True):
                    size = value.square().mean().sqrt()
                    noise = torch.randn(value.shape, generator=generator)
                    parameter.copy_(2 * torch.where(size > 0, size, torch.ones_like(size)) * noise)
            if not torch.equal(answer(), before):
                return True
        return False
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


def _check_target(policy: Policy, batch: Batch, seed: int) -> None:
    answer = policy.predict_target(batch, _generator(seed))
    shape = tuple(batch[ACTION].shape)
    require_check(tuple(answer.predicted.shape) == shape, f"what is predicted must have shape {shape}")
    require_check(tuple(answer.target.shape) == shape, f"the target of the prediction must have shape {shape}")
    kinds = get_args(PredictionKind)
    require_check(answer.kind in kinds, f"kind of the prediction must be one of {kinds}, got {answer.kind!r}")

    def predicted() -> Tensor:
        with torch.no_grad():
            return policy.predict_target(batch, _generator(seed)).predicted

    idle = policy.idle_layers()
    heads = [path for path, role in policy.linear_layers().items() if role == "action_head" and path not in idle]
    gradients = _gradients(policy, heads, (answer.predicted - answer.target).square().mean())
    for path, gradient in gradients.items():
        demand = f"the loss must reach action-head layer {path!r}"
        _require_dependence(policy, path, gradient, predicted, demand, seed)


def _check_rebuilt(policy: Policy, batch: Batch, seed: int) -> None:
    rebuilt = type(policy).from_config(policy.config(), policy.files(), empty=True)
    real = [name for name, parameter in rebuilt.named_parameters() if not parameter.is_meta]
    require_check(not real, f"an empty policy must hold no parameter, got real ones: {real[:3]}")
    rebuilt.load_state_dict(policy.state_dict(), assign=True)
    left = [name for name, buffer in rebuilt.named_buffers() if buffer.is_meta]
    require_check(not left, f"buffers of an empty policy must be real, got {left[:3]} on the meta device")
    same = torch.equal(_chunk(rebuilt.eval(), batch, seed), _chunk(policy, batch, seed))
    require_check(same, "a policy rebuilt from its configuration and weights must predict the same chunk")
