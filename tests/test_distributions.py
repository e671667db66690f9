"""torch.distributions with any estimator: torch's own class, and rsample besides."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.distributions import Independent, kl_divergence

import reinmax_tutorial as rt

PATHWISE = [name for name, record in rt.ESTIMATORS.items() if record.vjp]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(name="logits")
def theta():
    return torch.randn(3, 4, generator=generator(1), dtype=torch.float64)


@pytest.mark.parametrize("name", PATHWISE)
def test_rsample_is_sample(name, logits):
    """The same D and the same gradient as rt.sample, in every estimator."""
    weights = torch.randn(5, 3, 4, generator=generator(2), dtype=torch.float64)
    gradients, samples = [], []
    for way in ("distribution", "call"):
        x = logits.clone().requires_grad_()
        g = generator(3)
        if way == "distribution":
            q = rt.OneHotCategorical(logits=x, estimator=name, generator=g)
            z = q.rsample((5,))
        else:
            z = rt.sample(x.log_softmax(-1).expand(5, 3, 4), name, generator=g)
        (z * weights).sum().backward()
        samples.append(z.detach())
        gradients.append(x.grad)
    assert torch.equal(*samples)
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_samples_are_one_hot_with_the_right_law(logits):
    g = generator()
    q = rt.OneHotCategorical(logits=logits, generator=g, temperature=0.3)
    for z in (q.sample((20_000,)), q.rsample((20_000,))):
        assert z.shape == (20_000, 3, 4)
        assert ((z == 0) | (z == 1)).all() and (z.sum(-1) == 1).all()
        spread = (q.variance / 20_000).sqrt()
        assert ((z.mean(0) - q.mean).abs() < 6 * spread).all()
    assert not q.sample().requires_grad


def test_inherited_from_torch(logits):
    ours = rt.OneHotCategorical(logits=logits, estimator="gumbel_rao", inner_samples=3)
    theirs = torch.distributions.OneHotCategorical(logits=logits)
    z = ours.sample((6,))
    torch.testing.assert_close(ours.log_prob(z), theirs.log_prob(z))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    torch.testing.assert_close(ours.mode, theirs.mode)
    assert torch.equal(ours.enumerate_support(), theirs.enumerate_support())
    assert torch.equal(ours.enumerate_support(False), theirs.enumerate_support(False))
    assert ours.has_rsample and ours.has_enumerate_support
    assert ours.event_shape == (4,) and ours.batch_shape == (3,)


def test_probs_and_logits_agree(logits):
    probs = logits.softmax(-1)
    ours = rt.OneHotCategorical(probs, generator=generator())
    other = rt.OneHotCategorical(logits=logits, generator=generator())
    assert torch.equal(ours.rsample((50,)), other.rsample((50,)))
    x = (3 * probs).requires_grad_()
    z = rt.OneHotCategorical(probs=x, generator=generator()).rsample()
    (z * torch.arange(4)).sum().backward()
    # d/dx through log x: the estimate in the logits, divided by x
    y = logits.clone().requires_grad_()
    z = rt.OneHotCategorical(logits=y, generator=generator()).rsample()
    (z * torch.arange(4)).sum().backward()
    torch.testing.assert_close(x.grad, y.grad / x.detach())


def test_expand_keeps_the_estimator(logits):
    q = rt.OneHotCategorical(
        logits=logits, estimator="reinmax_cv", eta=0.5, generator=generator()
    )
    wide = q.expand((7, 3))
    assert isinstance(wide, rt.OneHotCategorical)
    assert wide.batch_shape == (7, 3) and wide.rsample((2,)).shape == (2, 7, 3, 4)
    assert (wide.estimator, wide.options) == ("reinmax_cv", {"eta": 0.5})
    assert wide.generator is q.generator


def test_divergence(logits):
    """In closed form, its gradient through π whatever the estimator's temperature."""
    x = logits.clone().requires_grad_()
    q = rt.OneHotCategorical(logits=x, estimator="reinmax", temperature=0.2)
    p = rt.OneHotCategorical(logits=torch.zeros_like(logits))
    kl = kl_divergence(q, p)
    pi = logits.softmax(-1)
    torch.testing.assert_close(kl, (pi * (pi * 4).log()).sum(-1))
    kl.sum().backward()
    v = pi.log() + 1
    torch.testing.assert_close(x.grad, pi * (v - (pi * v).sum(-1, keepdim=True)))
    theirs = torch.distributions.OneHotCategorical(logits=torch.zeros_like(logits))
    torch.testing.assert_close(kl_divergence(q, theirs), kl)


def test_baseline_learns_inside_a_distribution(logits):
    kappa = torch.zeros((), dtype=torch.float64, requires_grad=True)
    x = logits.clone().requires_grad_()
    q = rt.OneHotCategorical(logits=x, baseline=kappa, generator=generator())
    q.rsample((8,)).square().sum().backward()
    # g = 2D, on which ReinMax is u at τ = 1: the slope at κ = 0 is -2 Σ|u|²
    u = q.__class__(logits=logits, generator=generator()).sample((8,)) - q.probs
    torch.testing.assert_close(kappa.grad, -2 * u.detach().square().sum())


@pytest.mark.parametrize(
    "made", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))]
)
def test_copies(made, logits):
    q = made(rt.OneHotCategorical(logits=logits, estimator="darn"))
    assert q.estimator == "darn" and q.rsample().shape == (3, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"estimator": "st"}, "unknown estimator 'st'; known: .*straight_through"),
        ({"estimator": "rloo"}, "rloo .* use expected_loss"),
        ({"temperature": 0.0}, "temperature must be .* > 0, got 0.0"),
        ({"gap": 1.0}, "reinmax has no option 'gap'"),
        ({"probs": torch.ones(2)}, "not both"),
    ],
)
def test_refuses(arguments, message, logits):
    for family in (rt.OneHotCategorical, rt.Bernoulli):
        with pytest.raises(ValueError, match=message):
            family(**{"logits": logits, **arguments})


def test_validate_args(logits):
    bad = logits.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(ValueError, match="invalid values"):
        rt.OneHotCategorical(logits=bad, validate_args=True)
    q = rt.OneHotCategorical(logits=logits, validate_args=True)
    with pytest.raises(ValueError, match="support"):
        q.log_prob(torch.full((3, 4), 0.25, dtype=torch.float64))


def elbo(guide, x, encoder, decoder):
    """A Pyro-style model in plain torch: guide q(z | x), decoder p(x | z)."""
    q = Independent(guide(logits=encoder(x).unflatten(-1, (2, 4))), 1)
    p = Independent(guide(logits=torch.zeros(len(x), 2, 4)), 1)
    z = q.rsample()
    likelihood = Independent(
        torch.distributions.Bernoulli(logits=decoder(z.flatten(-2))), 1
    )
    return (likelihood.log_prob(x) - kl_divergence(q, p)).mean(), z


def test_drop_in_for_the_class_of_torch():
    """Same loss, same gradients, when both see the same draws."""
    torch.manual_seed(0)
    x = (torch.rand(16, 9, generator=generator(4)) > 0.5).float()
    encoder, decoder = torch.nn.Linear(9, 8), torch.nn.Linear(8, 9)

    seen = {}

    class Theirs(torch.distributions.OneHotCategoricalStraightThrough):
        def sample(self, sample_shape=()):
            return seen["z"]

    def ours(logits):
        return rt.OneHotCategorical(
            logits=logits, estimator="straight_through", generator=generator(5)
        )

    gradients = []
    for guide in (ours, Theirs):
        encoder.zero_grad()
        loss, z = elbo(guide, x, encoder, decoder)
        seen["z"] = z.detach()
        (-loss).backward()
        gradients.append((loss.detach(), encoder.weight.grad.clone()))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ["straight_through", "reinmax", "gumbel_rao"])
def test_bernoulli(name):
    theta = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    q = rt.Bernoulli(logits=theta, estimator=name, generator=generator())
    z = q.rsample((20_000,))
    assert z.shape == (20_000, 3) and ((z == 0) | (z == 1)).all()
    p = theta.detach().sigmoid()
    spread = (p * (1 - p) / 20_000).sqrt()
    assert ((z.detach().mean(0) - p).abs() < 6 * spread).all()
    wide = q.expand((2, 3))
    assert wide.estimator == name and wide.sample((4,)).shape == (4, 2, 3)
    torch.testing.assert_close(
        q.log_prob(z.detach()[0]),
        torch.distributions.Bernoulli(logits=theta).log_prob(z.detach()[0]),
    )


def test_bernoulli_gradient_is_exact_for_a_quadratic():
    """ReinMax by hand: E over z in {0, 1} is σ'(θ) (f(1) - f(0))."""
    theta = torch.tensor([-1.0, 0.3, 2.0], dtype=torch.float64)
    p = theta.sigmoid()

    def f(z):
        return 3 * z**2 - z

    mean = 0.0
    for bit, weight in ((0.0, 1 - p), (1.0, p)):
        x = theta.clone().requires_grad_()
        pair = torch.stack([x, torch.zeros_like(x)], -1)
        one_hot = torch.tensor([bit, 1 - bit], dtype=torch.float64).expand(3, 2)
        z = rt.sample(pair, "reinmax", draw=rt.Draw(one_hot))[..., 0]
        mean = mean + weight * torch.autograd.grad(f(z).sum(), x)[0]
    torch.testing.assert_close(mean, p * (1 - p) * 2, rtol=1e-12, atol=1e-12)


def test_bernoulli_divergence_and_sample_without_gradient():
    q, p = (rt.Bernoulli(logits=torch.tensor(x)) for x in (0.5, -0.2))
    theirs = [
        torch.distributions.Bernoulli(logits=torch.tensor(x)) for x in (0.5, -0.2)
    ]
    torch.testing.assert_close(kl_divergence(q, p), kl_divergence(*theirs))
    assert q.sample((3,)).shape == (3,) and q.rsample().shape == ()
