"""Every estimator's promise beside what is measured, and the lemma on ReinMax-CV.

    python benchmarks/report_estimators.py

L = 3 latents of C = 3 categories, float64, draws of D enumerated. A bias is relative to
the norm of the exact gradient; "±" is its Monte-Carlo error where the estimator adds
noise of its own (no sign where there is none). The variance is that of the tanh
decoder, relative to the squared norm of its exact gradient.
"""

from __future__ import annotations

import torch

import reinmax_tutorial as rt
from reinmax_tutorial.objectives import random_decoder, random_polynomial

L, C, K = 3, 3, 20
ESTIMATES = 20_000
ETAS = (0.0, 0.5, 1.0, 1.5)


def problems(generator: torch.Generator) -> dict:
    """The four losses, all mixing the latents."""
    double = {"generator": generator, "dtype": torch.float64}
    return {
        "linear": random_polynomial(1, L, C, **double),
        "quadratic": random_polynomial(2, L, C, **double),
        "cubic": random_polynomial(3, L, C, **double),
        "tanh": random_decoder(L, C, **double),
    }


def measured(record, f, logits, generator, **options):
    """Rows of `measure`, indexed by metric."""
    if "inner_samples" in record.options:
        options = {"inner_samples": K, **options}
    return rt.measure(
        record, f, logits, num_estimates=ESTIMATES, generator=generator, **options
    ).set_index("metric")


def in_words(promise) -> str:
    """A promise in a few characters."""
    exact = promise.exact
    words = exact if isinstance(exact, str) else f"degree {exact}"
    at = ", ".join(f"{name}={value}" for name, value in promise.options.items())
    return f"{words} ({at})" if at else words


def report(logits, losses, generator) -> None:
    """One row for each case of each promise."""
    print(f"{'estimator':24s}{'promise':36s}", end="")
    print("".join(f"{name:>19s}" for name in losses), f"{'variance':>10s}  cost in f")
    for name, record in rt.ESTIMATORS.items():
        for promise in record.promises:
            print(f"{name:24s}{in_words(promise):36s}", end="")
            for f in losses.values():
                rows = measured(record, f, logits, generator, **promise.options)
                value, error = rows.loc["relative_bias", ["value", "std_error"]]
                noise = f" ± {error:7.1e}" if error else ""
                print(f"{f'{value:.1e}{noise}':>19s}", end="")
            norm = rt.exact_gradient(f, logits).square().sum().item()
            relative = rows.value["variance"] / norm
            print(f"{relative:10.3g}  {record.cost.label} = {rows.evaluations.iloc[0]}")


def mean_conditional_variance(f, logits, generator, repeats: int = 4000) -> float:
    """E Var(S g | D), S one noisy Jacobian: a quarter of ReinMax-Rao's at K = 1."""
    index = torch.cartesian_prod(*[torch.arange(C)] * L)
    D = torch.nn.functional.one_hot(index, C).to(logits.dtype)
    z = D.clone().requires_grad_()
    (g,) = torch.autograd.grad(f(z).sum(), z)
    D, g = (x.expand(repeats, *x.shape) for x in (D, g))
    r = rt.ESTIMATORS["reinmax_rao"].vjp(
        logits.expand_as(D), rt.Draw(D), g, inner_samples=1, generator=generator
    )
    p = (D[0] * logits.softmax(-1)).sum(-1).prod(-1)
    return (p @ r.var(0).sum((-2, -1))).item() / 4


def lemma(logits, f, generator) -> None:
    """Var(ReinMax-CV) = Var(ReinMax) + η² (1 + 1/K) E Var(S g | D), conditional S."""
    plain = measured(rt.ESTIMATORS["reinmax"], f, logits, generator)
    single = mean_conditional_variance(f, logits, generator)
    found, predicted = [], []
    for eta in ETAS:
        record = rt.ESTIMATORS["reinmax_cv"]
        rows = measured(record, f, logits, generator, eta=eta)
        value, error = rows.loc["variance", ["value", "std_error"]]
        found.append(f"{value - plain.value['variance']:8.4f} ± {error:6.4f}")
        predicted.append(f"{eta**2 * (1 + 1 / K) * single:8.4f}         ")
    print(f"\nVar(ReinMax) = {plain.value['variance']:.4f}; what ReinMax-CV adds:")
    print("eta      ", "".join(f"{eta:8.1f}         " for eta in ETAS))
    print("measured ", "".join(found))
    print("predicted", "".join(predicted))


def main() -> None:
    """Print both."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    losses = problems(generator)
    logits = torch.randn(L, C, generator=generator, dtype=torch.float64)
    report(logits, losses, generator)
    lemma(logits, losses["tanh"], generator)


if __name__ == "__main__":
    main()
