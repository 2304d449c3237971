"""The public conformance suite of a drift model: its contract, checked on made-up chunks."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.action_space import END_EFFECTOR_DELTA, ActionDimension, ActionSpace, described
from daptq.drift.contract import DriftModel
from daptq.errors import CheckFailedError, InvalidInputError, require_check

__all__ = ["check_drift_model"]

CHUNKS, STEPS = 4, 3

# Physical units; small enough that an arm can follow.
SIZE = 0.02

# Of sums of at most a few hundred float64 numbers. Inverse kinematics stops at pose errors below 1e-11.
TOLERANCE = 1e-9

SPACES: tuple[ActionSpace, ...] = (
    END_EFFECTOR_DELTA,
    tuple(ActionDimension(kind="joint", unit="rad") for _ in range(5)),
    tuple(ActionDimension(kind="joint-delta", unit="rad", arm=arm) for arm in (0, 1) for _ in range(7)),
    tuple(ActionDimension(kind="plane", unit="px") for _ in range(2)),
)


def check_drift_model(
    model: DriftModel, space: ActionSpace = END_EFFECTOR_DELTA, *, state: Float[Tensor, " state"] | None = None
) -> None:
    """Checks that a model keeps the contract of `DriftModel`.

    Args:
        model: The model.
        space: An action space that it reads.
        state: An ``observation.state`` that it reads; None to check it in its own resting state alone.

    Raises:
        CheckFailedError: Something differs; the message names the first difference.
    """
    reason = model.refuses(space)
    require_check(reason is None, f"drift model {model.method} must read {described(space)}, got the reason {reason!r}")
    _check_refusals(model, space)
    _check_weights(model, space)
    _check_metric(model, space, None)
    if state is not None:
        _check_metric(model, space, state)


def _check_refusals(model: DriftModel, space: ActionSpace) -> None:
    for other in (*SPACES, space):
        reason = model.refuses(other)
        require_check(reason is None or bool(reason.strip()), "the reason to refuse a space must say something")
        if reason is not None:
            what = f"an action space that the model refuses ({described(other)})"
            _require_refused(what, model, torch.zeros(1, 1, len(other)), other, steps=1)
    chunks = torch.zeros(CHUNKS, STEPS, len(space))
    spoilt = chunks.clone()
    spoilt[1, 0, 0] = torch.nan
    wrong = {
        "chunks with NaN": (spoilt, STEPS),
        "no chunk": (chunks[:0], STEPS),
        "chunks of another width": (torch.zeros(CHUNKS, STEPS, len(space) + 1), STEPS),
        "steps beyond the chunk": (chunks, STEPS + 1),
        "no step": (chunks, 0),
    }
    for what, (given, steps) in wrong.items():
        _require_refused(what, model, given, space, steps=steps)


def _check_weights(model: DriftModel, space: ActionSpace) -> None:
    actions = _chunks(len(space))[:, 0]
    given = actions.clone()
    for unit in (None, torch.linspace(0.5, 2.0, len(space), dtype=torch.float64)):
        weights, again = (model.weights(given, unit, space=space) for _ in range(2))
        fits = weights.dtype == torch.float64 and weights.shape == (len(space),)
        require_check(fits, f"weights must be float64 of shape ({len(space)},), got {weights}")
        require_check(bool((weights >= 0).all()), f"weights must not be negative, got {weights.tolist()}")
        mean = float(weights.mean())
        require_check(abs(mean - 1) <= TOLERANCE, f"weights must have the mean 1, got {mean:.9g}")
        require_check(torch.equal(weights, again), "weights must be the same at each call")
    require_check(torch.equal(given, actions), "actions must stay as they are")


def _check_metric(model: DriftModel, space: ActionSpace, state: Float[Tensor, " state"] | None) -> None:
    chunks = _chunks(len(space))
    given, states = chunks.clone(), None if state is None else state.expand(CHUNKS, -1)
    size = STEPS * len(space)
    for steps in (1, STEPS):
        metric, again = (model.metric(given, states, space=space, steps=steps) for _ in range(2))
        fits = metric.dtype == torch.float64 and metric.shape == (size, size)
        require_check(fits, f"the metric must be float64 of shape ({size}, {size}), got {metric.dtype} {metric.shape}")
        require_check(torch.equal(metric, again), "the metric must be the same at each call")
        require_check(torch.equal(given, chunks), "chunks must stay as they are")
        largest = float(metric.abs().max())
        require_check(
            0 < largest < torch.inf, f"the metric must be finite and not zero, got {largest} as largest entry"
        )
        require_check(torch.equal(metric, metric.mT), "the metric must be symmetric")
        least = float(torch.linalg.eigvalsh(metric)[0])
        require_check(
            least >= -TOLERANCE * largest, f"the metric must be positive semi-definite, got eigenvalue {least:.3g}"
        )
        later = metric[steps * len(space) :]
        require_check(not later.any(), f"the metric of {steps} steps must be zero for later actions")
        order = torch.arange(2 * CHUNKS).flip(0) % CHUNKS
        twice = model.metric(given[order], None if states is None else states[order], space=space, steps=steps)
        differs = float((metric - twice).abs().max())
        require_check(
            differs <= TOLERANCE * largest, "the metric must not change with order, nor when all chunks come twice"
        )


def _chunks(width: int) -> Float[Tensor, "n chunk action"]:
    generator = torch.Generator().manual_seed(0)
    return SIZE * torch.randn(CHUNKS, STEPS, width, generator=generator, dtype=torch.float64)


def _require_refused(
    what: str, model: DriftModel, chunks: Float[Tensor, "n chunk action"], space: ActionSpace, *, steps: int
) -> None:
    try:
        model.metric(chunks, None, space=space, steps=steps)
    except InvalidInputError:
        return
    raise CheckFailedError(f"{what} must be refused with an InvalidInputError.")
