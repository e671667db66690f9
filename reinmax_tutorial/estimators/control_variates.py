"""ReinMax-CV: ReinMax plus η times a difference of noisy Jacobians; and REBAR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reinmax_tutorial.categorical import (
    Draw,
    Generator,
    conditional_gumbel,
    conditional_noise,
    log_midpoint,
    softmax_vjp,
)
from reinmax_tutorial.estimators.adapters import (
    evaluated,
    many_draws,
    with_gradient,
    with_slope,
)
from reinmax_tutorial.estimators.euler_heun import reinmax
from reinmax_tutorial.estimators.rao_blackwell import rao_midpoint
from reinmax_tutorial.estimators.record import promoted
from reinmax_tutorial.estimators.score_function import score


def single_sample(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    temperature: float,
    coupling: str,
    generator: Generator,
) -> Tensor:
    """S g, the one-sample partner of GR_K(θ_D | D, τ), in one of three couplings."""
    if coupling == "conditional":
        return rao_midpoint(
            logits,
            draw,
            cotangent,
            temperature=temperature,
            inner_samples=1,
            generator=generator,
        )
    noise = conditional_noise(logits, draw, generator)
    theta_D = log_midpoint(logits, draw.one_hot)
    if coupling == "forward":
        y = ((theta_D + noise) / temperature).softmax(-1)
    else:  # "released"
        relaxed = ((logits.log_softmax(-1) + noise) / temperature).softmax(-1)
        y = (theta_D + relaxed).softmax(-1)
    return softmax_vjp(y, cotangent) / temperature


def reinmax_cv(
    logits: Tensor,
    draw: Draw,
    cotangent: Tensor,
    *,
    eta: float = 1.0,
    temperature: float = 1.0,
    inner_samples: int = 100,
    coupling: str = "conditional",
    generator: Generator = None,
) -> Tensor:
    """ReinMax-CV: ReinMax with a control variate made of conditional Gumbel noise.

        ReinMax(τ=1) + η [GR_K(θ_D | D, τ) - S] g

    with three choices of S, one noisy Jacobian:
    "conditional"  J(softmax(x/τ))/τ, x one more draw from GR's own law;
    "forward"      J(softmax((θ_D + G)/τ))/τ with the noise that made D;
    "released"     J(softmax(θ_D + s))/τ with s = softmax((θ + G)/τ), as in the
                   authors' released research code.

    Promise: with "conditional" the mean of ReinMax at every η, and no smaller
    variance; with the other two, none.
    Cost: K + 1 softmaxes, streamed; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: D and its noise G; without G it is drawn from its law given D.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        eta: η, strength of the correction; 0 is plain ReinMax.
        temperature: τ > 0 of the correction; ReinMax itself stays at 1.
        inner_samples: K ≥ 1, conditional noise draws in GR_K.
        coupling: how S is drawn.
        generator: where the inner noise comes from.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Wang, Bui (2026), arXiv:2603.08257, and its released code. Chapter 8.
    """
    smoothed = rao_midpoint(
        logits,
        draw,
        cotangent,
        temperature=temperature,
        inner_samples=inner_samples,
        generator=generator,
    )
    single = single_sample(
        logits,
        draw,
        cotangent,
        temperature=temperature,
        coupling=coupling,
        generator=generator,
    )
    return reinmax(logits, draw, cotangent) + eta * (smoothed - single)


def rebar(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 1,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
    eta: Tensor | float = 1.0,
    temperature: float = 1.0,
) -> Tensor:
    """REBAR: REINFORCE with a reparametrised control variate.

        (f(D) - η f(s̃)) u + η ∂/∂θ [f(s) - f(s̃)],
        s = softmax((θ + G)/τ),  s̃ = softmax(x/τ),  x ~ θ + G given argmax = D

    Here, unlike in gumbel_rao, the derivative passes through the conditional law of
    x: that is what makes the correction's mean zero.

    Promise: unbiased for every f, at every η and τ.
    Cost: 3 M evaluations of f, 2 M of its gradient.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch], defined off the vertices.
        logits: θ, shape [*batch, L, C].
        num_samples: M ≥ 1.
        generator: where the draws come from.
        draw: D and its noise G; without G it is drawn from its law given D.
        validate: check the values of a given draw.
        eta: η, strength of the correction; a tensor that requires grad receives the
            gradient of the estimate's squared norm; broadcastable to [*batch, L, C].
        temperature: τ > 0, dimensionless.

    Returns:
        The mean of f(D_m), shape [*batch], with the estimate as its gradient.

    Source: Tucker et al. (2017). Chapter 8.
    """
    theta, draw = many_draws(
        logits, num_samples, generator, draw, gumbel=True, validate=validate
    )
    D = draw.one_hot
    values = evaluated(f, D)
    with torch.enable_grad():
        theta = promoted(theta.detach()).clone().requires_grad_()
        noise = conditional_noise(theta.detach(), draw, generator)
        given = conditional_gumbel(theta, D.to(theta.dtype), generator=generator)
        free = ((theta + noise) / temperature).softmax(-1)
        tied = (given / temperature).softmax(-1)
        f_free, f_tied = evaluated(f, torch.cat([free, tied]).to(D.dtype)).chunk(2)
        (slope,) = torch.autograd.grad((f_free - f_tied).sum(), theta)
    u = score(logits, D)
    plain = values.detach()[..., None, None] * u
    correction = slope - f_tied.detach()[..., None, None] * u
    strength = eta.detach() if isinstance(eta, Tensor) else eta
    estimate = (plain + strength * correction).mean(0)
    loss = with_gradient(values.mean(0), logits, estimate)
    return with_slope(loss, eta, 2 * correction.mean(0) * estimate)
