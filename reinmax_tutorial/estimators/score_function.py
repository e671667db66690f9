"""REINFORCE and its relatives: estimators that need only values of f."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator, exponential, one_hot_argmax
from reinmax_tutorial.estimators.adapters import (
    evaluated,
    many_draws,
    with_gradient,
    with_slope,
)
from reinmax_tutorial.estimators.record import promoted


def score(logits: Tensor, one_hot: Tensor) -> Tensor:
    """The score u = D - π: the gradient of log P(D) in the logits."""
    return one_hot - promoted(logits.detach()).softmax(-1)


def reinforce(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 1,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
    baseline: Tensor | float = 0.0,
) -> Tensor:
    """REINFORCE: the score-function estimator.

        1/M Σ_m (f(D_m) - κ) u_m,    u = D - π

    Promise: unbiased for every f, with any κ that does not depend on D.
    Cost: M evaluations of f; no gradient of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_samples: M ≥ 1.
        generator: where the draws come from.
        draw: use these draws; with M > 1 they carry a leading M.
        validate: check the values of a given draw.
        baseline: κ, broadcastable to [*batch, L, 1]; one that requires grad receives
            the gradient of the estimate's squared norm.

    Returns:
        The mean of f(D_m), shape [*batch], with the estimate as its gradient.

    Source: Williams (1992). Chapter 2.
    """
    theta, draw = many_draws(logits, num_samples, generator, draw, validate=validate)
    values = evaluated(f, draw.one_hot)
    u = score(theta, draw.one_hot)
    kappa = baseline.detach() if isinstance(baseline, Tensor) else baseline
    estimates = (values.detach()[..., None, None] - kappa) * u
    loss = with_gradient(values.mean(0), logits, estimates.mean(0))
    slope = -2 * (u.mean(0) * estimates.mean(0))
    return with_slope(loss, baseline, slope)


def rloo(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 2,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
) -> Tensor:
    """Leave-one-out REINFORCE: each draw's baseline is the mean of the others.

        1/M Σ_m (f_m - mean of the other f) u_m = 1/(M-1) Σ_m (f_m - f̄) u_m

    Promise: unbiased for every f.
    Cost: M ≥ 2 evaluations of f; no gradient of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_samples: M ≥ 2.
        generator: where the draws come from.
        draw: use these draws; they carry a leading M.
        validate: check the values of a given draw.

    Returns:
        The mean of f(D_m), shape [*batch], with the estimate as its gradient.

    Source: Kool, van Hoof, Welling (2019). Chapter 2.
    """
    theta, draw = many_draws(logits, num_samples, generator, draw, validate=validate)
    values = evaluated(f, draw.one_hot)
    mean = values.mean(0)
    centred = (values - mean).detach()[..., None, None]
    estimate = (centred * score(theta, draw.one_hot)).sum(0) / (num_samples - 1)
    return with_gradient(mean, logits, estimate)


def local_expectation(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 1,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
) -> Tensor:
    """Local expectations (IndeCateR): sum one latent out, sample the others.

        J(π_l) F_l for each latent l,    F_l[c] = f(D with latent l set to c)

    It is REINFORCE averaged over one latent given the others (Rao-Blackwell).

    Promise: unbiased for every f; for L = 1 exact, with no variance at all.
    Cost: M L C evaluations of f; no gradient of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_samples: M ≥ 1.
        generator: where the draws come from.
        draw: use these draws; with M > 1 they carry a leading M.
        validate: check the values of a given draw.

    Returns:
        The mean of f(D_m), shape [*batch], with the estimate as its gradient.

    Source: Titsias, Lázaro-Gredilla (2015); De Smet et al. (2023). Chapter 2.
    """
    theta, draw = many_draws(logits, num_samples, generator, draw, validate=validate)
    L, C = logits.shape[-2:]
    moved = one_latent_moved(draw.one_hot)  # [L, C, M, *batch, L, C]
    values = evaluated(f, moved.flatten(0, 2)).unflatten(0, (L, C, num_samples))
    table = values.movedim((0, 1), (-2, -1))  # F, [M, *batch, L, C]
    pi = promoted(theta.detach()).softmax(-1)
    F = table.detach()
    estimate = pi * (F - (pi * F).sum(-1, keepdim=True))
    value = (table[..., 0, :] * draw.one_hot[..., 0, :]).sum(-1)
    return with_gradient(value.mean(0), logits, estimate.mean(0))


def one_latent_moved(one_hot: Tensor) -> Tensor:
    """Codes [L, C, *lead, L, C]: at [l, c], latent l of [*lead, L, C] set to e_c."""
    L, C = one_hot.shape[-2:]
    lead = (1,) * (one_hot.ndim - 2)
    eye = torch.eye(C, dtype=one_hot.dtype, device=one_hot.device)
    here = torch.eye(L, dtype=torch.bool, device=one_hot.device)
    vertex = eye.reshape(1, C, *lead, 1, C)
    return torch.where(here.reshape(L, 1, *lead, L, 1), vertex, one_hot)


def flip(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 2,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
) -> Tensor:
    """Flip: compare the sample with a neighbour that differs in one latent.

        H (D' - D) (f(D') - f(D)),    H = Z Z' / (Z + Z')

    with Z(D) = Σ_l (1 - π_l(D_l)); the latent l and its new category j ≠ D_l are
    drawn with probability π_lj / Z, and Z' = Z(D').

    Promise: unbiased for every f.
    Cost: 2 evaluations of f; no gradient of f. Its variance is small where few
    latents are undecided and hopeless where many are.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_samples: 2, the sample and its neighbour.
        generator: where the draws come from.
        draw: D itself, [*batch, L, C], or D and D' with a leading 2.
        validate: check the values of a given draw.

    Returns:
        f(D), shape [*batch], with the estimate as its gradient.

    Source: this book. Chapter 8.
    """
    given = draw
    pi = promoted(logits.detach()).softmax(-1)
    if given is not None and given.one_hot.shape == (2, *logits.shape):
        _, given = many_draws(logits, 2, generator, given, validate=validate)
        pair = given.one_hot
    else:
        _, first = many_draws(logits, 1, generator, given, validate=validate)
        pair = torch.cat([first.one_hot, neighbour(pi, first.one_hot, generator)])
    values = evaluated(f, pair)
    Z = (pi * (1 - pair)).sum((-2, -1))  # [2, *batch]
    H = Z[0] * Z[1] / (Z[0] + Z[1]).clamp_min(torch.finfo(Z.dtype).tiny)
    gain = (H * (values[1] - values[0])).detach()
    estimate = gain[..., None, None] * (pair[1] - pair[0])
    return with_gradient(values[0], logits, estimate)


def neighbour(pi: Tensor, one_hot: Tensor, generator: Generator) -> Tensor:
    """D', one latent of D moved: [1, *batch, L, C] -> the same shape.

    Where every latent is decided (Z = 0), the move has weight H = 0.
    """
    C = pi.shape[-1]
    weights = (pi * (1 - one_hot)).flatten(-2)
    race = exponential(weights.shape, weights, generator)
    move = one_hot_argmax(weights / race).unflatten(-1, (-1, C)).to(one_hot.dtype)
    moved = move.sum(-1, keepdim=True) > 0.5
    return torch.where(moved, move, one_hot)
