"""Straight-Through and ReinMax: one step of Euler's, and one of Heun's method."""

from __future__ import annotations

from torch import Tensor

from reinmax_tutorial.categorical import Draw, softmax_vjp


def straight_through(
    logits: Tensor, draw: Draw, cotangent: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Straight-Through: differentiate the softmax in place of the sample.

        J(p) g / τ,    p = softmax(θ/τ)

    At τ = 1 it is Euler's method: the left rectangle rule on the segment from the
    sampled vertex to every other one.

    Promise: at τ = 1 the mean is exact when f is linear in each latent.
    Cost: one softmax; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C].
        draw: not used; the estimate depends on D only through g.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Bengio, Léonard, Courville (2013), arXiv:1308.3432. Chapter 3.
    """
    p = (logits / temperature).softmax(-1)
    return softmax_vjp(p, cotangent) / temperature


def reinmax(
    logits: Tensor, draw: Draw, cotangent: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """ReinMax: Heun's method where Straight-Through is Euler's.

    With D the sample and p = softmax(θ/τ),

        2 J((p + D)/2) g - ½ J(π) g.

    It differs from straight_through by applying J also halfway to the sample; at
    τ = 1 it is ½[J(π) + u uᵀ] g with u = D - π, the trapezoid rule.

    Promise: at τ = 1 the mean is exact when f is quadratic in each latent.
    Cost: one softmax at τ = 1, else two; one evaluation of f.

    Args:
        logits: θ, shape [*batch, C]; adding a constant to all C changes nothing.
        draw: the sample; only draw.one_hot, shape [*batch, C], is used.
        cotangent: g = ∂f/∂z at z = D, shape [*batch, C].
        temperature: τ > 0, dimensionless; moves only the midpoint, no factor 1/τ.

    Returns:
        The estimate in θ, shape [*batch, C], in nats per logit.

    Source: Liu et al. (2023), arXiv:2304.08612. Chapter 4.
    """
    pi = logits.softmax(-1)
    p = pi if temperature == 1 else (logits / temperature).softmax(-1)
    midpoint = (p + draw.one_hot) / 2
    return 2 * softmax_vjp(midpoint, cotangent) - 0.5 * softmax_vjp(pi, cotangent)
