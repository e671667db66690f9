"""Gumbel-Softmax and gapped Straight-Through: a soft point near the sample."""

from __future__ import annotations

import torch
from torch import Tensor

from reinmax_tutorial.categorical import (
    Draw,
    Generator,
    conditional_noise,
    softmax_vjp,
)


def gumbel_softmax(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float = 1.0,
    generator: Generator = None,
) -> Tensor:
    """Straight-Through Gumbel-Softmax: differentiate the relaxed sample.

        J(y) g / τ,    y = softmax((θ + G)/τ),    D = onehot(argmax(θ + G))

    It differs from straight_through by keeping the noise that made D.

    Promise: none; the mean is biased for every f, linear ones included.
    Cost: one softmax; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: D and its noise G; without G it is drawn from its law given D.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless.
        generator: used only where draw.gumbel is None.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Jang, Gu, Poole (2017); Maddison, Mnih, Teh (2017). Chapter 6.
    """
    noise = conditional_noise(logits, draw, generator)
    log_pi = logits.log_softmax(-1)  # θ up to a constant; θ + G could round G away
    y = ((log_pi + noise) / temperature).softmax(-1)
    return softmax_vjp(y, cotangent) / temperature


def gapped_straight_through(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float = 1.0,
    gap: float = 1.0,
) -> Tensor:
    """Gapped Straight-Through: shift the logits until D leads by a gap.

        J(softmax(θ'/τ)) g / τ,    θ'_D = max θ,
        θ'_j = min(θ_j, max θ - gap)    for j ≠ D

    It puts the soft point near D without noise; the shift carries no gradient.

    Promise: none; the mean is biased for every f, linear ones included.
    Cost: one softmax; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless.
        gap: lead of the sampled logit, > 0, in nats.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Fan, Chi, Rudnicky, Ramadge (2022). Chapter 6.
    """
    top = logits.amax(-1, keepdim=True)
    others = torch.minimum(logits, top - gap)
    shifted = torch.where(draw.one_hot > 0.5, top, others)
    y = (shifted / temperature).softmax(-1)
    return softmax_vjp(y, cotangent) / temperature
