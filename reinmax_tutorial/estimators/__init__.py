"""Every estimator behind one table and two calls.

Adding an estimator means one function in one of the rooms of this folder and one
record in ESTIMATORS below; its promises are then tested, its row appears in the
book's tables, and every call of the package knows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator
from reinmax_tutorial.estimators import adapters
from reinmax_tutorial.estimators.control_variates import rebar, reinmax_cv
from reinmax_tutorial.estimators.euler_heun import reinmax, straight_through
from reinmax_tutorial.estimators.exact import enumerated_loss, exact_gradient
from reinmax_tutorial.estimators.quadrature import (
    darn,
    paired_reinmax,
    reinmax_rk2,
    runge_kutta,
    weighted_endpoints,
)
from reinmax_tutorial.estimators.rao_blackwell import gumbel_rao, reinmax_rao
from reinmax_tutorial.estimators.record import Cost, Estimator, Promise
from reinmax_tutorial.estimators.relaxation import (
    gapped_straight_through,
    gumbel_softmax,
)
from reinmax_tutorial.estimators.score_function import (
    flip,
    local_expectation,
    reinforce,
    rloo,
)

__all__ = [
    "ESTIMATORS",
    "Estimator",
    "exact_gradient",
    "expected_loss",
    "find",
    "reinmax_and_probabilities",
    "sample",
]


def codes_cost(C: int, L: int, M: int) -> int:
    """Every code once."""
    return C**L


def draws_cost(C: int, L: int, M: int) -> int:
    """One evaluation a draw."""
    return M


def table_cost(C: int, L: int, M: int) -> int:
    """Every category of every latent, for each draw."""
    return M * L * C


def inner_node_cost(C: int, L: int, M: int) -> int:
    """The draw, and one soft point for every category of every latent."""
    return M * (1 + L * C)


def three_cost(C: int, L: int, M: int) -> int:
    """The draw and two soft points."""
    return 3 * M


PER_DRAW = Cost("M", draws_cost)

RECORDS = (
    Estimator(
        name="exact",
        label="Exact",
        family="exact",
        needs="value",
        objective=enumerated_loss,
        promises=(Promise("unbiased"),),
        cost=Cost("C^L", codes_cost),
        fixed_draws=0,
        source="definition",
        chapter=1,
        equation=r"\sum_D p(D)\,(f(D) - \mathbb{E} f)\,u",
    ),
    Estimator(
        name="reinforce",
        label="REINFORCE",
        family="score function",
        needs="value",
        objective=reinforce,
        promises=(Promise("unbiased"),),
        cost=PER_DRAW,
        source="Williams 1992",
        chapter=2,
        equation=r"(f(D) - \kappa)\,u",
    ),
    Estimator(
        name="rloo",
        label="RLOO",
        family="score function",
        needs="value",
        objective=rloo,
        promises=(Promise("unbiased"),),
        cost=PER_DRAW,
        fewest_samples=2,
        source="Kool, van Hoof, Welling 2019",
        chapter=2,
        equation=r"\tfrac{1}{M-1}\sum_m (f_m - \bar f)\,u_m",
    ),
    Estimator(
        name="local_expectation",
        label="Local expectation",
        family="score function",
        needs="value",
        objective=local_expectation,
        promises=(Promise("unbiased"),),
        cost=Cost("M L C", table_cost),
        source="De Smet et al. 2023",
        chapter=2,
        equation=r"J(\pi_l)\,F_l, \quad F_{l,c} = f(D_{-l}, e_c)",
    ),
    Estimator(
        name="straight_through",
        label="Straight-Through",
        family="end points",
        needs="gradient",
        formula=straight_through,
        promises=(Promise(1), Promise("none", {"temperature": 1.3})),
        cost=PER_DRAW,
        source="Bengio, Léonard, Courville 2013",
        chapter=3,
        equation=r"J(p_\tau)\,g/\tau, \quad p_\tau = \mathrm{softmax}(\theta/\tau)",
    ),
    Estimator(
        name="reinmax",
        label="ReinMax",
        family="end points",
        needs="gradient",
        formula=reinmax,
        promises=(Promise(2), Promise("none", {"temperature": 1.3})),
        cost=PER_DRAW,
        source="Liu et al. 2023",
        chapter=4,
        equation=r"2 J\big(\tfrac{p_\tau + D}{2}\big)\,g - \tfrac12 J(\pi)\,g",
    ),
    Estimator(
        name="darn",
        label="DARN",
        family="end points",
        needs="gradient",
        formula=darn,
        promises=(Promise(1),),
        cost=PER_DRAW,
        source="Gregor et al. 2014",
        chapter=5,
        equation=r"u\,\langle u, g\rangle",
    ),
    Estimator(
        name="weighted_endpoints",
        label="Weighted end points",
        family="end points",
        needs="gradient",
        formula=weighted_endpoints,
        promises=(Promise(2), Promise(1, {"beta": 0.3}), Promise(1, {"beta": 1.0})),
        cost=PER_DRAW,
        source="this book",
        chapter=5,
        equation=r"[(1-\beta)\,J(\pi) + \beta\,u u^\top]\,g",
    ),
    Estimator(
        name="reinmax_rk2",
        label="ReinMax-RK2",
        family="end points",
        needs="gradient",
        formula=reinmax_rk2,
        promises=(
            Promise(2),
            Promise("none", {"beta": 0.3}),
            Promise("none", {"temperature": 1.3}),
        ),
        cost=PER_DRAW,
        source="Wang, Bui 2026 (released code)",
        chapter=5,
        equation=(
            r"(p_\tau + D) \odot \big(g - \langle \beta p_\tau + (1-\beta) D, g\rangle"
            r"\big) - (1-\beta)\,J(\pi)\,g, \text{ centred}"
        ),
    ),
    Estimator(
        name="runge_kutta",
        label="Runge-Kutta",
        family="quadrature",
        needs="value and gradient",
        objective=runge_kutta,
        promises=(
            Promise(2),
            Promise(2, {"beta": 0.0}),
            Promise(3, {"beta": 0.25}),
        ),
        cost=Cost("M (1 + L C)", inner_node_cost),
        renamed={"beta": "node_weight"},
        source="Ralston 1962",
        chapter=5,
        equation=r"\sum_i \pi_i (e_i - \pi)\,h_i",
    ),
    Estimator(
        name="paired_reinmax",
        label="Paired ReinMax",
        family="quadrature",
        needs="gradient",
        objective=paired_reinmax,
        promises=(Promise(2),),
        cost=PER_DRAW,
        fewest_samples=2,
        most_samples=2,
        source="this book",
        chapter=8,
        equation=r"\tfrac14 (D - D')\,\langle g + g', D - D'\rangle",
    ),
    Estimator(
        name="gumbel_softmax",
        label="Gumbel-Softmax (ST)",
        family="noise",
        needs="gradient",
        formula=gumbel_softmax,
        uses_gumbel=True,
        random=True,
        promises=(Promise("none"), Promise("none", {"temperature": 0.5})),
        cost=PER_DRAW,
        source="Jang, Gu, Poole 2017; Maddison, Mnih, Teh 2017",
        chapter=6,
        equation=r"J(y)\,g/\tau, \quad y = \mathrm{softmax}((\theta + G)/\tau)",
    ),
    Estimator(
        name="gapped_straight_through",
        label="Gapped Straight-Through",
        family="noise",
        needs="gradient",
        formula=gapped_straight_through,
        promises=(Promise("none"),),
        cost=PER_DRAW,
        source="Fan, Chi, Rudnicky, Ramadge 2022",
        chapter=6,
        equation=r"J(\mathrm{softmax}(\theta'/\tau))\,g/\tau",
    ),
    Estimator(
        name="gumbel_rao",
        label="Gumbel-Rao",
        family="noise",
        needs="gradient",
        formula=gumbel_rao,
        random=True,
        promises=(Promise("none"), Promise("none", {"temperature": 0.5})),
        cost=PER_DRAW,
        source="Paulus, Maddison, Krause 2021",
        chapter=7,
        equation=(
            r"\tfrac1K \sum_k J(\mathrm{softmax}(x_k/\tau))\,g/\tau, "
            r"\quad x_k \sim \theta + G \mid D"
        ),
    ),
    Estimator(
        name="reinmax_rao",
        label="ReinMax-Rao",
        family="noise",
        needs="gradient",
        formula=reinmax_rao,
        random=True,
        promises=(Promise("none"), Promise("none", {"temperature": 0.5})),
        cost=PER_DRAW,
        source="Wang, Bui 2026",
        chapter=7,
        equation=r"2\,\mathrm{GR}_K(\theta_D \mid D, \tau)\,g - \tfrac12 J(\pi)\,g",
    ),
    Estimator(
        name="reinmax_cv",
        label="ReinMax-CV",
        family="noise",
        needs="gradient",
        formula=reinmax_cv,
        uses_gumbel=True,
        random=True,
        promises=(
            Promise(2),
            Promise(2, {"eta": 1.5, "temperature": 0.7}),
            Promise("none", {"coupling": "forward"}),
            Promise("none", {"coupling": "released"}),
        ),
        cost=PER_DRAW,
        source="Wang, Bui 2026",
        chapter=8,
        equation=(
            r"\mathrm{ReinMax} + \eta\,[\mathrm{GR}_K(\theta_D \mid D, \tau) - S]\,g"
        ),
    ),
    Estimator(
        name="rebar",
        label="REBAR",
        family="score function",
        needs="value and gradient",
        objective=rebar,
        random=True,
        promises=(
            Promise("unbiased"),
            Promise("unbiased", {"eta": 0.5, "temperature": 0.5}),
        ),
        cost=Cost("3 M", three_cost),
        source="Tucker et al. 2017",
        chapter=8,
        equation=(
            r"(f(D) - \eta f(\tilde s))\,u + \eta\,\partial_\theta"
            r"[f(s) - f(\tilde s)]"
        ),
    ),
    Estimator(
        name="flip",
        label="Flip",
        family="score function",
        needs="value",
        objective=flip,
        random=True,
        promises=(Promise("unbiased"),),
        cost=PER_DRAW,
        fewest_samples=2,
        most_samples=2,
        fixed_draws=1,  # D' is made from D
        source="this book",
        chapter=8,
        equation=r"H\,(D' - D)\,(f(D') - f(D))",
    ),
)

ESTIMATORS: dict[str, Estimator] = {record.name: record for record in RECORDS}
"""Every estimator of the book, by name, in the order of the chapters."""


def find(name: str) -> Estimator:
    """The record of an estimator; ValueError with the known names otherwise."""
    if isinstance(name, Estimator):
        return name
    if name not in ESTIMATORS:
        raise ValueError(f"unknown estimator {name!r}; known: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[name]


def sample(
    logits: Tensor,
    estimator: str,
    *,
    generator: Generator = None,
    draw: Draw | None = None,
    dim: int = -1,
    mask: Tensor | None = None,
    baseline: Tensor | float | None = None,
    validate: bool = True,
    **options: Any,
) -> Tensor:
    """A hard one-hot sample whose gradient is the estimator's.

    Forward: D ~ softmax(θ), always at temperature 1. Backward: the estimator's
    formula, applied to whatever cotangent arrives.

    Promise: the value is exactly one-hot; two backward passes over one graph agree;
    the same D for every estimator given the same generator state.
    Cost: that of the estimator's formula; one evaluation of what follows.

    Args:
        logits: θ, any floating dtype; categories on axis `dim`.
        estimator: a name in ESTIMATORS with a vjp.
        generator: torch.Generator, CounterGenerator or None (torch's default; use
            None or draw= under torch.compile and vmap).
        draw: use this sample (and noise) instead of drawing, in the shape of logits.
        dim: the axis of the categories.
        mask: bool, broadcastable to logits; False is an impossible category, whose
            probability and gradient are exactly 0.
        baseline: κ, a number or a tensor broadcastable to [*batch, 1], subtracts
            κ (D - π) from the estimate without moving its mean; a tensor that
            requires grad receives the gradient of the estimate's squared norm.
        validate: check values (NaN, fully masked rows) when running eagerly.
        **options: the estimator's own, such as temperature=1.0, inner_samples=100.

    Returns:
        D, one-hot along `dim`, shape and dtype of the logits.

    Raises:
        ValueError: unknown name or option, a value out of range, C < 2, NaN logits, a
            fully masked row; the message holds what was received and what is allowed.

    Source: the book as a whole. Chapter 4.
    """
    return adapters.sample(
        logits,
        find(estimator),
        generator=generator,
        draw=draw,
        dim=dim,
        mask=mask,
        baseline=baseline,
        validate=validate,
        **options,
    )


def expected_loss(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    estimator: str,
    *,
    num_samples: int | None = None,
    generator: Generator = None,
    draw: Draw | None = None,
    baseline: Tensor | float | None = None,
    validate: bool = True,
    **options: Any,
) -> Tensor:
    """A loss whose value is f(D) and whose gradient is the estimate.

    Promise: the value is f(D), the mean over M draws, or Σ p f for "exact"; the
    parameters of f receive the gradient of that value, θ the estimate.
    Cost: the record's `cost`, in evaluations of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch], independent along S.
        logits: θ, shape [*batch, L, C].
        estimator: any name in ESTIMATORS.
        num_samples: M; the estimator's smallest (1 or 2) if None.
        generator: where the draws come from.
        draw: use these draws; with M > 1 they carry a leading M.
        baseline: κ, for pathwise estimators and reinforce; see `sample`.
        validate: check values when running eagerly.
        **options: the estimator's own.

    Returns:
        The loss, shape [*batch], in the units of f.

    Raises:
        ValueError: as in `sample`; also where M or C**L is out of range.

    Source: the book as a whole. Chapter 2.
    """
    return adapters.expected_loss(
        f,
        logits,
        find(estimator),
        num_samples=num_samples,
        generator=generator,
        draw=draw,
        baseline=baseline,
        validate=validate,
        **options,
    )


def reinmax_and_probabilities(
    logits: Tensor,
    tau: float = 1.0,
    hard: bool = True,
    *,
    generator: Generator = None,
) -> tuple[Tensor, Tensor]:
    """ReinMax with the call of the original package: (sample, probabilities).

    Args:
        logits: θ, shape [*batch, C].
        tau: τ > 0. The original package asks for τ ≥ 1; below 1 the midpoint sharpens
            and the mean is biased, as at any τ ≠ 1.
        hard: False returns the probabilities in place of the sample.
        generator: where the draw comes from.

    Returns:
        The one-hot sample with ReinMax's gradient, and π with the gradient of the
        ordinary softmax (J(π), untempered); gradients through both add up.

    Source: Liu et al. (2023), arXiv:2304.08612. Chapter 4.
    """
    probabilities = logits.softmax(-1)
    if not hard:
        ESTIMATORS["reinmax"].check_options({"temperature": tau})
        return probabilities, probabilities
    z = sample(logits, "reinmax", temperature=tau, generator=generator)
    return z, probabilities
