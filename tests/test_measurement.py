"""What measure reports, against finite sums written out and against its own errors."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import reinmax_tutorial as rt
from reinmax_tutorial.measurement import METRICS
from reinmax_tutorial.objectives import random_decoder, random_polynomial

L, C = 2, 3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="f")
def decoder():
    return random_decoder(L, C, generator=generator(), dtype=torch.float64)


@pytest.fixture(name="logits")
def theta():
    return torch.randn(3, L, C, generator=generator(1), dtype=torch.float64)


def measured(name, f, logits, **options):
    frame = rt.measure(name, f, logits, generator=generator(2), **options)
    return frame.set_index("metric")


def by_hand(f, logits):
    """Every estimate of ReinMax [S, *batch, L, C], its probability [S, *batch]."""
    index = torch.cartesian_prod(*[torch.arange(C)] * L)
    D = torch.nn.functional.one_hot(index, C).to(logits.dtype)
    D = D.unsqueeze(1).expand(-1, len(logits), L, C).clone().requires_grad_()
    (g,) = torch.autograd.grad(f(D).sum(), D)
    pi = logits.softmax(-1)
    u = D.detach() - pi
    left = pi * (g - (pi * g).sum(-1, keepdim=True))
    r = (left + u * (u * g).sum(-1, keepdim=True)) / 2
    return r, (D.detach() * pi).sum(-1).prod(-1)


def test_every_metric_by_hand(f, logits):
    r, p = by_hand(f, logits)
    exact = rt.exact_gradient(f, logits)
    mean = torch.einsum("sb,sblc->blc", p, r)
    spread = torch.einsum("sb,sblc->b", p, (r - mean).square())
    V, norm = spread.sum(), exact.norm()
    error = (mean - exact).norm()
    second = V + mean.square().sum()
    best = (mean * exact).sum() / second  # argmin of E|c r - exact|²
    expected = {
        "bias": error,
        "relative_bias": error / norm,
        "squared_bias": error**2,
        "variance": V,
        "cosine": (mean * exact).sum() / (mean.norm() * norm),
        "relative_mse": (error**2 + V) / norm**2,
        "rescaled_mse": torch.einsum("sb,sblc->", p, (best * r - exact).square())
        / norm**2,
        "relative_std": (spread.sqrt() / mean.flatten(1).norm(dim=1)).mean(),
    }
    rows = measured("reinmax", f, logits)
    assert list(rows.index) == list(expected) == list(METRICS)
    for metric, value in expected.items():
        assert rows.value[metric] == pytest.approx(value.item(), rel=1e-10)
    assert (rows.std_error == 0).all()


@pytest.mark.parametrize(
    ("name", "degree", "num_samples"),
    [
        ("exact", 5, 1),
        ("reinforce", 5, 2),
        ("rloo", 5, 2),
        ("local_expectation", 5, 1),
        ("straight_through", 1, 1),
        ("reinmax", 2, 2),
        ("paired_reinmax", 2, 2),
        ("runge_kutta", 2, 1),
    ],
)
def test_promise_seen_through_measure(name, degree, num_samples, logits):
    f = random_polynomial(degree, L, C, generator=generator(), dtype=torch.float64)
    rows = measured(name, f, logits, num_samples=num_samples)
    assert rows.value["relative_bias"] < 1e-11
    assert rows.value["cosine"] == pytest.approx(1)
    assert (rows.std_error == 0).all()
    assert (rows.num_samples == num_samples).all()


def test_two_draws_halve_the_variance(f, logits):
    one, two = (measured("reinmax", f, logits, num_samples=M) for M in (1, 2))
    ratio = two.value["variance"] / one.value["variance"]
    assert ratio == pytest.approx(0.5, abs=1e-12)
    assert (two.evaluations == 2).all() and (two.num_estimates == 81).all()


def test_exact_estimator_has_no_error_at_all(f, logits):
    rows = measured("exact", f, logits)
    assert rows.value["relative_mse"] < 1e-20
    assert (rows.num_estimates == 1).all() and (rows.evaluations == 9).all()


def test_columns(f, logits):
    frame = rt.measure(
        "reinmax_cv", f, logits, num_estimates=50, generator=generator(), eta=0.5
    )
    assert list(frame.columns) == [
        *("estimator", "num_samples", "eta", "temperature", "inner_samples"),
        *("coupling", "metric", "value", "std_error", "num_estimates", "evaluations"),
    ]
    assert (frame.eta == 0.5).all() and (frame.coupling == "conditional").all()
    assert (frame.num_estimates == 9 * 8).all()  # 9 draws of D, 8 of the noise


def test_a_factor_changes_the_variance_and_not_the_rescaled_error(f, logits):
    record = rt.ESTIMATORS["reinmax"]
    half = dataclasses.replace(record, formula=half_reinmax)
    one, other = measured(record, f, logits), measured(half, f, logits)
    assert other.value["variance"] == pytest.approx(one.value["variance"] / 4)
    for metric in ("rescaled_mse", "cosine", "relative_std"):
        assert other.value[metric] == pytest.approx(one.value[metric], rel=1e-10)


def half_reinmax(logits, draw, cotangent):
    return 0.5 * rt.ESTIMATORS["reinmax"].formula(logits, draw, cotangent)


STREAMED = [
    ("reinmax", {}),
    ("reinforce", {"baseline": 10.0}),
    ("rloo", {"num_samples": 3}),
    ("gumbel_rao", {"inner_samples": 2, "temperature": 0.5}),
    ("flip", {}),
]


@pytest.mark.parametrize(("name", "options"), STREAMED)
def test_streamed_agrees_with_enumerated(name, options, f, logits):
    exact = rt.exact_gradient(f, logits)
    truth = measured(name, f, logits, num_estimates=40_000, limit=10**6, **options)
    rows = measured(
        name, f, logits, num_estimates=20_000, limit=1, exact=exact, **options
    )
    assert (rows.num_estimates == 20_000).all()
    for metric in METRICS:
        if metric in ("bias", "relative_bias"):  # roots: their error is one-sided
            continue
        gap = rows.value[metric] - truth.value[metric]
        error = math.hypot(rows.std_error[metric], truth.std_error[metric])
        assert 0 < error
        assert abs(gap) < 6 * error, metric


def many_runs(f, theta, runs, n):
    """The same short streamed measurement again and again: value, std_error."""
    exact, g = rt.exact_gradient(f, theta), generator(5)
    frames = [
        rt.measure(
            "reinmax", f, theta, num_estimates=n, generator=g, limit=1, exact=exact
        ).set_index("metric")
        for _ in range(runs)
    ]
    return {
        metric: [
            torch.tensor([frame[column][metric] for frame in frames])
            for column in ("value", "std_error")
        ]
        for metric in ("squared_bias", "variance", "relative_mse")
    }


def test_squared_bias_is_unbiased(logits):
    """ReinMax is exact for a quadratic; a plain squared distance would say V/n."""
    f = random_polynomial(2, L, C, generator=generator(), dtype=torch.float64)
    runs, n = 400, 32
    truth = measured("reinmax", f, logits[:1]).value
    for metric, (values, _) in many_runs(f, logits[:1], runs, n).items():
        error = values.std() / runs**0.5
        assert (values.mean() - truth[metric]).abs() < 5 * error
        if metric == "squared_bias":
            assert truth["variance"] / n > 10 * error, "too few runs to see it"


def test_standard_errors_are_calibrated(f, logits):
    """The jackknife sees the spread of repeated runs, give or take a third."""
    for values, errors in many_runs(f, logits[:1], 400, 32).values():
        assert 0.67 < errors.square().mean().sqrt() / values.std() < 1.5


def test_noise_of_its_own_is_averaged_with_an_error(f, logits):
    rows = measured("rebar", f, logits, num_estimates=2000)
    assert abs(rows.value["squared_bias"]) < 6 * rows.std_error["squared_bias"]
    assert rows.value["cosine"] == pytest.approx(1, abs=6 * rows.std_error["cosine"])


def test_without_the_exact_gradient_what_needs_it_is_left_out(f, logits):
    rows = measured("reinmax", f, logits, limit=1)
    assert list(rows.index) == ["variance", "relative_std"]


def test_baseline_and_batch(f, logits):
    """A baseline moves the variance only; a batch adds up its items."""
    kappa = torch.tensor([[1.0], [-0.5]], dtype=torch.float64, requires_grad=True)
    rows = measured("reinmax", f, logits, baseline=kappa)
    plain = measured("reinmax", f, logits)
    assert rows.value["squared_bias"] == pytest.approx(plain.value["squared_bias"])
    assert rows.value["variance"] != pytest.approx(plain.value["variance"], rel=1e-3)
    assert kappa.grad is None
    items = [measured("reinmax", f, logits[i : i + 1]) for i in range(3)]
    for metric in ("squared_bias", "variance"):
        total = sum(item.value[metric] for item in items)
        assert plain.value[metric] == pytest.approx(total)


def test_impossible_category_and_saturated_latent(f, logits):
    theta = logits[0].clone()
    theta[0, 1] = -math.inf
    theta[1] = torch.tensor([60.0, 0.0, 0.0])
    for name in ("reinmax", "gumbel_rao", "rloo", "reinmax_cv"):
        rows = measured(name, f, theta, num_estimates=20)
        assert rows.value.notna().all()


def test_f_sees_one_extra_axis_only(logits):
    targets = torch.randn(3, L, C, generator=generator(3), dtype=torch.float64)

    def f(codes):  # [S, 3, L, C], each image with a target of its own
        assert codes.ndim == 4
        return (codes - targets).square().sum((-2, -1))

    for name in rt.ESTIMATORS:
        K = (
            {"inner_samples": 2}
            if "inner_samples" in rt.ESTIMATORS[name].options
            else {}
        )
        assert len(measured(name, f, logits, num_estimates=20, **K)) == len(METRICS)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_memory_does_not_grow(f, logits):
    def largest(n):
        with Largest() as seen:
            measured("reinmax", f, logits, num_estimates=n, limit=1)
        return seen.numel

    # decoder of 16 hidden units: 18 numbers of code in, 16 x 3 hidden ones out
    assert largest(100_000) < 2**20


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"estimator": "nope"}, "unknown estimator 'nope'"),
        ({"estimator": "darn", "temperature": 1.0}, "no option 'temperature'"),
        ({"estimator": "reinmax", "num_estimates": 1}, "num_estimates .* got 1"),
        ({"estimator": "rloo", "num_samples": 1}, "num_samples .* got 1"),
        ({"estimator": "reinmax", "exact": torch.ones(2)}, "exact .*got \\(2,\\)"),
        ({"estimator": "reinmax", "logits": torch.ones(3)}, "got \\(3,\\)"),
    ],
)
def test_refuses(call, message, f, logits):
    with pytest.raises(ValueError, match=message):
        rt.measure(**{"f": f, "logits": logits, **call})
