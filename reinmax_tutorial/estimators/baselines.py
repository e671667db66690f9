"""Baselines κ for r - κu: a network, a running constant, a running mean, the best one.

A baseline must not depend, given the input, on this latent's draw D nor on anything
made from it: its Gumbel noise, its cotangent g, f(D), statistics fitted on this very
draw. Then E[κ u] = 0 and the mean of every estimator stays where it is. Nothing here
sees D before the backward pass is over.

All of them give κ broadcastable to [*batch, L, 1], in the units of the cotangent
(back-propagate the sum of per-image losses and κ is in nats per image):

    kappa = baseline(logits, features)
    z = sample(logits, "reinmax", baseline=kappa)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reinmax_tutorial.categorical import Draw, Generator
from reinmax_tutorial.estimators import expected_loss, find
from reinmax_tutorial.estimators.exact import (
    LIMIT,
    all_codes,
    check_enumerable,
    code_probabilities,
)
from reinmax_tutorial.estimators.record import promoted

CHUNK = 2**20
"""Numbers handed to f at once, when codes are enumerated."""


def mean_squared_score(logits: Tensor) -> Tensor:
    """E|D - π|² = 1 - |π|² of each latent, known without a draw: [*batch, L, 1]."""
    pi = promoted(logits.detach()).softmax(-1)
    return (pi * (1 - pi)).sum(-1, keepdim=True)


class ScoreNetwork(nn.Module):
    """A learned baseline: κ_φ(features of x, π), one number for each latent.

        κ = W₂ tanh(W₁ [features, π] + b₁) + b₂

    The backward pass delivers to κ the gradient of the estimate's squared norm,
    -2 ⟨u, r - κu⟩, so that φ learns by ordinary back-propagation: give its
    parameters an optimiser group of their own (Adam, 1e-3) and leave them out of
    gradient clipping. Inputs are detached: no gradient reaches the encoder.

    Promise: κ = 0 before the first step; the mean of the estimate never moves.
    Cost: two small matrix products; no evaluation of f.

    Args:
        num_latents: L.
        num_categories: C.
        num_features: width of `features`; 0 if κ is to depend on π alone.
        hidden: hidden units.
        members: M networks in parallel over a leading axis of the inputs (an ensemble
            [M, B, ...]); None for a single one.
        generator: where the first weights come from; one for each member, in a
            sequence, gives every member the weights that it would have alone.

    Source: this book; baselines for REINFORCE are classical (Williams 1992).
    Chapter 8.
    """

    def __init__(
        self,
        num_latents: int,
        num_categories: int,
        num_features: int = 0,
        *,
        hidden: int = 64,
        members: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ):
        super().__init__()
        inputs = num_features + num_latents * num_categories
        lead = () if members is None else (members,)
        row = () if members is None else (members, 1)
        self.num_features = num_features
        self.first = nn.Parameter(torch.empty(*lead, inputs, hidden))
        self.first_bias = nn.Parameter(torch.zeros(*row, hidden))
        self.second = nn.Parameter(torch.zeros(*lead, hidden, num_latents))
        self.second_bias = nn.Parameter(torch.zeros(*row, num_latents))
        self.reset_parameters(generator)

    def reset_parameters(
        self, generator: torch.Generator | Sequence[torch.Generator] | None = None
    ) -> None:
        """W₁ uniform within ±1/√inputs, all else 0, hence κ = 0."""
        bound = 1 / math.sqrt(self.first.shape[-2])
        with torch.no_grad():
            several = isinstance(generator, Sequence)
            for weight, source in zip(
                self.first if several else [self.first],
                generator if several else [generator],
                strict=True,
            ):
                weight.uniform_(-bound, bound, generator=source)
            for parameter in (self.first_bias, self.second, self.second_bias):
                parameter.zero_()

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """κ for each latent.

        Args:
            logits: θ, shape [*batch, L, C].
            features: made from x alone, shape [*batch, num_features].

        Returns:
            κ, shape [*batch, L, 1].
        """
        width = 0 if features is None else features.shape[-1]
        if width != self.num_features:
            raise ValueError(
                f"features must have {self.num_features} columns, got {width}"
            )
        x = promoted(logits.detach()).softmax(-1).flatten(-2)
        if features is not None:
            x = torch.cat([features.detach().to(x.dtype), x], -1)
        x = x.to(self.first.dtype)
        hidden = (x @ self.first + self.first_bias).tanh()
        return (hidden @ self.second + self.second_bias).unsqueeze(-1)


class RunningConstant(nn.Module):
    """The best constant for the total variance, estimated from past draws.

        κ* = E⟨u, r⟩ / E|u|²

    κ is a parameter, and the backward pass delivers to it -2 ⟨u, r - κu⟩, summed
    over whatever shares it. `update` reads ⟨u, r⟩ off this gradient and E|u|² =
    1 - |π|² off the logits, and moves κ to the ratio of their running sums (a
    Newton step on the mean squared norm):

        kappa = constant(logits)
        f(sample(logits, "reinmax", baseline=kappa)).sum().backward()
        constant.update(logits)

    Keep κ out of the optimiser and call `update` before gradients are scaled or
    clipped. Nothing leaves the device.

    Promise: κ depends on past draws only, so the mean of the estimate never moves;
    it tends to κ* where the problem stands still.
    Cost: none in evaluations of f.

    Args:
        shape: what shares a κ: () one for all, (L, 1) one for each latent, (M, 1, 1,
            1) one for each member of an ensemble [M, B, L, C].
        decay: weight of the past, per update; 1 averages over all of it.

    Source: this book. Chapter 8.
    """

    def __init__(self, shape: Sequence[int] = (), *, decay: float = 0.99):
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {decay!r}")
        self.decay = decay
        self.kappa = nn.Parameter(torch.zeros(tuple(shape)))
        self.register_buffer("numerator", torch.zeros(tuple(shape)))
        self.register_buffer("denominator", torch.zeros(tuple(shape)))

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """κ, in the shape given; logits and features play no part."""
        return self.kappa

    @torch.no_grad()
    def update(self, logits: Tensor) -> None:
        """Learn from the gradient that one backward pass left in κ, and clear it.

        Args:
            logits: θ of that pass, shape [*batch, L, C].
        """
        if self.kappa.grad is None:
            raise ValueError(
                "kappa has received no gradient: call update once after each backward "
                "pass through sample(..., baseline=this(logits))"
            )
        squared = mean_squared_score(logits).sum_to_size(self.kappa.shape)
        squared = squared.to(self.kappa.dtype)
        along = self.kappa * squared - self.kappa.grad / 2  # ⟨u, r⟩, in the mean
        past, now = self.decay, 1 - self.decay if self.decay < 1 else 1.0
        self.numerator.mul_(past).add_(along, alpha=now)
        self.denominator.mul_(past).add_(squared, alpha=now)
        tiny = torch.finfo(self.kappa.dtype).tiny
        self.kappa.copy_(self.numerator / self.denominator.clamp_min(tiny))
        self.kappa.grad = None


class RunningMean(nn.Module):
    """The running mean of past losses, the classical baseline of REINFORCE.

        mean = RunningMean()
        loss = expected_loss(f, logits, "reinforce", baseline=mean(logits))
        loss.sum().backward()
        mean.update(loss)

    Promise: depends on past draws only, so the mean of the estimate never moves.
    Cost: none in evaluations of f.

    Args:
        shape: what shares a mean: () all, (M, 1) each member of losses [M, B].
        decay: weight of the past, per update; 1 averages over all of it.

    Source: Williams (1992). Chapter 2.
    """

    def __init__(self, shape: Sequence[int] = (), *, decay: float = 0.99):
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must be in [0, 1], got {decay!r}")
        self.decay = decay
        self.register_buffer("total", torch.zeros(tuple(shape)))
        self.register_buffer("weight", torch.zeros(()))

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """The mean, in the shape given with two more axes; 0 before any update."""
        tiny = torch.finfo(self.total.dtype).tiny
        return (self.total / self.weight.clamp_min(tiny))[..., None, None]

    @torch.no_grad()
    def update(self, losses: Tensor) -> None:
        """Learn from the losses of one step.

        Args:
            losses: f(D), shape [*batch].
        """
        share = losses.numel() / max(self.total.numel(), 1)
        mean = losses.detach().to(self.total.dtype).sum_to_size(self.total.shape)
        past, now = self.decay, 1 - self.decay if self.decay < 1 else 1.0
        self.total.mul_(past).add_(mean / share, alpha=now)
        self.weight.mul_(past).add_(now)


def optimal_constant(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    estimator: str = "reinforce",
    *,
    per_latent: bool = False,
    generator: Generator = None,
    limit: int = LIMIT,
    **options: Any,
) -> Tensor:
    """The constant baseline of least total variance, by enumeration.

        κ* = E⟨u, r⟩ / E|u|²;   for REINFORCE r = f u, so E[f u·u] / E[u·u]

    Promise: exact where the estimator is a function of D; where it has noise of its
    own, one draw of it for each code.
    Cost: C^L evaluations of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        estimator: any name that accepts `baseline=`.
        per_latent: one κ for each latent, in place of one for all L.
        generator: where inner noise comes from.
        limit: refuse more codes than this.
        **options: the estimator's own.

    Returns:
        κ*, shape [*batch, L, 1] or [*batch, 1, 1], detached; 0 where no draw is
        undecided.

    Raises:
        ValueError: C**L exceeds the limit, or the estimator takes no baseline.

    Source: Weaver, Tao (2001) for REINFORCE; this book. Chapters 2 and 8.
    """
    record = find(estimator)
    if not record.takes_baseline:
        raise ValueError(f"{record.name} takes no baseline")
    L, C = logits.shape[-2:]
    check_enumerable(C, L, limit)
    theta = logits.detach()
    pi = promoted(theta).softmax(-1)
    squared = mean_squared_score(theta)
    along = torch.zeros_like(squared)
    at_once = max(1, CHUNK // max(1, theta.numel()))
    for chunk in all_codes(L, C, theta):
        for codes in chunk.split(at_once):
            p = code_probabilities(pi, codes)[..., None, None]
            points = codes.reshape(len(codes), *(1,) * (theta.ndim - 2), L, C)
            points = points.expand(len(codes), *theta.shape)
            with torch.enable_grad():
                kappa = torch.zeros_like(points[..., :1]).requires_grad_()
                loss = expected_loss(
                    without_first_axis(f),
                    theta.expand_as(points).detach().requires_grad_(),
                    estimator,
                    draw=Draw(points),
                    baseline=kappa,
                    generator=generator,
                    validate=False,
                    **options,
                )
                (slope,) = torch.autograd.grad(loss.sum(), kappa)  # -2 ⟨u, r⟩
            along = along - (p * slope.where(p > 0, 0.0)).sum(0) / 2
    if not per_latent:
        along = along.sum(-2, keepdim=True)
        squared = squared.sum(-2, keepdim=True)
    return along / squared.clamp_min(torch.finfo(squared.dtype).tiny)


def without_first_axis(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An f that expects one extra axis, made to take codes [1, S, ...]."""

    def values(codes: Tensor) -> Tensor:
        return f(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    return values
