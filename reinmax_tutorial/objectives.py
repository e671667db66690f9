"""Losses f of a code, with a known degree or a known shape, to test estimators on.

Each is a callable codes [*lead, L, C] -> values [*lead], differentiable everywhere,
not only on the vertices. Nothing is imported from the rest of the package.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Polynomial:
    """Σ_r a_r (w_r · z + b_r)^degree: a polynomial that mixes all latents.

    Attributes:
        degree: its degree, in each latent given the others, and in all together.
        directions: w, shape [R, L, C].
        shifts: b, shape [R].
        weights: a, shape [R].
    """

    degree: int
    directions: Tensor
    shifts: Tensor
    weights: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """Values [*lead] of codes [*lead, L, C]."""
        along = torch.einsum("...lc,rlc->...r", codes, self.directions)
        return ((along + self.shifts) ** self.degree) @ self.weights


def random_polynomial(
    degree: int,
    num_latents: int,
    num_categories: int,
    *,
    generator: torch.Generator,
    num_terms: int = 6,
    dtype: torch.dtype | None = None,
) -> Polynomial:
    """A polynomial of known degree that no latent can be separated out of.

    Args:
        degree: ≥ 0.
        num_latents: L.
        num_categories: C.
        generator: where the coefficients come from.
        num_terms: R, number of powers that are added up.
        dtype: of the coefficients; torch's default if None.

    Source: this book. Chapter 3.
    """
    if degree < 0:
        raise ValueError(f"degree must be >= 0, got {degree}")
    shape = (num_terms, num_latents, num_categories)
    directions = torch.randn(shape, generator=generator, dtype=dtype)
    shifts = torch.randn(num_terms, generator=generator, dtype=dtype)
    weights = torch.randn(num_terms, generator=generator, dtype=dtype)
    return Polynomial(degree, directions / num_latents**0.5, shifts, weights)


@dataclass(frozen=True)
class PolynomialProgram:
    """Mean over latents of |⟨z, values⟩ - target|^power: "polynomial programming".

    Attributes:
        values: the number that each category stands for, shape [C].
        target: the number to come close to.
        power: exponent.
    """

    values: Tensor
    target: float = 0.45
    power: float = 2.0

    def __call__(self, codes: Tensor) -> Tensor:
        """Values [*lead] of codes [*lead, L, C]."""
        return ((codes @ self.values) - self.target).abs().pow(self.power).mean(-1)


@dataclass(frozen=True)
class Decoder:
    """A small two-layer decoder with a cross-entropy to a grey target.

        f(z) = Σ_pixels BCE(W₂ tanh(W₁ z + b₁) + b₂, target)

    Attributes:
        first: W₁, shape [H, L, C].
        first_bias: b₁, shape [H].
        second: W₂, shape [P, H].
        second_bias: b₂, shape [P].
        target: in [0, 1], shape [P].
    """

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    target: Tensor

    def __call__(self, codes: Tensor) -> Tensor:
        """Values in nats [*lead] of codes [*lead, L, C]."""
        hidden = torch.einsum("...lc,hlc->...h", codes, self.first) + self.first_bias
        pixels = hidden.tanh() @ self.second.mT + self.second_bias
        target = self.target.expand_as(pixels)
        return F.binary_cross_entropy_with_logits(pixels, target, reduction="none").sum(
            -1
        )


def random_decoder(
    num_latents: int,
    num_categories: int,
    *,
    generator: torch.Generator,
    hidden: int = 16,
    pixels: int = 12,
    scale: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Decoder:
    """A decoder with random weights and a random grey target.

    Args:
        num_latents: L.
        num_categories: C.
        generator: where the weights come from.
        hidden: H, number of hidden units.
        pixels: P, number of pixels.
        scale: size of the weights; larger is further from linear.
        dtype: of the weights; torch's default if None.

    Source: this book. Chapter 1.
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype) * scale

    return Decoder(
        first=normal(hidden, num_latents, num_categories),
        first_bias=normal(hidden),
        second=normal(pixels, hidden) / hidden**0.5,
        second_bias=normal(pixels),
        target=torch.rand(pixels, generator=generator, dtype=dtype),
    )
