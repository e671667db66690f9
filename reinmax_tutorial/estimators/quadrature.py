"""Quadrature on the segment between two vertices: end-point rules and RK2."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator, softmax_vjp
from reinmax_tutorial.estimators.adapters import evaluated, many_draws, with_gradient
from reinmax_tutorial.estimators.record import promoted
from reinmax_tutorial.estimators.score_function import one_latent_moved


def darn(logits: Tensor, draw: Draw, cotangent: Tensor) -> Tensor:
    """DARN: the right rectangle rule, a linearised REINFORCE.

        u (g_D - ⟨π, g⟩),    u = D - π

    Promise: the mean is exact when f is linear in each latent.
    Cost: one softmax; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Gregor et al. (2014). Chapter 5.
    """
    u = draw.one_hot - logits.softmax(-1)
    return u * (u * cotangent).sum(-1, keepdim=True)


def weighted_endpoints(
    logits: Tensor, draw: Draw, cotangent: Tensor, *, beta: float = 0.5
) -> Tensor:
    """T_β: any weighting of the two end points of the segment.

        [(1 - β) J(π) + β u uᵀ] g,    u = D - π

    β = 0 is straight_through, ½ ReinMax, 1 DARN.

    Promise: exact for linear f at every β, for quadratic f only at β = ½.
    Cost: one softmax; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        beta: β, weight of the far end; any number.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: the theta method of ordinary differential equations. Chapter 5.
    """
    left = softmax_vjp(logits.softmax(-1), cotangent)
    return (1 - beta) * left + beta * darn(logits, draw, cotangent)


def reinmax_rk2(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """ReinMax-RK2, β as the released research code computes it.

        (p + D) ⊙ (g - ⟨βp + (1-β)D, g⟩) - (1-β) J(π) g,  minus its mean over C,
        p = softmax(θ/τ)

    At τ = 1 it equals 2β ReinMax + (2β-1) ⟨g, D-π⟩ (π - 1/C), sample by sample. It
    is neither T_β (weighted_endpoints) nor the two-node rule (runge_kutta).

    Promise: at β = ½ and τ = 1 it is ReinMax; elsewhere none.
    Cost: two softmaxes; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        beta: β; any number.
        temperature: τ > 0, dimensionless.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Wang, Bui (2026), released code of arXiv:2603.08257. Chapter 5.
    """
    p, D, g = (logits / temperature).softmax(-1), draw.one_hot, cotangent
    mixed = ((beta * p + (1 - beta) * D) * g).sum(-1, keepdim=True)
    raw = (p + D) * (g - mixed) - (1 - beta) * softmax_vjp(logits.softmax(-1), g)
    possible = logits > -math.inf
    mean = raw.sum(-1, keepdim=True) / possible.sum(-1, keepdim=True)
    return (raw - mean) * possible


def runge_kutta(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 1,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
    beta: float = 0.5,
) -> Tensor:
    """The true two-node Runge-Kutta rule, with a node inside the segment.

        Σ_i π_i (e_i - π) h_i,    h_i = [β g(0) + (1-β) g(α)]·(e_i - D),
        g(t) = ∇f(D + t (e_i - D)),    α = 1 / (2 (1-β))

    for each latent, the others at their samples: the third form of the exact
    gradient with node j sampled. It differs from weighted_endpoints by its second
    node, which is a soft point: one evaluation of f for every latent and category.

    Promise: exact for quadratic f at every β ≠ 1; at β = ¼ (Radau, Ralston) for
    cubic f as well.
    Cost: M (1 + L C) evaluations of f and of its gradient.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch], differentiable off the
            vertices.
        logits: θ, shape [*batch, L, C].
        num_samples: M ≥ 1.
        generator: where the draws come from.
        draw: use these draws; with M > 1 they carry a leading M.
        validate: check the values of a given draw.
        beta: β ≠ 1, weight of the sampled end; above ½ the second node leaves the
            segment.

    Returns:
        The mean of f(D_m), shape [*batch], with the estimate as its gradient.

    Source: Ralston (1962) for β = ¼. Chapter 5.
    """
    theta, draw = many_draws(logits, num_samples, generator, draw, validate=validate)
    D, alpha = draw.one_hot, 1 / (2 * (1 - beta))
    L, C = logits.shape[-2:]
    values, g = value_and_gradient(f, D)
    step = one_latent_moved(D) - D  # e_i - D on latent l, [L, C, M, *batch, L, C]
    inner = (D + alpha * step).flatten(0, 2)
    _, g_inner = value_and_gradient(f, inner)
    slope = beta * g + (1 - beta) * g_inner.unflatten(0, (L, C, num_samples))
    h = (slope * step).sum((-2, -1)).movedim((0, 1), (-2, -1))  # [M, *batch, L, C]
    pi = promoted(theta.detach()).softmax(-1)
    return with_gradient(values.mean(0), logits, softmax_vjp(pi, h).mean(0))


def paired_reinmax(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 2,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
) -> Tensor:
    """ReinMax from two independent draws: the trapezoid rule in the symmetric form.

        ¼ (D - D') ⟨g + g', D - D'⟩

    Promise: the mean of reinmax at τ = 1, hence exact when f is quadratic in each
    latent.
    Cost: 2 evaluations of f and of its gradient.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch], differentiable off the
            vertices.
        logits: θ, shape [*batch, L, C].
        num_samples: 2.
        generator: where the draws come from.
        draw: use these draws; they carry a leading 2.
        validate: check the values of a given draw.

    Returns:
        The mean of f(D) and f(D'), shape [*batch], with the estimate as its gradient.

    Source: this book. Chapter 8.
    """
    _, draw = many_draws(logits, num_samples, generator, draw, validate=validate)
    values, g = value_and_gradient(f, draw.one_hot)
    difference = draw.one_hot[0] - draw.one_hot[1]
    along = ((g[0] + g[1]) * difference).sum(-1, keepdim=True)
    return with_gradient(values.mean(0), logits, 0.25 * difference * along)


def value_and_gradient(
    f: Callable[[Tensor], Tensor], points: Tensor
) -> tuple[Tensor, Tensor]:
    """f(points), still connected to the parameters of f, and ∇f, detached."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        values = evaluated(f, points)
        if not values.requires_grad:  # f is constant in the code
            return values, torch.zeros_like(points)
        (gradient,) = torch.autograd.grad(
            values.sum(), points, retain_graph=True, allow_unused=True
        )
    return values, torch.zeros_like(points) if gradient is None else gradient
