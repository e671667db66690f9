"""Any pathwise estimator inside torch.distributions code: hard samples with rsample.

    q = OneHotCategorical(logits=theta, estimator="reinmax")
    z = q.rsample((5,))                     hard, and differentiable in theta

The classes are torch's own, with `rsample` added; log_prob, entropy, enumerate_support
and the Kullback-Leibler divergences are inherited and differentiate through π.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import OneHotCategorical as TorchOneHotCategorical
from torch.distributions.kl import kl_divergence, register_kl

from reinmax_tutorial.categorical import Generator, draw
from reinmax_tutorial.estimators import find, sample


class Estimated:
    """What both distributions share: an estimator, its options, and hard samples."""

    has_rsample = True

    def choose(
        self,
        estimator: str,
        generator: Generator,
        baseline: Tensor | float | None,
        options: dict[str, Any],
    ) -> None:
        """Keep the estimator and its options, once they are known to be valid."""
        record = find(estimator)
        if record.vjp is None:
            raise ValueError(
                f"{record.name} needs values of f and cannot act on a sample alone; "
                f"use expected_loss(f, logits, {record.name!r})"
            )
        record.check_options(options)
        self.estimator, self.options = estimator, dict(options)
        self.generator, self.baseline = generator, baseline

    def chosen_by(self, other: Estimated) -> None:
        """Take over another's estimator and options."""
        self.choose(other.estimator, other.generator, other.baseline, other.options)

    def hard(self, theta: Tensor) -> Tensor:
        """One-hot samples of logits [*batch, C] with the estimator's gradient."""
        return sample(
            theta,
            self.estimator,
            generator=self.generator,
            baseline=self.baseline,
            validate=self._validate_args,
            **self.options,
        )


class OneHotCategorical(Estimated, TorchOneHotCategorical):
    """torch.distributions.OneHotCategorical with `rsample` by any pathwise estimator.

    A drop-in for OneHotCategoricalStraightThrough, which is estimator=
    "straight_through" here.

    Promise: samples are exactly one-hot and follow π at temperature 1, whatever the
    estimator's temperature.
    Cost: that of the estimator.

    Args:
        probs: π up to a factor, shape [*batch, C]; give this or logits.
        logits: θ, shape [*batch, C].
        validate_args: torch's argument checks; also those of `sample`.
        estimator: a name in ESTIMATORS with a vjp.
        generator: where samples come from; None is torch's default.
        baseline: κ, broadcastable to [*sample_shape, *batch, 1]; see `sample`.
        **options: the estimator's own, such as temperature=1.0.

    Raises:
        ValueError: unknown estimator or option, a value out of range, or an
            estimator that needs values of f.

    Source: the interface is torch's. Chapter 9.
    """

    def __init__(
        self,
        probs: Tensor | None = None,
        logits: Tensor | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str = "reinmax",
        generator: Generator = None,
        baseline: Tensor | float | None = None,
        **options: Any,
    ):
        self.choose(estimator, generator, baseline, options)
        super().__init__(probs, logits, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance=None) -> OneHotCategorical:
        """The same distribution over a larger batch."""
        new = self._get_checked_instance(OneHotCategorical, _instance)
        new.chosen_by(self)
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Hard samples that can be differentiated, [*sample_shape, *batch, C]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.hard(self.logits.expand(shape))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Hard samples without a gradient, [*sample_shape, *batch, C]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        theta = self.logits.detach().expand(shape)
        return draw(theta, generator=self.generator).one_hot


class Bernoulli(Estimated, TorchBernoulli):
    """torch.distributions.Bernoulli with `rsample` by any pathwise estimator.

    A bit is a one-hot variable of two categories, of logits (θ, 0); the sample is the
    first of its two coordinates.

    Promise: samples are exactly 0 or 1 and follow sigmoid(θ) at temperature 1.
    Cost: that of the estimator at C = 2.

    Args:
        probs: P(z = 1), shape [*batch]; give this or logits.
        logits: θ, the log-odds, shape [*batch].
        validate_args: torch's argument checks; also those of `sample`.
        estimator: a name in ESTIMATORS with a vjp.
        generator: where samples come from; None is torch's default.
        baseline: κ, broadcastable to [*sample_shape, *batch, 1]; see `sample`.
        **options: the estimator's own, such as temperature=1.0.

    Raises:
        ValueError: unknown estimator or option, a value out of range, or an
            estimator that needs values of f.

    Source: the interface is torch's. Chapter 9.
    """

    def __init__(
        self,
        probs: Tensor | float | None = None,
        logits: Tensor | float | None = None,
        validate_args: bool | None = None,
        *,
        estimator: str = "reinmax",
        generator: Generator = None,
        baseline: Tensor | float | None = None,
        **options: Any,
    ):
        self.choose(estimator, generator, baseline, options)
        super().__init__(probs, logits, validate_args)

    def expand(self, batch_shape: Sequence[int], _instance=None) -> Bernoulli:
        """The same distribution over a larger batch."""
        new = self._get_checked_instance(Bernoulli, _instance)
        new.chosen_by(self)
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Hard samples that can be differentiated, [*sample_shape, *batch]."""
        theta = self.logits.expand(self._extended_shape(torch.Size(sample_shape)))
        return self.hard(torch.stack([theta, torch.zeros_like(theta)], -1))[..., 0]

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Hard samples without a gradient, [*sample_shape, *batch]."""
        shape = self._extended_shape(torch.Size(sample_shape))
        theta = self.logits.detach().expand(shape)
        pair = torch.stack([theta, torch.zeros_like(theta)], -1)
        return draw(pair, generator=self.generator).one_hot[..., 0]


@register_kl(OneHotCategorical, OneHotCategorical)
def categorical_divergence(p: OneHotCategorical, q: OneHotCategorical) -> Tensor:
    """Σ p log(p/q), [*batch]; its gradient goes through π, untempered."""
    return kl_divergence(p._categorical, q._categorical)
