"""How far an estimator is from the exact gradient: bias, variance, cosine, errors.

One call, `measure`, for every estimator of every family. Draws of D are enumerated
where there are few enough, so that no sampling noise is left; otherwise estimates are
streamed, and the Monte-Carlo error of their mean is removed from every measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator
from reinmax_tutorial.estimators import Estimator, exact_gradient, expected_loss, find
from reinmax_tutorial.estimators.adapters import check_samples
from reinmax_tutorial.estimators.exact import LIMIT, all_codes, code_probabilities
from reinmax_tutorial.estimators.record import check_logits, check_same_shape

CHUNK = 2**18
"""Numbers handed to f at once."""
GROUPS = 32
"""Groups of estimates that the standard errors come from (jackknife)."""
FEWEST_NOISE = 8
"""Draws of an estimator's own noise, at least, for each enumerated D."""

METRICS = {
    "bias": "norm of the mean's error",
    "relative_bias": "bias over the norm of the exact gradient",
    "squared_bias": "squared norm of the mean's error, without Monte-Carlo bias",
    "variance": "total variance of one estimate",
    "cosine": "between the mean and the exact gradient",
    "relative_mse": "mean squared error over the exact gradient's squared norm",
    "rescaled_mse": "the same after multiplication by the best constant",
    "relative_std": "root of the variance over the norm of the mean, mean over batch",
}
"""What `measure` reports, in this order."""


def measure(
    estimator: str,
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_estimates: int = 1024,
    generator: Generator = None,
    limit: int = LIMIT,
    num_samples: int | None = None,
    baseline: Tensor | float | None = None,
    exact: Tensor | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Measure an estimator of the gradient of E f(D) on one problem.

    With ∇ the exact gradient, m and V the estimate's mean and total variance, each
    over the whole [*batch, L, C]:

        bias |m - ∇|,  relative_bias |m - ∇|/|∇|,  squared_bias |m - ∇|²,
        variance V,    cosine ⟨m, ∇⟩/(|m||∇|),
        relative_mse (|m - ∇|² + V)/|∇|²,
        rescaled_mse min_c E|c r - ∇|²/|∇|² = 1 - ⟨m, ∇⟩²/(|∇|² (|m|² + V)),
        relative_std √V_i/|m_i|, averaged over the items i of the batch.

    The last is what the literature has plotted as "variance"; estimated from n
    estimates it cannot exceed about √n, and items where it is 0/0 are left out.

    Promise: where all draws of D can be enumerated and the estimator adds no noise of
    its own, everything is exact and std_error is 0. Otherwise squared_bias, variance
    and relative_mse are unbiased: the squared Monte-Carlo error of the mean is
    estimated and taken off (so squared_bias can be negative; bias is then 0).
    Cost: C^(L M) estimates where enumerated, at least 8 times as many where there is
    noise to average over, `num_estimates` where streamed; C^L more evaluations of f
    for ∇. Memory does not grow with any of these numbers.

    Args:
        estimator: a name in ESTIMATORS.
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_estimates: estimates to stream, or to spread over the enumerated draws
            where the estimator adds noise of its own; not used otherwise.
        generator: where draws and noise come from.
        limit: enumerate no more codes than this, neither for ∇ nor for the draws.
        num_samples: M, draws in one estimate; the estimator's smallest if None.
        baseline: κ, for the estimators that take one; see `sample`.
        exact: ∇, where it is known already, shape [*batch, L, C]. Without it, and
            with C**L above the limit, measures that need ∇ are left out.
        **options: the estimator's own.

    Returns:
        One row a metric: estimator, num_samples, one column for each option, metric,
        value, std_error, num_estimates (made), evaluations (of f, in one estimate:
        multiply a variance by it to compare at equal cost).

    Raises:
        ValueError: unknown name or option, or a value out of range.

    Source: Quenouille (1956), Tukey (1958) for the jackknife. Chapter 1.
    """
    record = find(estimator)
    record.check_options(options)
    check_logits(logits)
    if logits.ndim < 2:
        raise ValueError(f"logits must be [*batch, L, C], got {tuple(logits.shape)}")
    at_least_two = isinstance(num_estimates, Integral) and num_estimates >= 2
    if not at_least_two:
        raise ValueError(f"num_estimates must be an integer >= 2, got {num_estimates}")
    M = record.fewest_samples if num_samples is None else num_samples
    check_samples(record, M)
    theta = logits.detach()
    L, C = theta.shape[-2:]
    if exact is not None:
        check_same_shape("exact", exact, logits)
    elif C**L <= limit:
        exact = exact_gradient(f, theta, limit=limit)

    one = Problem(record, f, theta, M, generator, baseline, options)
    count = C ** (L * record.num_draws(M))
    if count > limit:
        n, made, replicates = num_estimates, num_estimates, one.streamed
    else:
        n = max(FEWEST_NOISE, math.ceil(num_estimates / count)) if record.random else 1
        made, replicates = count * n, one.enumerated
    truth = None if exact is None else exact.detach().double().reshape(-1, L * C)
    values = with_errors(Sums.of(replicates(n), n, truth), truth)

    setting = {"estimator": record.name, "num_samples": M}
    setting |= {name: options.get(name, x) for name, x in record.options.items()}
    evaluations = record.evaluations(C, L, M)
    return pd.DataFrame(
        {
            **setting,
            "metric": metric,
            "value": value,
            "std_error": error,
            "num_estimates": made,
            "evaluations": evaluations,
        }
        for metric, (value, error) in values.items()
    )


class Problem:
    """An estimator on a problem: makes estimates, drawn or enumerated.

    Both methods yield replicates: independent unbiased guesses of the estimate's mean
    [n, items, L C] and of its second moment [n, items].
    """

    def __init__(self, record, f, theta, num_samples, generator, baseline, options):
        self.record: Estimator = record
        self.f = f
        self.theta: Tensor = theta
        self.M: int = num_samples
        self.generator: Generator = generator
        detached = isinstance(baseline, Tensor)
        self.baseline = baseline.detach() if detached else baseline
        self.options = options
        L, C = theta.shape[-2:]
        size = theta.numel() * record.evaluations(C, L, num_samples)
        self.at_once = max(1, CHUNK // max(1, size))

    def estimates(self, n: int, one_hot: Tensor | None = None) -> Tensor:
        """Make n estimates, at given draws [M, n, *batch, L, C] or fresh ones.

        Returns [n, items, L C] in float64.
        """
        with torch.enable_grad():
            theta = self.theta.expand(n, *self.theta.shape).clone().requires_grad_()
            loss = expected_loss(
                over_one_axis(self.f),
                theta,
                self.record,
                num_samples=self.M,
                generator=self.generator,
                draw=None if one_hot is None else Draw(one_hot),
                baseline=self.baseline,
                validate=False,
                **self.options,
            )
            (estimate,) = torch.autograd.grad(loss.sum(), theta)
        return estimate.double().reshape(n, -1, self.theta.shape[-2:].numel())

    def streamed(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield n replicates of one estimate each."""
        for start in range(0, n, self.at_once):
            r = self.estimates(min(self.at_once, n - start))
            yield r, r.square().sum(-1)

    def enumerated(self, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield n replicates, each of one estimate for every draw of D."""
        L, C = self.theta.shape[-2:]
        count = C ** (L * self.record.num_draws(self.M))
        step = max(1, self.at_once // count)
        for start in range(0, n, step):
            repeats = min(step, n - start)
            mean, second = 0.0, 0.0
            for one_hot, p in self.draws():
                s = len(p)
                repeated = one_hot.repeat(1, repeats, *(1,) * self.theta.ndim)
                r = self.estimates(repeats * s, repeated).unflatten(0, (repeats, s))
                r = r.where(p[..., None] > 0, 0.0)
                mean = mean + torch.einsum("sb,nsbd->nbd", p, r)
                second = second + torch.einsum("sb,nsb->nb", p, r.square().sum(-1))
            yield mean, second

    def draws(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every draw [M, s, *batch, L, C] with its probability [s, items]."""
        L, C = self.theta.shape[-2:]
        M, axes = self.record.num_draws(self.M), self.theta.ndim - 2
        pi = self.theta.double().softmax(-1)
        for chunk in all_codes(M * L, C, self.theta):
            for codes in chunk.split(self.at_once):
                codes = codes.unflatten(1, (M, L)).movedim(1, 0)
                p = [code_probabilities(pi, one).reshape(len(one), -1) for one in codes]
                items = self.theta.shape[:-2].numel()
                p = math.prod(p, start=pi.new_ones(codes.shape[1], items))
                points = codes.reshape(*codes.shape[:2], *(1,) * axes, L, C)
                yield points.expand(*codes.shape[:2], *self.theta.shape), p


def over_one_axis(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """An f that expects one extra axis, made to take two: [M, n, *batch, L, C]."""

    def values(codes: Tensor) -> Tensor:
        return f(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])

    return values


class Sums:
    """Sums over replicates, one entry for each group along the first axis.

    Attributes:
        n: number of replicates, [G].
        mean: of their means m, [G, items, L C].
        square: of |m|², [G, items].
        along: of ⟨m, ∇⟩², [G].
        second: of their second moments, [G, items].
    """

    def __init__(self, *sums: Tensor):
        self.n, self.mean, self.square, self.along, self.second = sums

    @classmethod
    def of(cls, blocks: Iterator, n: int, truth: Tensor | None) -> Sums:
        """Run through n replicates, keeping sums over up to GROUPS equal groups."""
        groups, start, sums = min(n, GROUPS), 0, None
        for mean, second in blocks:
            number = torch.arange(start, start + len(mean), device=mean.device)
            start += len(mean)
            along = torch.zeros_like(second[:, 0])
            if truth is not None:
                along = (mean * truth).sum((-2, -1))
            parts = (
                torch.ones_like(along),
                mean,
                mean.square().sum(-1),
                along.square(),
                second,
            )
            if sums is None:
                sums = [x.new_zeros(groups, *x.shape[1:]) for x in parts]
            for total, part in zip(sums, parts, strict=True):
                total.index_add_(0, number * groups // n, part)
        return cls(*sums)

    def total(self) -> Sums:
        """All groups together."""
        return Sums(*(x.sum(0, keepdim=True) for x in self.__dict__.values()))

    def all_but_one(self) -> Sums:
        """All groups but one, for each."""
        return Sums(*(x.sum(0, keepdim=True) - x for x in self.__dict__.values()))

    def metrics(self, truth: Tensor | None) -> dict[str, Tensor]:
        """The measures, [G] each, without the Monte-Carlo error of the mean."""
        n = self.n[:, None]
        mean = self.mean / n[..., None]
        others = (n - 1).clamp_min(1)  # a single replicate has no noise at all
        squared = mean.square().sum(-1)
        error = (self.square / n - squared).clamp_min(0) / others  # E|m̂ - m|²
        variance = (self.second / n - squared + error).clamp_min(0)
        metrics = {
            "variance": variance.sum(-1),
            "relative_std": (variance / squared).sqrt().nanmean(-1),
        }
        if truth is None:
            return metrics
        norm = truth.square().sum()
        along = (mean * truth).sum((-2, -1))
        along_error = (self.along / self.n - along.square()).clamp_min(0) / others[:, 0]
        second = (self.second / n).sum(-1)
        length = squared.sum(-1) - error.sum(-1)  # |m|²
        bias = (mean - truth).square().sum((-2, -1)) - error.sum(-1)
        rescaled = 1 - (along.square() - along_error) / (norm * second)
        metrics |= {
            "squared_bias": bias,
            "cosine": along / (length * norm).sqrt(),
            "relative_mse": (second - 2 * along + norm) / norm,
            "rescaled_mse": rescaled,
        }
        return metrics


def with_errors(sums: Sums, truth: Tensor | None) -> dict[str, tuple[float, float]]:
    """Each metric's value and its standard error, by the jackknife over groups."""
    values = {name: x.item() for name, x in sums.total().metrics(truth).items()}
    errors = dict.fromkeys(values, 0.0)
    G = len(sums.n)
    if G > 1:
        for name, x in sums.all_but_one().metrics(truth).items():
            errors[name] = ((G - 1) * x.var(correction=0)).sqrt().item()
    if truth is not None:
        norm = truth.norm().item()
        square, spread = max(values["squared_bias"], 0.0), errors["squared_bias"]
        bias = math.sqrt(square)
        error = math.sqrt(square + spread) - bias  # up to the root of value + error
        values |= {"bias": bias, "relative_bias": bias / norm if norm else math.nan}
        errors |= {"bias": error, "relative_bias": error / norm if norm else math.nan}
    return {name: (values[name], errors[name]) for name in METRICS if name in values}
