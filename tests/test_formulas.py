"""Each formula against its textbook form, and the identities that tie them together."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    against_textbook,
    assert_mean,
    codes,
    estimates,
    exact,
    mean_samples,
    probabilities,
)

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import (
    CounterGenerator,
    conditional_gumbel,
    log_midpoint,
    softmax_vjp,
)
from reinmax_tutorial.objectives import random_polynomial

pytestmark = pytest.mark.usefixtures("double_precision")
PATHWISE = [name for name, record in rt.ESTIMATORS.items() if record.formula]
VARIANTS = {
    "temperature": [{}, {"temperature": 0.5}, {"temperature": 1.7}],
    "beta": [{"beta": 0.0}, {"beta": 0.3}, {"beta": 1.0}],
    "eta": [{"eta": 0.0}, {"eta": 1.5}],
    "gap": [{"gap": 0.4}],
    "coupling": [{"coupling": "forward"}, {"coupling": "released"}],
}


def variants(name):
    options = rt.ESTIMATORS[name].options
    return [{}] + [v for o in options for v in VARIANTS.get(o, [])]


@pytest.fixture
def batch(double_precision):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 6, generator=generator) * 2
    g = torch.randn(40, 6, generator=generator)
    return logits, rt.draw(logits, generator=generator, gumbel=True), g


def vjp(name, logits, draw, g, **options):
    """The estimate with noise from a fixed key, where noise is needed."""
    record = rt.ESTIMATORS[name]
    if record.random:
        options["generator"] = CounterGenerator(torch.tensor(7))
    if "inner_samples" in record.options:
        options.setdefault("inner_samples", 3)
    return record.vjp(logits, draw, g, **options)


@pytest.mark.parametrize(
    ("name", "options"), [(n, v) for n in PATHWISE for v in variants(n)], ids=str
)
def test_formula_equals_its_textbook_form(name, options):
    if name == "reinmax_cv":  # its two options do not cover τ at every coupling
        for temperature in (0.6, 1.0):
            merged = {"temperature": temperature, **options}
            assert against_textbook(rt.ESTIMATORS[name], **merged) < 1e-10
    assert against_textbook(rt.ESTIMATORS[name], **options) < 1e-10


def test_softmax_vjp_is_autograd(batch):
    logits, _, g = batch
    theta = logits.clone().requires_grad_()
    (truth,) = torch.autograd.grad((theta.softmax(-1) * g).sum(), theta)
    assert (softmax_vjp(logits.softmax(-1), g) - truth).abs().max() < 1e-15


def test_zgr_identity(batch):
    """ReinMax = ½ ST + ½ DARN = T_½, sample by sample; DARN = T_1, ST = T_0."""
    st, darn = vjp("straight_through", *batch), vjp("darn", *batch)
    both = (st + darn) / 2
    for other in (
        vjp("reinmax", *batch),
        vjp("weighted_endpoints", *batch, beta=0.5),
        vjp("reinmax_rk2", *batch, beta=0.5),
    ):
        assert (other - both).abs().max() < 1e-14
    assert (vjp("weighted_endpoints", *batch, beta=0.0) - st).abs().max() < 1e-14
    assert (vjp("weighted_endpoints", *batch, beta=1.0) - darn).abs().max() < 1e-14


def test_reinmax_at_the_mean_is_one_and_a_half_straight_through(batch):
    """2 J(π) - ½ J(π): what replacing D by π would give (no draw is ever soft)."""
    logits, _, g = batch
    soft = rt.Draw(logits.softmax(-1))
    at_mean = vjp("reinmax", logits, soft, g)
    assert (at_mean - 1.5 * vjp("straight_through", logits, soft, g)).abs().max() < (
        1e-14
    )


def test_reinmax_on_the_cotangent_D_is_half_the_score(batch):
    """The gauge of section 8: ReinMax applied to g = D is ½ (D - π)."""
    logits, draw, _ = batch
    half = vjp("reinmax", logits, draw, draw.one_hot)
    assert (half - (draw.one_hot - logits.softmax(-1)) / 2).abs().max() < 1e-14


def test_no_correction_is_reinmax(batch):
    for coupling in ("conditional", "forward", "released"):
        plain = vjp("reinmax_cv", *batch, eta=0.0, coupling=coupling)
        assert (plain - vjp("reinmax", *batch)).abs().max() < 1e-14


@pytest.mark.parametrize("name", PATHWISE)
def test_invariances(name, batch):
    """A constant added to θ, the sum over C, permutation, batching, leading shape."""
    logits, draw, g = batch
    estimate = vjp(name, logits, draw, g)
    assert estimate.sum(-1).abs().max() < 1e-13
    assert (vjp(name, logits + 7.5, draw, g) - estimate).abs().max() < 1e-12
    shaped = vjp(
        name,
        logits.reshape(5, 8, 6),
        rt.Draw(*(x.reshape(5, 8, 6) for x in draw)),
        g.reshape(5, 8, 6),
    )
    assert torch.equal(shaped.reshape(40, 6), estimate)
    constant = vjp(name, logits, draw, torch.full_like(g, 3.0))
    assert constant.abs().max() < 1e-13


@pytest.mark.parametrize("name", [n for n in PATHWISE if not rt.ESTIMATORS[n].random])
def test_permutation_and_looping(name, batch):
    logits, draw, g = batch
    estimate = vjp(name, logits, draw, g)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = vjp(name, logits[:, order], rt.Draw(draw.one_hot[:, order]), g[:, order])
    assert (permuted - estimate[:, order]).abs().max() < 1e-14
    looped = [
        vjp(name, logits[i], rt.Draw(draw.one_hot[i]), g[i]) for i in range(len(logits))
    ]
    assert (torch.stack(looped) - estimate).abs().max() < 1e-14


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    st.lists(st.floats(-30, 30), min_size=2, max_size=9),
    st.floats(-100, 100),
    st.sampled_from([n for n in PATHWISE if not rt.ESTIMATORS[n].random]),
)
def test_invariances_over_generated_logits(values, shift, name):
    logits = torch.tensor(values)
    g = torch.linspace(-1, 2, len(values)) ** 2
    draw = rt.draw(logits, generator=torch.Generator().manual_seed(0))
    estimate = vjp(name, logits, draw, g)
    assert estimate.isfinite().all()
    assert abs(estimate.sum()) < 1e-12
    assert (vjp(name, logits + shift, draw, g) - estimate).abs().max() < 1e-10


def test_conditional_gumbel_has_the_law_of_rejection():
    """Two-sample comparison of mean and of the second moments, and of the argmax."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.5, -1.0, 1.5, 0.0])
    n, d = 40_000, 1
    fast = conditional_gumbel(
        logits, torch.eye(4)[d], num_samples=n, generator=generator
    )
    assert (fast.argmax(-1) == d).all()
    noise = -torch.empty(60 * n, 4).exponential_(generator=generator).log()
    proposals = logits + noise
    slow = proposals[proposals.argmax(-1) == d][:n]
    assert len(slow) == n
    for statistic in (lambda x: x, lambda x: x.tanh() ** 2):
        assert_mean(statistic(fast) - statistic(slow), torch.zeros(4), resolution=0.15)
    products = [(x.tanh()[:, :, None] * x.tanh()[:, None]) for x in (fast, slow)]
    assert_mean(products[0] - products[1], torch.zeros(4, 4), resolution=0.1)


def test_gumbel_noise_and_draw_have_the_right_law():
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([0.3, -1.0, 2.0]).expand(60_000, 3)
    draw = rt.draw(logits, generator=generator, gumbel=True)
    assert_mean(draw.one_hot, logits[0].softmax(-1), resolution=0.03)
    again = (logits + draw.gumbel).argmax(-1)
    assert torch.equal(again, draw.one_hot.argmax(-1))
    assert_mean(draw.gumbel, torch.full((3,), 0.5772156649), resolution=0.08)


def test_gumbel_rao_has_the_mean_of_gumbel_softmax():
    """The same finite sum over D; the noise by paired comparison of 40 000 draws."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, generator=generator)
    f = random_polynomial(3, 2, 3, generator=generator)
    options = {"num_noise": 40_000, "generator": generator, "temperature": 0.5}
    rao = mean_samples(
        rt.ESTIMATORS["gumbel_rao"], f, logits, inner_samples=2, **options
    )
    plain = mean_samples(rt.ESTIMATORS["gumbel_softmax"], f, logits, **options)
    size = float(plain.mean(0).norm())
    assert_mean(rao - plain, torch.zeros(2, 3), resolution=0.15 * size)


def test_variance_falls_as_one_over_inner_samples(batch):
    """Given D, GR_K is a mean of K iid terms: Var(GR_4) = Var(GR_1) / 4."""
    logits, draw, g = (x[:1] if isinstance(x, torch.Tensor) else x for x in batch)
    draw = rt.Draw(draw.one_hot[:1])
    n = 40_000
    rows = [x.expand(n, 6) for x in (logits, g)]
    many = rt.Draw(draw.one_hot.expand(n, 6))

    def squares(inner, seed):
        generator = torch.Generator().manual_seed(seed)
        x = rt.ESTIMATORS["gumbel_rao"].vjp(
            rows[0], many, rows[1], inner_samples=inner, generator=generator
        )
        return (x - x.mean(0)).pow(2).sum(-1)

    one, four = squares(1, 0), squares(4, 1)
    scale = float(one.mean())
    assert_mean((one / 4 - four)[:, None], torch.zeros(1), resolution=0.1 * scale)


def test_conditional_coupling_has_zero_mean_given_D_and_the_others_do_not():
    """E[c | D] for one D: the mean of GR - S over 40 000 draws of all the noise."""
    generator = torch.Generator().manual_seed(0)
    n = 40_000
    logits = torch.tensor([0.4, -0.3, 1.0, 0.2]).expand(n, 4)
    g = torch.tensor([1.0, -0.5, 0.3, 2.0]).expand(n, 4)
    one_hot = torch.eye(4)[2].expand(n, 4)

    def correction(coupling):
        shared = {"generator": generator, "inner_samples": 4, "coupling": coupling}
        vjp = rt.ESTIMATORS["reinmax_cv"].vjp
        with_noise = vjp(logits, rt.Draw(one_hot), g, eta=1.0, **shared)
        return with_noise - rt.ESTIMATORS["reinmax"].vjp(logits, rt.Draw(one_hot), g)

    size = float(rt.ESTIMATORS["reinmax"].vjp(logits, rt.Draw(one_hot), g)[0].norm())
    assert_mean(correction("conditional"), torch.zeros(4), resolution=0.1 * size)
    for coupling in ("forward", "released"):
        c = correction(coupling)
        error = float(c.std(0).norm()) / math.sqrt(n)
        assert float(c.mean(0).norm()) > 0.02 * size + 6 * error


def test_lemma_no_free_lunch():
    """Var(ReinMax + ηc) - Var(ReinMax) = η² E Var(c|D), D enumerated."""
    generator = torch.Generator().manual_seed(0)
    n, C, eta = 20_000, 4, 1.5
    theta = torch.randn(C, generator=generator)
    g_of = torch.randn(C, C, generator=generator)  # a cotangent for each D
    pi = theta.softmax(-1)
    reinmax = rt.ESTIMATORS["reinmax"].vjp
    corrected = rt.ESTIMATORS["reinmax_cv"].vjp
    eye = torch.eye(C)
    plain = torch.stack([reinmax(theta, rt.Draw(eye[d]), g_of[d]) for d in range(C)])
    mean = pi @ plain
    base = pi @ (plain - mean).pow(2).sum(-1)
    total, within = [], []
    for d in range(C):
        rows = [x.expand(n, C) for x in (theta, eye[d], g_of[d])]
        r = corrected(
            rows[0],
            rt.Draw(rows[1]),
            rows[2],
            eta=eta,
            inner_samples=5,
            generator=generator,
        )
        total.append((r - mean).pow(2).sum(-1))
        within.append(((r - plain[d]) / eta).pow(2).sum(-1))
    total, within = (pi @ torch.stack(x) for x in (total, within))
    predicted = float(eta**2 * within.mean())
    surplus = total - base - eta**2 * within
    assert predicted > 0.02 * base
    assert_mean(surplus[:, None], torch.zeros(1), resolution=0.3 * predicted)


def test_cold_limit_of_gumbel_rao_is_reinmax():
    """K → ∞ first, then τ → 0: the distance falls with τ."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.tensor([0.5, -0.2, 0.9])
    g = torch.tensor([1.0, 2.0, -1.0])
    draw = rt.Draw(torch.eye(3)[0])
    truth = rt.ESTIMATORS["reinmax"].vjp(theta, draw, g)

    def distance(temperature):
        rao = rt.ESTIMATORS["gumbel_rao"].vjp(
            theta,
            draw,
            g,
            temperature=temperature,
            inner_samples=1_000_000,
            generator=generator,
        )
        return float((rao - truth).norm() / truth.norm())

    far, near = distance(1.0), distance(0.05)
    assert near < 0.1 < far


def test_reinmax_rao_is_not_reinmax_in_the_mean():
    """C = 2, linear f, K → ∞ by quadrature: ratio of mean Jacobian to the exact one."""
    x = torch.linspace(-40, 40, 200_001)
    logistic = torch.sigmoid(x) * torch.sigmoid(-x)  # law of log E_i - log E_d
    dx = x[1] - x[0]

    def ratio(small):
        pi = torch.tensor([1 - small, small])
        mean = 0.0
        for d in (0, 1):
            lead = torch.nn.functional.softplus(x - torch.log(pi[1 - d] / 2))
            y = torch.sigmoid(lead)  # weight of D in softmax(x/τ) at τ = 1
            mean += pi[d] * float((logistic * y * (1 - y)).sum() * dx)
        exact_jacobian = float(pi[0] * pi[1])
        return 2 * mean / exact_jacobian - 0.5

    expected = {0.5: 0.59, 0.2: 0.85, 0.1: 1.23, 0.01: 3.06}
    for small, value in expected.items():
        assert abs(ratio(small) - value) < 0.01
        theta = torch.tensor([math.log(1 - small), math.log(small)])
        estimate = 0.0
        for d in (0, 1):
            estimate += theta.exp()[d] * rt.ESTIMATORS["reinmax_rao"].vjp(
                theta,
                rt.Draw(torch.eye(2)[d]),
                torch.tensor([1.0, 0.0]),
                inner_samples=400_000,
                generator=CounterGenerator(torch.tensor(d)),
            )
        measured = float(estimate[0]) / (small * (1 - small))
        assert abs(measured - ratio(small)) < 0.05 * value


def test_log_midpoint_is_the_logarithm_of_the_midpoint(batch):
    logits, draw, _ = batch
    direct = ((logits.softmax(-1) + draw.one_hot) / 2).log()
    assert (log_midpoint(logits, draw.one_hot) - direct).abs().max() < 1e-12


def test_paired_reinmax_has_the_mean_of_reinmax():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, generator=generator)
    f = random_polynomial(5, 2, 3, generator=generator)
    shared = {"num_noise": 1, "generator": None}
    paired = mean_samples(rt.ESTIMATORS["paired_reinmax"], f, logits, **shared)
    single = mean_samples(rt.ESTIMATORS["reinmax"], f, logits, **shared)
    assert (paired - single).abs().max() < 1e-12 * single.abs().max().clamp_min(1)
    assert (single[0] - exact(f, logits)).norm() > 1e-3


def test_local_expectation_is_reinforce_given_the_other_latents():
    """Averaged over its own latent REINFORCE becomes it: hence never more variance."""
    generator = torch.Generator().manual_seed(0)
    L, C = 2, 3
    logits = torch.randn(L, C, generator=generator)
    f = random_polynomial(3, L, C, generator=generator)
    every = codes(L, C)
    theta, p = logits.expand(len(every), L, C), probabilities(logits, every)
    plain = estimates(rt.ESTIMATORS["reinforce"], f, theta, every)
    local = estimates(rt.ESTIMATORS["local_expectation"], f, theta, every)
    pi = logits.softmax(-1)
    for latent in range(L):
        other = every[:, 1 - latent]
        same = (other[:, None] == other).all(-1)  # codes that agree in the other one
        weight = same * (every[:, latent] @ pi[latent])
        averaged = weight @ plain[:, latent]
        assert (averaged - local[:, latent]).abs().max() < 1e-12

    def variance(x):
        mean = torch.einsum("s,slc->lc", p, x)
        return p @ (x - mean).square().sum((-2, -1))

    assert variance(local) < variance(plain)


@pytest.mark.parametrize("name", list(rt.ESTIMATORS))
def test_parameters_of_f_get_the_gradient_of_the_value(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 2, 3, generator=generator, requires_grad=True)
    weight = torch.randn(2, 3, generator=generator, requires_grad=True)

    def f(codes):
        return (codes * weight).sum((-2, -1)).tanh()

    loss = rt.expected_loss(f, logits, name, generator=generator)
    (slope,) = torch.autograd.grad(loss.sum(), weight, retain_graph=True)
    assert loss.shape == (5,)
    if name != "exact":
        assert (slope.norm(dim=-1) > 0).all()
        again = torch.Generator().manual_seed(0)
        torch.randn(5, 2, 3, generator=again), torch.randn(2, 3, generator=again)
        M = rt.ESTIMATORS[name].fewest_samples
        D = rt.draw(logits.expand(1 if name == "flip" else M, 5, 2, 3), generator=again)
        value = f(D.one_hot).mean(0)
        assert (loss - value).abs().max() < 1e-15
        (truth,) = torch.autograd.grad(value.sum(), weight)
        assert (slope - truth).abs().max() < 1e-14
