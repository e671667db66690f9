"""Gumbel-Rao and ReinMax-Rao: average the noise out, keep the sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reinmax_tutorial.categorical import (
    Draw,
    Generator,
    exponential,
    softmax_vjp,
    softplus,
)

TILE = {"cpu": 2**18, "cuda": 2**22}
"""Noise numbers held at once on a device, for each member of an ensemble."""


def centred(cotangent: Tensor, one_hot: Tensor) -> Tensor:
    """Count g from g_D: the same estimate, without cancellation where π is nearly D."""
    return cotangent - (cotangent * one_hot).sum(-1, keepdim=True)


def closeness(E: Tensor, E_D: Tensor, log_w: Tensor, temperature: float) -> Tensor:
    """u_i = exp((x_i - x_D)/τ); 1 where log w is +inf, as for D itself."""
    if temperature == 1:  # E_D w / (E_D w + E): no logarithm, and as many digits
        per_E = (-log_w).exp() * (1 / E_D)
        return torch.addcmul(E.new_ones(()), E, per_E).reciprocal_()
    return (softplus((E / E_D).log() - log_w) / -temperature).exp()


def mean_conditional_vjp(
    log_weights: Tensor,
    one_hot: Tensor,
    cotangent: Tensor,
    *,
    temperature: float,
    inner_samples: int,
    generator: Generator,
) -> Tensor:
    """GR_K g: the mean over K of J(softmax(x_k/τ)) g / τ, x_k given argmax = D.

    Only differences to x_D matter, and they have a closed form in log space:

        x_i - x_D = -softplus(log E_i - log E_D - log w_i),   E iid Exp(1)

    so that with u_i = exp((x_i - x_D)/τ) and u_D = 1, softmax(x/τ) = u / Σu. The
    weight of D itself is never read. Draws are streamed: memory is that of a tile,
    whatever K.

    Args:
        log_weights: log w_i, normalised where conditioning needs it, [*batch, C].
        one_hot: D, shape [*batch, C].
        cotangent: g, shape [*batch, C].
        temperature: τ > 0.
        inner_samples: K ≥ 1.
        generator: where E comes from.

    Returns:
        Shape [*batch, C].
    """
    K, C = inner_samples, cotangent.shape[-1]
    members = getattr(generator, "members", 1)
    g = centred(cotangent, one_hot).reshape(members, -1, 1, C)
    log_w = torch.where(one_hot > 0.5, math.inf, log_weights)  # so that u_D = 1
    log_w = log_w.reshape(members, -1, C, 1)
    index = one_hot.argmax(-1).reshape(members, -1)
    size = TILE["cpu" if cotangent.device.type == "cpu" else "cuda"]
    at_once = min(K, max(1, size // C))
    rows = max(1, size // (at_once * C))
    means = []
    for start in range(0, max(1, g.shape[1]), rows):  # once for an empty batch
        part = slice(start, start + rows)
        row_g, row_w, row_index = g[:, part], log_w[:, part], index[:, part].flatten()
        chosen = row_index + C * torch.arange(len(row_index), device=index.device)
        sums = 0.0  # over the draws: of y and of y ⟨y, g⟩
        for first in range(0, K, at_once):
            k = min(at_once, K - first)
            shape = (*row_w.shape[:-1], k)
            E = exponential(shape, cotangent, generator)
            E_D = E.reshape(-1, k).index_select(0, chosen)
            u = closeness(E, E_D.reshape(*shape[:-2], 1, k), row_w, temperature)
            weight = 1 / u.sum(-2, keepdim=True)
            y_g = (row_g @ u) * weight
            sums = sums + torch.cat([weight, weight * y_g], -2) @ u.mT
        y, y_yg = sums.split(1, -2)
        means.append(y * row_g - y_yg)
    mean = torch.cat(means, 1) / (K * temperature)
    return mean.reshape(cotangent.shape)


def gumbel_rao(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float = 1.0,
    inner_samples: int = 100,
    generator: Generator = None,
) -> Tensor:
    """Gumbel-Rao: Straight-Through Gumbel-Softmax, averaged over the noise given D.

        1/K Σ_k J(softmax(x_k/τ)) g / τ,    x_k ~ θ + G given argmax = D

    The noise is held fixed: the derivative does not pass through the conditional
    law of x_k.

    Promise: the mean of gumbel_softmax, with no larger total variance, falling in K.
    Cost: K softmaxes, streamed; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless.
        inner_samples: K ≥ 1, conditional noise draws inside one estimate.
        generator: where the inner noise comes from.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Paulus, Maddison, Krause (2021), arXiv:2010.04838. Chapter 7.
    """
    return mean_conditional_vjp(
        logits.log_softmax(-1),
        draw.one_hot,
        cotangent,
        temperature=temperature,
        inner_samples=inner_samples,
        generator=generator,
    )


def rao_midpoint(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float,
    inner_samples: int,
    generator: Generator,
) -> Tensor:
    """GR_K(θ_D | D, τ) g: Gumbel-Rao halfway to the sample, w_i = π_i/2 for i ≠ D."""
    return mean_conditional_vjp(
        logits.log_softmax(-1) - math.log(2),
        draw.one_hot,
        cotangent,
        temperature=temperature,
        inner_samples=inner_samples,
        generator=generator,
    )


def reinmax_rao(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float = 1.0,
    inner_samples: int = 100,
    generator: Generator = None,
) -> Tensor:
    """ReinMax-Rao: ReinMax with its midpoint smoothed by conditional Gumbel noise.

        2 GR_K(θ_D | D, τ) g - ½ J(π) g,    θ_D = log((π + D)/2)

    It differs from reinmax by GR_K where reinmax has J((π + D)/2).

    Promise: none; it is not ReinMax in the mean, not even for linear f: it trades
    bias for variance.
    Cost: K softmaxes, streamed; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless.
        inner_samples: K ≥ 1, conditional noise draws inside one estimate.
        generator: where the inner noise comes from.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Wang, Bui (2026), arXiv:2603.08257. Chapter 7.
    """
    smoothed = rao_midpoint(
        logits,
        draw,
        cotangent,
        temperature=temperature,
        inner_samples=inner_samples,
        generator=generator,
    )
    g = centred(cotangent, draw.one_hot)
    return 2 * smoothed - 0.5 * softmax_vjp(logits.softmax(-1), g)
