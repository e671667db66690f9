"""The known slips of this field, each caught by a check that the suite runs.

Every slip is a wrong copy of one function. The check of the suite that should reject
it is run on the copy (it must fail) and on the package's own function (it must pass).
"""

import dataclasses
import functools

import pytest
import torch
from oracles import against_textbook, assert_mean, codes, exact, probabilities
from test_promises import check_promise

import reinmax_tutorial as rt
from reinmax_tutorial import categorical
from reinmax_tutorial.categorical import (
    conditional_gumbel,
    exponential,
    log_midpoint,
    softmax_vjp,
)
from reinmax_tutorial.estimators import rao_blackwell
from reinmax_tutorial.objectives import random_polynomial

pytestmark = pytest.mark.usefixtures("double_precision")
LOGITS = torch.tensor([[0.3, -0.8, 0.5], [1.1, 0.0, -0.4]], dtype=torch.float64)


def reinmax_without_factor_two(logits, draw, cotangent, *, temperature=1.0):
    pi = logits.softmax(-1)
    midpoint = ((logits / temperature).softmax(-1) + draw.one_hot) / 2
    return softmax_vjp(midpoint, cotangent) - 0.5 * softmax_vjp(pi, cotangent)


def reinmax_over_temperature(logits, draw, cotangent, *, temperature=1.0):
    return rt.ESTIMATORS["reinmax"].formula(
        logits, draw, cotangent, temperature=temperature
    ) / (temperature)


def reinmax_tempered_twice(logits, draw, cotangent, *, temperature=1.0):
    p = (logits / temperature).softmax(-1)
    midpoint = (p + draw.one_hot) / 2
    return 2 * softmax_vjp(midpoint, cotangent) - 0.5 * softmax_vjp(p, cotangent)


def straight_through_without_temperature(logits, draw, cotangent, *, temperature=1.0):
    return softmax_vjp((logits / temperature).softmax(-1), cotangent)


def gumbel_softmax_without_temperature(
    logits, draw, cotangent, *, temperature=1.0, generator=None
):
    y = ((logits + draw.gumbel) / temperature).softmax(-1)
    return softmax_vjp(y, cotangent)


def gumbel_softmax_relaxed_as_noise(
    logits, draw, cotangent, *, temperature=1.0, generator=None
):
    relaxed = ((logits + draw.gumbel) / temperature).softmax(-1)
    y = ((logits + relaxed) / temperature).softmax(-1)
    return softmax_vjp(y, cotangent) / temperature


def gumbel_rao_total_derivative(
    logits,
    draw,
    cotangent,
    *,
    temperature=1.0,
    inner_samples=100,
    generator=None,
):
    E = rao_blackwell.exponential((1, *logits.shape, inner_samples), logits, generator)
    E = E[0].movedim(-1, 0)  # [K, rows, C]
    with torch.enable_grad():
        theta = logits.detach().requires_grad_()
        log_Z = theta.logsumexp(-1, keepdim=True)
        log_E_D = (E.log() * draw.one_hot).sum(-1, keepdim=True)
        others = -torch.logaddexp(E.log() - theta, log_E_D - log_Z)
        x = torch.where(draw.one_hot > 0.5, log_Z - log_E_D, others)
        y = (x / temperature).softmax(-1)
        return torch.autograd.grad((y * cotangent).sum() / inner_samples, theta)[0]


def reinmax_rao_at_theta(
    logits,
    draw,
    cotangent,
    *,
    temperature=1.0,
    inner_samples=100,
    generator=None,
):
    smoothed = rt.ESTIMATORS["gumbel_rao"].formula(
        logits,
        draw,
        cotangent,
        temperature=temperature,
        inner_samples=inner_samples,
        generator=generator,
    )
    return 2 * smoothed - 0.5 * softmax_vjp(logits.softmax(-1), cotangent)


@functools.wraps(rt.ESTIMATORS["reinmax_cv"].formula)
def reinmax_cv_tempered(logits, draw, cotangent, *, temperature=1.0, **options):
    """ReinMax itself must stay at τ = 1."""
    right = rt.ESTIMATORS["reinmax_cv"].formula(
        logits, draw, cotangent, temperature=temperature, **options
    )
    formula = rt.ESTIMATORS["reinmax"].formula
    tempered = formula(logits, draw, cotangent, temperature=temperature)
    return right - formula(logits, draw, cotangent) + tempered


def textbook_check(record):
    """tests/test_formulas.py::test_formula_equals_its_textbook_form."""
    for temperature in (1.0, 0.5):
        options = {"temperature": temperature}
        if record.name == "reinmax_cv":
            options["coupling"] = "released"
        assert against_textbook(record, **options) < 1e-10


def promise_check(record):
    """tests/test_promises.py::test_promise_holds_and_no_more."""
    for promise in record.promises:
        check_promise(record, promise, LOGITS)


SLIPS = [
    ("reinmax", reinmax_without_factor_two, promise_check),
    ("reinmax", reinmax_without_factor_two, textbook_check),
    ("reinmax", reinmax_over_temperature, textbook_check),
    ("reinmax", reinmax_tempered_twice, textbook_check),
    ("straight_through", straight_through_without_temperature, textbook_check),
    ("gumbel_softmax", gumbel_softmax_without_temperature, textbook_check),
    ("gumbel_softmax", gumbel_softmax_relaxed_as_noise, textbook_check),
    ("gumbel_rao", gumbel_rao_total_derivative, textbook_check),
    ("reinmax_rao", reinmax_rao_at_theta, textbook_check),
    ("reinmax_cv", reinmax_cv_tempered, textbook_check),
]


@pytest.mark.parametrize(("name", "slip", "check"), SLIPS)
def test_slip_is_caught(name, slip, check):
    with pytest.raises(AssertionError):
        check(dataclasses.replace(rt.ESTIMATORS[name], formula=slip))


@pytest.mark.parametrize("name", sorted({name for name, *_ in SLIPS}))
def test_the_package_passes_the_same_checks(name):
    for other, _, check in SLIPS:
        if other == name:
            check(rt.ESTIMATORS[name])


def law_check(conditional):
    """tests/test_formulas.py::test_conditional_gumbel_has_the_law_of_rejection."""
    generator = torch.Generator().manual_seed(0)
    n, d = 40_000, 1
    theta = torch.tensor([0.5, -1.0, 1.5])
    fast = conditional(theta, torch.eye(3)[d], num_samples=n, generator=generator)
    noise = -torch.empty(30 * n, 3).exponential_(generator=generator).log()
    slow = (theta + noise)[(theta + noise).argmax(-1) == d][:n]
    assert_mean(fast - slow, torch.zeros(3), resolution=0.15)


def conditional_with_untruncated_losers(
    logits, one_hot, *, num_samples=None, generator=None
):
    """The losers keep their own law instead of staying below the winner."""
    E = exponential((num_samples, *logits.shape), logits, generator)
    top = logits.logsumexp(-1, keepdim=True) - E.log()
    return torch.where(one_hot > 0.5, top, logits - E.log())


def conditional_with_winner_at_its_own_logit(
    logits, one_hot, *, num_samples=None, generator=None
):
    """The winner takes θ_d in place of log Z."""
    E = exponential((num_samples, *logits.shape), logits, generator)
    log_E_d = (E.log() * one_hot).sum(-1, keepdim=True)
    theta_d = (logits * one_hot).sum(-1, keepdim=True)
    others = -torch.logaddexp(E.log() - logits, log_E_d - theta_d)
    return torch.where(one_hot > 0.5, theta_d - log_E_d, others)


def test_conditional_noise_of_the_wrong_law_is_caught():
    law_check(conditional_gumbel)
    for wrong in (
        conditional_with_untruncated_losers,
        conditional_with_winner_at_its_own_logit,
    ):
        with pytest.raises(AssertionError):
            law_check(wrong)


def test_baseline_that_looks_at_the_draw_is_caught():
    """κ = f(D), and κ = mean of g, shift the mean; a function of π does not."""
    f = random_polynomial(3, 2, 3, generator=torch.Generator().manual_seed(0))
    record = rt.ESTIMATORS["reinmax"]
    every = codes(2, 3)
    p = probabilities(LOGITS, every)
    theta = LOGITS.expand(len(every), 2, 3)
    z = every.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(z).sum(), z)

    def shift(baseline):
        moved = record.vjp(theta, rt.Draw(every), g, baseline=baseline)
        plain = record.vjp(theta, rt.Draw(every), g)
        return float(torch.einsum("s,slc->lc", p, moved - plain).norm())

    size = float(exact(f, LOGITS).norm())
    assert shift(LOGITS.softmax(-1).amax(-1, keepdim=True)) < 1e-14
    assert shift(f(every)[:, None, None]) > 0.01 * size
    assert shift(g.mean(-1, keepdim=True)) > 0.01 * size


def test_gumbel_noise_with_a_constant_inside_the_log_is_caught():
    """-log(-log(U + 1e-20) + 1e-20) is finite only by cutting the law at 46."""
    tiny = torch.tensor([1e-30])
    cut = -torch.log(tiny + 1e-20)
    right = -torch.log(tiny)
    assert abs(float(cut - right)) > 20
    assert categorical.uniform((100_000,), tiny, None).min() > 0


def test_midpoint_that_exponentiates_logits_is_caught():
    """exp overflows at 88 in float32; log_midpoint stays finite."""
    theta = torch.tensor([200.0, 0.0, -200.0], dtype=torch.float32)
    one_hot = torch.tensor([0.0, 1.0, 0.0])
    naive = ((theta.exp() / theta.exp().sum() + one_hot) / 2).log()
    assert naive.isnan().any()
    ours = log_midpoint(theta, one_hot.float())
    assert not ours.isnan().any() and ours[:2].isfinite().all()
