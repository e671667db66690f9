"""No NaN, no infinity and no wrong digit, on a grid of hard inputs."""

import itertools
import math
import sys

import mpmath
import naive
import pytest
import torch
from oracles import recorded_noise

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import CounterGenerator
from reinmax_tutorial.estimators import rao_blackwell

PATHWISE = [name for name, record in rt.ESTIMATORS.items() if record.formula]
CATEGORIES = (2, 8, 64, 4096)
SHAPES = {
    **{f"scale {s}": (s, 0.0, None) for s in (1, 5, 20, 100)},
    **{f"offset {o:+g}": (1, o, None) for o in (100.0, -200.0, 1e4)},
    "one at +200": (1, 0.0, 200.0),
    "one masked": (1, 0.0, -math.inf),
    "one at -1e4": (1, 0.0, -1e4),
    "one at +1e4": (1, 0.0, 1e4),
}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TEMPERATURES = (0.01, 0.1, 1.0, 20.0)


def hard_logits(C, shape, dtype):
    scale, offset, outlier = SHAPES[shape]
    logits = torch.randn(3, C, generator=torch.Generator().manual_seed(C)) * scale
    logits = logits + offset
    if outlier is not None:
        logits[:, 1] = outlier
    return logits.to(dtype)


def same_numbers(shape, like, generator):
    """Exp(1) noise that is the same float32 numbers in every precision."""
    g = torch.Generator().manual_seed(math.prod(shape) % 1009)
    return torch.empty(shape).exponential_(generator=g).clamp_min(1e-7).to(like.dtype)


def is_good(estimate, reference, g, temperature):
    """Finite, and close to float64 on the scale of an estimate: max |g| / min(τ, 1)."""
    scale = g.abs().max().double() * max(1.0, 1 / temperature)
    rounding = torch.finfo(estimate.dtype).eps
    close = (estimate.double() - reference).abs().max() <= max(4 * rounding, 2e-4) * (
        scale
    )
    return bool(estimate.isfinite().all() and close)


def grid(name):
    temperatures = (
        TEMPERATURES if "temperature" in rt.ESTIMATORS[name].options else (1,)
    )
    return itertools.product(CATEGORIES, SHAPES, DTYPES, temperatures)


def cases(name):
    """Every case of the grid, with the package's estimate and the one in float64.

    Yields (label, estimate, reference, draw, logits, g, options); the inner noise is
    that of `same_numbers`.
    """
    record = rt.ESTIMATORS[name]
    for C, shape, dtype, temperature in grid(name):
        logits = hard_logits(C, shape, dtype)
        g = torch.randn(3, C, generator=torch.Generator().manual_seed(1)).to(dtype)
        draw = rt.draw(logits, generator=torch.Generator().manual_seed(2), gumbel=True)
        options = {}
        if "temperature" in record.options:
            options["temperature"] = temperature
        inner = {"inner_samples": 3} if "inner_samples" in record.options else {}
        estimate = record.vjp(logits, draw, g, **options, **inner)
        exactly = rt.Draw(draw.one_hot.double(), draw.gumbel.double())
        reference = record.vjp(logits.double(), exactly, g.double(), **options, **inner)
        label = (C, shape, dtype, temperature)
        yield label, estimate, reference, draw, logits, g, options


@pytest.mark.parametrize("name", PATHWISE)
def test_hard_inputs(name, monkeypatch):
    """Every case of the grid, against the same formula in float64."""
    monkeypatch.setattr(rao_blackwell, "exponential", same_numbers)
    bad = [
        label
        for label, estimate, reference, _, logits, g, _ in cases(name)
        if estimate.dtype != logits.dtype
        or not is_good(estimate, reference, g, label[-1])
    ]
    assert not bad, f"{len(bad)} bad cases, the first: {bad[:5]}"


def naive_is_bad(name, label, reference, draw, logits, g, options):
    """Whether the naive form fails a case that the package passes."""
    C = label[0]
    noise = same_numbers((1, 3, C, 3), logits, None)[0].mT
    ours = naive.estimate(name, logits, draw, g, noise, **options)
    return not is_good(ours, reference, g, label[-1])


@pytest.mark.parametrize("name", ["straight_through", "gumbel_softmax", "reinmax_rao"])
def test_the_grid_is_hard(name, monkeypatch):
    """The naive form fails a tenth of the cases, or there is nothing to show."""
    monkeypatch.setattr(rao_blackwell, "exponential", same_numbers)
    monkeypatch.setattr(sys.modules[__name__], "CATEGORIES", (2, 8))
    verdicts = [
        naive_is_bad(name, label, reference, *rest)
        for label, _, reference, *rest in cases(name)
    ]
    assert sum(verdicts) > 0.1 * len(verdicts)


def report():
    """Print, for every estimator, the cases and the bad ones: ours and naive."""
    rao_blackwell.exponential = same_numbers
    print(f"{'estimator':24s} {'cases':>6s} {'bad':>6s} {'bad, naive':>11s}")
    totals = [0, 0, 0, 0]
    for name in PATHWISE:
        row = [0, 0, 0, 0]
        for label, estimate, reference, draw, logits, g, options in cases(name):
            good = is_good(estimate, reference, g, label[-1])
            row[0] += 1
            row[1] += not good
            if label[0] <= 64:  # at C = 4096 a batch of dense Jacobians is gigabytes
                row[2] += naive_is_bad(name, label, reference, draw, logits, g, options)
                row[3] += 1
        totals = [a + b for a, b in zip(totals, row, strict=True)]
        print(f"{name:24s} {row[0]:6d} {row[1]:6d} {row[2]:6d}/{row[3]}")
    print(f"{'all':24s} {totals[0]:6d} {totals[1]:6d} {totals[2]:6d}/{totals[3]}")


@pytest.mark.parametrize("name", PATHWISE)
def test_masked_category_gets_nothing(name):
    logits = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    logits.requires_grad_()
    mask = torch.tensor([True, True, False, True, True, False])
    z = rt.sample(logits, name, mask=mask, generator=torch.Generator().manual_seed(1))
    (z * torch.randn(50, 6)).sum().backward()
    assert (z[:, ~mask] == 0).all()
    assert (logits.grad[:, ~mask] == 0).all()
    assert logits.grad.isfinite().all() and logits.grad[:, mask].abs().sum() > 0


@pytest.mark.parametrize("name", ["gumbel_rao", "reinmax_rao"])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_against_sixty_digits(name, temperature):
    """The same formula in 60-digit arithmetic, from its definition, at C = 6."""
    mpmath.mp.dps = 60
    g_ = torch.Generator().manual_seed(0)
    worst = {torch.float64: 0.0, torch.float32: 0.0}
    for scale, dtype in itertools.product((1.0, 5.0, 20.0), worst):
        logits = (torch.randn(1, 6, generator=g_) * scale).to(dtype)
        g = torch.randn(1, 6, generator=g_).to(dtype)
        draw = rt.draw(logits, generator=g_)
        with recorded_noise() as seen:
            ours = rt.ESTIMATORS[name].vjp(
                logits,
                draw,
                g,
                temperature=temperature,
                inner_samples=20,
                generator=CounterGenerator(torch.tensor(1)),
            )[0]
        truth = sixty_digits(
            name, logits[0], int(draw.one_hot.argmax()), g[0], seen[0][0], temperature
        )
        error = max(
            abs(mpmath.mpf(x.item()) - t) for x, t in zip(ours, truth, strict=True)
        )
        size = max(1e-30, *(abs(t) for t in truth))  # below, float32 is all zeros
        worst[dtype] = max(worst[dtype], float(error / size))
    assert worst[torch.float64] < 1e-14
    assert worst[torch.float32] < 1e-5


def sixty_digits(name, theta, d, g, noise, temperature):
    """Gumbel-Rao or ReinMax-Rao of one row from exponentials [K, C], in mpmath."""
    mpf, C = mpmath.mpf, len(theta)
    g = [mpf(x.item()) for x in g]
    weights = [mpmath.exp(mpf(t.item())) for t in theta]
    total = sum(weights)
    pi = [w / total for w in weights]
    used = pi
    if name == "reinmax_rao":
        used = [(p + (j == d)) / 2 for j, p in enumerate(pi)]
    mean = [mpf(0)] * C
    for row in noise:
        E = [mpf(e.item()) for e in row]
        x = [-mpmath.log(E[j] / used[j] + E[d]) for j in range(C)]
        x[d] = -mpmath.log(E[d])
        y = softmax([v / mpf(temperature) for v in x])
        for j, v in enumerate(vjp(y, g)):
            mean[j] += v / len(noise) / mpf(temperature)
    if name == "gumbel_rao":
        return mean
    return [2 * m - v / 2 for m, v in zip(mean, vjp(pi, g), strict=True)]


def softmax(x):
    top = max(x)
    e = [mpmath.exp(v - top) for v in x]
    return [v / sum(e) for v in e]


def vjp(p, g):
    inner = sum(a * b for a, b in zip(p, g, strict=True))
    return [a * (b - inner) for a, b in zip(p, g, strict=True)]


if __name__ == "__main__":
    report()
