"""Smoothing: a factor for each input channel that shares the channel's range between weight and activations.

With y = (W diag(s)) (diag(1/s) x) any positive s leaves the layer as it is, and s_j = a_j^strength / w_j^(1-strength),
a_j and w_j the largest |activation| and |weight| of channel j (arXiv 2211.10438, eq. 4), decides which of the two
keeps the large values. The module does not know over which data a_j was measured.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from daptq.errors import InvalidInputError

__all__ = ["smoothing_scale"]


def smoothing_scale(
    weight: Float[Tensor, "out in"], activation_absmax: Float[Tensor, " in"], strength: float = 0.15
) -> Float[Tensor, " in"]:
    """The factor s of each column of the weight; activations are divided by it.

    Args:
        weight: (out, in) finite weight.
        activation_absmax: (in,), largest |activation| of each channel, finite and not negative.
        strength: Exponent of the activations' range, up to 1; 0 means no smoothing.

    Returns:
        float32 (in,), positive; the geometric mean is 1. A channel whose weights or activations are all zero keeps the
        factor 1 and does not enter the mean.

    Raises:
        InvalidInputError: The shapes do not belong together, or a range is negative or not finite.
    """
    if activation_absmax.shape != weight.shape[1:]:
        raise InvalidInputError(
            f"activation_absmax must have shape {tuple(weight.shape[1:])}, got {tuple(activation_absmax.shape)}. "
            "Give one range per input channel."
        )
    if not bool((torch.isfinite(activation_absmax) & (activation_absmax >= 0)).all()):
        raise InvalidInputError(
            "activation_absmax must be finite and not negative, got other values. Measure it on finite activations."
        )
    factor = torch.ones(weight.shape[1], dtype=torch.float64, device=weight.device)
    activations = activation_absmax.to(factor)
    weights = weight.detach().to(torch.float64).abs().amax(dim=0)
    alive = (activations > 0) & (weights > 0)
    if strength and bool(alive.any()):
        logarithm = strength * activations[alive].log() - (1 - strength) * weights[alive].log()
        factor[alive] = (logarithm - logarithm.mean()).exp()
    return factor.to(torch.float32)
