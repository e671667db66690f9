"""The exact gradient, by enumerating all C^L codes: the oracle of the whole book."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator
from reinmax_tutorial.estimators.adapters import evaluated, with_gradient
from reinmax_tutorial.estimators.record import check_logits, promoted

LIMIT = 20_000
"""Codes enumerated at most, unless the caller says otherwise."""
CHUNK = 4096
"""Codes handed to f at once."""


def check_enumerable(num_categories: int, num_latents: int, limit: int) -> int:
    """C**L, or ValueError with that number where it exceeds the limit."""
    count = num_categories**num_latents
    if count > limit:
        raise ValueError(
            f"enumeration needs C**L = {num_categories}**{num_latents} = {count} "
            f"evaluations of f, above the limit of {limit}"
        )
    return count


def all_codes(num_latents: int, num_categories: int, like: Tensor) -> Iterator[Tensor]:
    """Every one-hot code, in chunks [S, L, C], the last latent changing fastest."""
    count = num_categories**num_latents
    place = num_categories ** torch.arange(num_latents - 1, -1, -1, device=like.device)
    for start in range(0, count, CHUNK):
        number = torch.arange(start, min(start + CHUNK, count), device=like.device)
        digits = (number[:, None] // place) % num_categories
        yield torch.nn.functional.one_hot(digits, num_categories).to(like.dtype)


def code_probabilities(pi: Tensor, codes: Tensor) -> Tensor:
    """P(code) = Π_l π_l(code_l): pi [*batch, L, C], codes [S, L, C] -> [S, *batch]."""
    index = codes.argmax(-1)
    lead = (len(codes), *pi.shape[:-2])
    batch_axes = (1,) * (pi.ndim - 2)
    index = index.reshape(len(codes), *batch_axes, -1, 1).expand(*lead, -1, 1)
    chosen = pi.expand(len(codes), *pi.shape).gather(-1, index)
    return chosen.squeeze(-1).prod(-1)


def enumerated_loss(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    num_samples: int = 1,
    generator: Generator = None,
    draw: Draw | None = None,
    validate: bool = True,
    limit: int = LIMIT,
) -> Tensor:
    """The expectation itself, with its exact gradient.

        value Σ_D p(D) f(D),    gradient Σ_D p(D) (f(D) - E f) (D - π)

    Promise: exact for every f; the parameters of f get the gradient of the value.
    Cost: C^L evaluations of f.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        num_samples: not used.
        generator: not used.
        draw: not used.
        validate: not used.
        limit: refuse more codes than this.

    Returns:
        Σ p f, shape [*batch].

    Raises:
        ValueError: C**L exceeds the limit.

    Source: definition. Chapter 1.
    """
    L, C = logits.shape[-2:]
    check_enumerable(C, L, limit)
    pi = promoted(logits.detach()).softmax(-1)
    mean, first, second = 0.0, 0.0, 0.0
    for codes in all_codes(L, C, logits):
        batch_axes = (1,) * (logits.ndim - 2)
        points = codes.reshape(len(codes), *batch_axes, L, C)
        values = evaluated(f, points.expand(len(codes), *logits.shape))
        p = code_probabilities(pi, codes)
        mean = mean + (p * values).sum(0)
        weight = (p * values.detach())[..., None, None]
        first = first + (weight * (points - pi)).sum(0)
        second = second + (p[..., None, None] * (points - pi)).sum(0)
    estimate = first - mean.detach()[..., None, None] * second
    return with_gradient(mean, logits, estimate)


def exact_gradient(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    *,
    mask: Tensor | None = None,
    limit: int = LIMIT,
) -> Tensor:
    """∂/∂θ of E[f(D)], by enumeration of all codes.

    Promise: exact, to rounding.
    Cost: C^L evaluations of f, without gradients.

    Args:
        f: codes [S, *batch, L, C] -> values [S, *batch].
        logits: θ, shape [*batch, L, C].
        mask: False marks an impossible category; broadcasts to the logits.
        limit: refuse more codes than this.

    Returns:
        The gradient, shape [*batch, L, C], in units of f per logit.

    Raises:
        ValueError: C**L exceeds the limit, or the logits are not valid.

    Source: definition. Chapter 1.
    """
    theta = logits if mask is None else logits.masked_fill(~mask, -torch.inf)
    check_logits(theta)
    if theta.ndim < 2:
        raise ValueError(f"logits must be [*batch, L, C], got {tuple(theta.shape)}")
    theta = theta.detach().requires_grad_()
    with torch.enable_grad():
        loss = enumerated_loss(without_graph(f), theta, limit=limit)
        return torch.autograd.grad(loss.sum(), theta)[0]


def without_graph(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """f, evaluated without building a graph."""

    def values(codes: Tensor) -> Tensor:
        with torch.no_grad():
            return f(codes)

    return values
