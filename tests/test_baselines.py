"""A baseline κ u leaves every mean where it is; the best one saves what maths says."""

from __future__ import annotations

import pytest
import torch

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import CounterGenerator
from reinmax_tutorial.estimators.baselines import (
    RunningConstant,
    RunningMean,
    ScoreNetwork,
    optimal_constant,
)
from reinmax_tutorial.objectives import random_decoder

L, C = 2, 4
PATHWISE = [name for name, record in rt.ESTIMATORS.items() if record.vjp]
SMALL_K = {"inner_samples": 3}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(seed: int = 0):
    g = generator(seed)
    f = random_decoder(L, C, generator=g, dtype=torch.float64)
    return f, torch.randn(L, C, generator=g, dtype=torch.float64)


def all_draws(logits):
    """Every code D [S, L, C], its probability [S] and u = D - π."""
    index = torch.cartesian_prod(*[torch.arange(C)] * L)
    one_hot = torch.nn.functional.one_hot(index, C).to(logits.dtype)
    pi = logits.softmax(-1)
    return one_hot, (one_hot * pi).sum(-1).prod(-1), one_hot - pi


def cotangents(f, one_hot):
    points = one_hot.clone().requires_grad_()
    return torch.autograd.grad(f(points).sum(), points)[0]


def estimates(name, f, logits, baseline=None, **options):
    """r(D) for every D, with one and the same inner noise: [S, L, C]."""
    one_hot, _, _ = all_draws(logits)
    if "inner_samples" in rt.ESTIMATORS[name].options:
        options = {**SMALL_K, **options}
    return rt.ESTIMATORS[name].vjp(
        logits.expand_as(one_hot),
        rt.Draw(one_hot),
        cotangents(f, one_hot),
        baseline=baseline,
        generator=CounterGenerator(torch.tensor(5)),
        **options,
    )


def mean(p, x):
    return torch.einsum("s,s...->...", p, x)


def variance(p, x):
    return mean(p, x.square()).sum() - mean(p, x).square().sum()


@pytest.mark.parametrize("name", PATHWISE)
def test_mean_is_unchanged(name):
    f, logits = problem()
    _, p, _ = all_draws(logits)
    kappa = torch.tensor([[3.7], [-1.2]], dtype=torch.float64)
    plain = mean(p, estimates(name, f, logits))
    shifted = mean(p, estimates(name, f, logits, baseline=kappa))
    assert (plain - shifted).abs().max() < 1e-12


def test_mean_is_unchanged_by_a_function_of_the_other_latents():
    f, logits = problem()
    one_hot, p, _ = all_draws(logits)
    other = one_hot.flip(-2) @ torch.tensor([1.0, -2.0, 5.0, 0.5]).double()
    moved = mean(p, estimates("reinmax", f, logits, baseline=other.unsqueeze(-1)))
    assert (moved - mean(p, estimates("reinmax", f, logits))).abs().max() < 1e-12


@pytest.mark.parametrize("misuse", ["value of f", "mean of g"])
def test_baseline_that_knows_the_draw_shifts_the_mean(misuse):
    f, logits = problem()
    one_hot, p, _ = all_draws(logits)
    if misuse == "value of f":
        kappa = f(one_hot)[:, None, None]
    else:
        kappa = cotangents(f, one_hot).mean(-1, keepdim=True)
    plain = mean(p, estimates("reinmax", f, logits))
    shifted = mean(p, estimates("reinmax", f, logits, baseline=kappa))
    assert (shifted - plain).norm() > 0.02 * plain.norm()


@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize("name", PATHWISE)
def test_variance_at_the_best_constant(name, per_latent):
    f, logits = problem(1)
    _, p, u = all_draws(logits)
    r = estimates(name, f, logits)
    axis = (-1,) if per_latent else (-2, -1)
    along = mean(p, (u * r).sum(axis, keepdim=True))
    squared = mean(p, u.square().sum(axis, keepdim=True))
    best = estimates(name, f, logits, baseline=along / squared)
    saved = variance(p, r) - variance(p, best)
    assert (saved - (along.square() / squared).sum()).abs() < 1e-10
    assert saved > 0
    twice = estimates(name, f, logits, baseline=2 * along / squared)
    assert (variance(p, twice) - variance(p, r)).abs() < 1e-10


@pytest.mark.parametrize("per_latent", [False, True])
@pytest.mark.parametrize("name", ["reinforce", "straight_through", "reinmax"])
def test_optimal_constant_is_the_ratio(name, per_latent):
    f, logits = problem(2)
    one_hot, p, u = all_draws(logits)
    r = f(one_hot)[:, None, None] * u
    r = r if name == "reinforce" else estimates(name, f, logits)
    axis = (-1,) if per_latent else (-2, -1)
    expected = mean(p, (u * r).sum(axis, keepdim=True))
    expected = expected / mean(p, u.square().sum(axis, keepdim=True))
    received = optimal_constant(f, logits, name, per_latent=per_latent)
    assert received.shape == expected.shape
    assert (received - expected).abs().max() < 1e-12


def test_optimal_constant_refuses():
    f, logits = problem()
    with pytest.raises(ValueError, match="rloo takes no baseline"):
        optimal_constant(f, logits, "rloo")
    with pytest.raises(ValueError, match="= 16 .* limit of 10"):
        optimal_constant(f, logits, limit=10)


@pytest.mark.parametrize("shape", [(3, L, 1), (L, 1), (1,), ()])
@pytest.mark.parametrize("name", [*PATHWISE, "reinforce"])
def test_gradient_delivered_is_that_of_the_squared_norm(name, shape):
    f, logits = problem()
    logits = logits.expand(3, L, C).clone()
    d = rt.draw(logits, generator=generator(3), gumbel=True)
    options = SMALL_K if "inner_samples" in rt.ESTIMATORS[name].options else {}

    def estimate(kappa):
        theta = logits.clone().requires_grad_()
        loss = rt.expected_loss(
            f, theta, name, draw=d, baseline=kappa, generator=generator(7), **options
        )
        loss.sum().backward()
        return theta.grad

    kappa = torch.full(shape, 0.8, dtype=torch.float64, requires_grad=True)
    r = estimate(0.0)
    u = d.one_hot - logits.softmax(-1)
    free = kappa.detach().clone().requires_grad_()
    (r - free * u).square().sum().backward()
    assert (estimate(kappa) - (r - kappa * u)).abs().max() < 1e-12
    assert (kappa.grad - free.grad).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["reinforce", "reinmax", "straight_through"])
def test_baseline_means_the_same_at_any_number_of_draws(name):
    """κ is in units of one loss: M draws give the mean of M estimates r - κu."""
    f, logits = problem()
    d = rt.draw(logits.expand(4, L, C), generator=generator(3))

    def estimate(num_samples, draw):
        theta = logits.clone().requires_grad_()
        kappa = torch.tensor(2.5, dtype=torch.float64)
        loss = rt.expected_loss(
            f, theta, name, num_samples=num_samples, draw=draw, baseline=kappa
        )
        return torch.autograd.grad(loss, theta)[0]

    singly = [estimate(1, rt.Draw(one_hot)) for one_hot in d.one_hot]
    assert (estimate(4, d) - torch.stack(singly).mean(0)).abs().max() < 1e-12


def test_score_network_starts_at_zero_and_learns():
    f, logits = problem()
    logits = logits.expand(64, L, C)
    features = torch.randn(64, 5, generator=generator(1))
    network = ScoreNetwork(L, C, 5, generator=generator(0)).double()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    g = generator(2)
    assert (network(logits, features) == 0).all()
    for _ in range(300):
        optimiser.zero_grad()
        z = rt.sample(
            logits.requires_grad_(),
            "reinmax",
            generator=g,
            baseline=network(logits, features.double()),
        )
        f(z).sum().backward()
        optimiser.step()
    _, p, _ = all_draws(logits[0].detach())
    kappa = network(logits, features.double()).detach().mean(0)
    plain = variance(p, estimates("reinmax", f, logits[0].detach()))
    with_it = variance(p, estimates("reinmax", f, logits[0].detach(), baseline=kappa))
    one_for_all = optimal_constant(f, logits[0].detach(), "reinmax")
    shared = estimates("reinmax", f, logits[0].detach(), baseline=one_for_all)
    # what no network is needed for: it can say one number, and tells latents apart
    assert with_it < variance(p, shared) < plain


def test_score_network_sends_no_gradient_to_its_inputs():
    network = ScoreNetwork(L, C, 5, generator=generator(0))
    logits = torch.randn(3, L, C, requires_grad=True)
    features = torch.randn(3, 5, requires_grad=True)
    network.second.data.fill_(0.1)
    kappa = network(logits, features)
    assert kappa.shape == (3, L, 1)
    kappa.sum().backward()
    assert logits.grad is None and features.grad is None
    assert all(x.grad is not None for x in network.parameters())
    with pytest.raises(ValueError, match="5 columns, got 4"):
        network(logits, features[:, :4])


def test_score_network_member_is_the_network_alone():
    sources = [generator(s) for s in range(3)]
    together = ScoreNetwork(L, C, 5, members=3, generator=sources)
    alone = ScoreNetwork(L, C, 5, generator=generator(1))
    assert torch.equal(together.first[1], alone.first)
    for network in (together, alone):
        network.second.data.fill_(0.3)
    logits = torch.randn(3, 7, L, C, generator=generator(9))
    features = torch.randn(3, 7, 5, generator=generator(8))
    torch.testing.assert_close(
        together(logits, features)[1], alone(logits[1], features[1])
    )


@pytest.mark.parametrize("name", ["straight_through", "reinmax", "darn"])
@pytest.mark.parametrize("per_latent", [False, True])
def test_running_constant_converges_to_the_best(name, per_latent):
    f, logits = problem(1)
    constant = RunningConstant((L, 1) if per_latent else (), decay=1.0).double()
    theta = logits.expand(500, L, C).clone().requires_grad_()
    g = generator(4)
    for _ in range(40):
        z = rt.sample(theta, name, generator=g, baseline=constant(theta))
        f(z).sum().backward()
        constant.update(theta)
    best = optimal_constant(f, logits, name, per_latent=per_latent)
    # 20,000 draws: about 1 % of the spread of one
    torch.testing.assert_close(
        constant(theta).detach().expand_as(best), best, rtol=0.05, atol=0.02
    )
    assert constant.kappa.grad is None


def test_running_constant_of_one_pass_by_hand():
    """From κ = 0 one pass gives -grad/2 over Σ(1 - |π|²): here 3 / (2 · ½)."""
    constant = RunningConstant()
    constant.kappa.grad = torch.tensor(-6.0)
    constant.update(torch.zeros(2, 1, 2))  # π = (½, ½): 1 - |π|² = ½, two images
    assert constant.kappa.item() == pytest.approx(3.0)
    assert constant.state_dict().keys() == {"kappa", "numerator", "denominator"}
    with pytest.raises(ValueError, match="received no gradient"):
        constant.update(torch.zeros(2, 1, 2))


def test_running_constant_of_a_member_is_that_of_the_member_alone():
    f, logits = problem()
    theta = logits.expand(3, 5, L, C) * torch.arange(1.0, 4.0).reshape(3, 1, 1, 1)
    one_hot = rt.draw(theta, generator=generator(2)).one_hot
    together = RunningConstant((3, 1, 1, 1)).double()
    alone = RunningConstant().double()
    for constant, x, d in [(together, theta, one_hot), (alone, theta[1], one_hot[1])]:
        for _ in range(3):
            x = x.detach().requires_grad_()
            z = rt.sample(x, "reinmax", draw=rt.Draw(d), baseline=constant(x))
            f(z).sum().backward()
            constant.update(x)
    assert (together.kappa[1] - alone.kappa).abs().max() < 1e-12


def test_running_mean():
    running = RunningMean(decay=0.9)
    assert running(torch.zeros(2, L, C)).item() == 0
    running.update(torch.tensor([2.0, 4.0]))
    assert running(None).item() == pytest.approx(3.0)
    running.update(torch.tensor([4.0, 4.0]))  # weights .9 : 1 of 3 and 4
    assert running(None).item() == pytest.approx((0.9 * 3 + 4) / 1.9)
    members = RunningMean((2, 1))
    members.update(torch.tensor([[1.0, 3.0], [10.0, 30.0]]))
    torch.testing.assert_close(members(None).flatten(), torch.tensor([2.0, 20.0]))
    assert members(None).shape == (2, 1, 1, 1)


@pytest.mark.parametrize("baseline", [RunningConstant, RunningMean])
def test_decay_out_of_range(baseline):
    with pytest.raises(ValueError, match=r"got 1\.5"):
        baseline(decay=1.5)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # the compiler's own
@pytest.mark.parametrize("kind", ["constant", "network"])
def test_baseline_under_compile(kind):
    f, logits = problem()
    baseline = RunningConstant((L, 1)) if kind == "constant" else ScoreNetwork(L, C)
    baseline = baseline.double()
    d = rt.draw(logits.expand(3, L, C), generator=generator(3))

    def loss(theta):
        z = rt.sample(theta, "reinmax", draw=d, baseline=baseline(theta))
        return f(z).sum()

    def gradients(function):
        baseline.zero_grad()
        theta = logits.expand(3, L, C).clone().requires_grad_()
        function(theta).backward()
        return [theta.grad, *(x.grad for x in baseline.parameters())]

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for eager, other in zip(gradients(loss), gradients(compiled), strict=True):
        torch.testing.assert_close(other, eager)


def test_baseline_under_vmap():
    f, logits = problem()
    theta = torch.stack([logits, 0.5 * logits, -logits])
    d = rt.draw(theta, generator=generator(3))
    kappa = torch.tensor([[0.3], [0.4]], dtype=torch.float64)

    def loss(theta, one_hot, kappa):
        return f(rt.sample(theta, "reinmax", draw=rt.Draw(one_hot), baseline=kappa))

    slopes = torch.func.grad(loss, argnums=(0, 2))
    mapped = torch.func.vmap(slopes, (0, 0, None), randomness="different")
    together = mapped(theta, d.one_hot, kappa)
    for i in range(3):
        alone = slopes(theta[i], d.one_hot[i], kappa)
        for one, many in zip(alone, together, strict=True):
            torch.testing.assert_close(many[i], one)
