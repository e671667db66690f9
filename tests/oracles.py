"""Slow, independent ways to the truth, for the tests to compare with.

Nothing here calls the formula that it checks: means are finite sums over every draw,
Jacobians are built densely or by autograd, noise is replayed.
"""

import itertools
import math
from contextlib import contextmanager
from statistics import NormalDist

import torch

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import CounterGenerator
from reinmax_tutorial.estimators import rao_blackwell


def assert_mean(samples, expected, *, resolution, false_alarm=1e-9):
    """The mean of samples [n, ...] is expected; a bias of `resolution` would be seen.

    false_alarm is the probability, for the whole call, of failing correct code.
    """
    n, comparisons = len(samples), expected.numel()
    z = NormalDist().inv_cdf(1 - false_alarm / (2 * comparisons))
    error = samples.std(0) / math.sqrt(n)
    worst = (2 * z * error).max()
    assert worst <= resolution, f"too few samples: {worst:.2g} > {resolution:.2g}"
    assert ((samples.mean(0) - expected).abs() <= z * error + 1e-12).all()


def codes(num_latents, num_categories):
    """Every code, [C^L, L, C]."""
    eye = torch.eye(num_categories)
    product = itertools.product(eye, repeat=num_latents)
    return torch.stack([torch.stack(vertices) for vertices in product])


def probabilities(logits, all_codes):
    """P(code) of each code, [S], for logits [L, C]."""
    pi = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
    return (pi * all_codes).sum(-1).prod(-1)


def draws(record, logits):
    """Every draw of D as the estimator takes it, with its probability.

    Returns [M, S, L, C] (without the M where M = 1) and [S].
    """
    every = codes(*logits.shape)
    p = probabilities(logits, every)
    if record.fewest_samples == 1 or record.name == "flip":
        return every, p
    pairs = list(itertools.product(range(len(every)), repeat=2))
    first, second = torch.tensor(pairs).T
    return torch.stack([every[first], every[second]]), p[first] * p[second]


def estimates(record, f, logits, one_hot, *, generator=None, **options):
    """One estimate for every draw [(M,) *batch, L, C], at logits [*batch, L, C]."""
    if record.formula is not None:
        z = one_hot.clone().requires_grad_()
        value = f(z)
        g = torch.zeros_like(z)
        if value.requires_grad:
            g = torch.autograd.grad(value.sum(), z)[0]
        return record.vjp(logits, rt.Draw(one_hot), g, generator=generator, **options)
    theta = logits.clone().requires_grad_()
    loss = rt.expected_loss(
        f, theta, record.name, draw=rt.Draw(one_hot), generator=generator, **options
    )
    return torch.autograd.grad(loss.sum(), theta)[0]


def mean_samples(record, f, logits, *, num_noise, generator, **options):
    """Estimates averaged exactly over D, one for each draw of the noise: [n, L, C]."""
    one_hot, p = draws(record, logits)
    n = num_noise if record.random else 1
    lead = one_hot.shape[:-2]
    one_hot = one_hot.unsqueeze(-4).expand(*lead[:-1], n, *one_hot.shape[-3:])
    theta = logits.expand(n, len(p), *logits.shape)
    each = estimates(record, f, theta, one_hot, generator=generator, **options)
    return torch.einsum("s,nslc->nlc", p, each)


def exact(f, logits):
    """The exact gradient, by differentiating the finite sum."""
    every = codes(*logits.shape)
    theta = logits.clone().requires_grad_()
    (probabilities(theta, every) @ f(every)).backward()
    return theta.grad


def dense_jacobian(p):
    """The matrix diag(p) - p pᵀ itself."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def textbook(name, logits, draw, g, noise, options):
    """Each pathwise estimator from its definition, densely, one row at a time.

    noise: the exponentials of every inner draw, [rows, K, C]; a correction's single
    draw comes last.
    """
    rows = [
        textbook_row(
            name,
            logits[i],
            draw.one_hot[i],
            None if draw.gumbel is None else draw.gumbel[i],
            g[i],
            None if noise is None else noise[i],
            options,
        )
        for i in range(len(logits))
    ]
    return torch.stack(rows)


def textbook_row(name, theta, D, G, g, E, options):
    """One row [C] of `textbook`."""
    tau = options.get("temperature", 1.0)
    beta = options.get("beta", 0.5)
    C, d = len(theta), int(D.argmax())
    pi = theta.softmax(-1)
    p = (theta / tau).softmax(-1)
    J, u = dense_jacobian, D - pi
    heun = 0.5 * (J(pi) + torch.outer(u, u)) @ g

    def smoothed(log_weights, exponentials):
        total = torch.zeros(C, C)
        for E_k in exponentials:
            log_Z = log_weights.logsumexp(-1)
            x = torch.stack(
                [
                    -E_k[j].log() + log_Z
                    if j == d
                    else -torch.log(
                        E_k[j] / log_weights[j].exp() + E_k[d] / log_Z.exp()
                    )
                    for j in range(C)
                ]
            )
            total += J((x / tau).softmax(-1)) / tau
        return total / len(exponentials)

    if name == "straight_through":
        return J(p) @ g / tau
    if name == "reinmax":
        return (2 * J((p + D) / 2) - 0.5 * J(pi)) @ g
    if name == "darn":
        return u * (g[d] - pi @ g)
    if name == "weighted_endpoints":
        return ((1 - beta) * J(pi) + beta * torch.outer(u, u)) @ g
    if name == "reinmax_rk2":
        if tau == 1:
            return 2 * beta * heun + (2 * beta - 1) * (g @ u) * (pi - 1 / C)
        raw = (p + D) * (g - (beta * p + (1 - beta) * D) @ g) - (1 - beta) * J(pi) @ g
        return raw - raw.mean()
    if name == "gumbel_softmax":
        soft = theta.clone().requires_grad_()
        y = ((soft + G) / tau).softmax(-1)
        return torch.autograd.grad(y @ g, soft)[0]
    if name == "gapped_straight_through":
        gap = options.get("gap", 1.0)
        top = theta.max()
        shifted = [top if j == d else min(theta[j], top - gap) for j in range(C)]
        return J((torch.stack(shifted) / tau).softmax(-1)) @ g / tau
    theta_D = ((pi + D) / 2).log()
    if name == "gumbel_rao":
        return smoothed(theta, E) @ g
    if name == "reinmax_rao":
        return (2 * smoothed(theta_D, E) - 0.5 * J(pi)) @ g
    if name == "reinmax_cv":
        eta = options.get("eta", 1.0)
        coupling = options.get("coupling", "conditional")
        if coupling == "conditional":
            averaged, single = smoothed(theta_D, E[:-1]), smoothed(theta_D, E[-1:])
        elif coupling == "forward":
            averaged = smoothed(theta_D, E)
            single = J(((theta_D + G) / tau).softmax(-1)) / tau
        else:
            averaged = smoothed(theta_D, E)
            relaxed = ((theta + G) / tau).softmax(-1)
            single = J((theta_D + relaxed).softmax(-1)) / tau
        return heun + eta * (averaged - single) @ g
    raise ValueError(f"no textbook form of {name!r}")


@contextmanager
def recorded_noise():
    """Collect the exponentials that rao_blackwell draws: a list of [rows, K, C].

    They are drawn as [1, rows, C, K], in one tile where the case is small.
    """
    seen, original = [], rao_blackwell.exponential

    def recording(shape, like, generator):
        noise = original(shape, like, generator)
        seen.append(noise[0].mT.clone())
        return noise

    rao_blackwell.exponential = recording
    try:
        yield seen
    finally:
        rao_blackwell.exponential = original


def against_textbook(record, **options):
    """Largest difference of a formula and its textbook form under the same noise."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 5, generator=generator)
    g = torch.randn(6, 5, generator=generator)
    draw = rt.draw(logits, generator=generator, gumbel=True)
    if "inner_samples" in record.options:
        options = {"inner_samples": 7, **options}
    noise_source = {"generator": CounterGenerator(torch.tensor(5))}
    with recorded_noise() as seen:
        ours = record.vjp(
            logits, draw, g, **(noise_source if record.random else {}), **options
        )
    noise = torch.cat(seen, 1) if seen else None
    return (ours - textbook(record.name, logits, draw, g, noise, options)).abs().max()
