"""One-hot categorical variables: draws, noise, and the Jacobian of the softmax.

Everything here is in the notation of the book: θ are logits of shape [*batch, C],
π = softmax(θ), D is a one-hot draw, G its Gumbel noise. Nothing is imported from the
rest of the package.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Draw(NamedTuple):
    """The random part of an estimate.

    Attributes:
        one_hot: D, shape [*batch, C], exactly one 1 along the last axis.
        gumbel: G with D = onehot(argmax(θ + G)), same shape; None where an estimator
            does not need it, or where it is to be drawn from its law given D.
    """

    one_hot: Tensor
    gumbel: Tensor | None = None


class CounterGenerator:
    """Random numbers as a pure function of a key and a position.

    A torch.Generator carries hidden state; this one hashes (key, counter) with the
    finaliser of SplitMix64, so that the same key gives the same numbers in eager
    mode, under torch.compile, under vmap and inside a CUDA graph. That is what lets
    a backward pass regenerate its noise instead of storing it, and a member of an
    ensemble see the same noise as if it were trained alone.

    Args:
        key: int64 tensor on the device of the numbers; shape [] or [M]. With M keys
            the leading part of every shape asked for must be a multiple of M, and
            block m depends on key m alone.

    Source: Steele, Lea, Flood (2014), SplitMix; Salmon et al. (2011) for the idea of
    counter-based generators.
    """

    def __init__(self, key: Tensor):
        self.key = key
        self.position = 0
        self.start = self.index = None  # made when first needed

    @property
    def members(self) -> int:
        """Number of independent streams."""
        return self.key.numel()

    def _words(self, count: int) -> Tensor:
        """`count` 64-bit words per stream, shape [M, count]."""
        if self.start is None:
            self.start = mixed(self.key.reshape(-1, 1) ^ 0x2545F4914F6CDD1D)
        if self.index is None or len(self.index) != count:  # tiles are of one size
            self.index = torch.arange(count, device=self.key.device)
        start = self.start + self.position
        self.position += count
        # Key first, factor second: a compiler may take index * factor for an index
        # expression that never overflows, and drop the bounds of its loop.
        return mixed((self.index + start).mul_(-7046029254386353131))

    def uniform(self, shape, dtype: torch.dtype) -> Tensor:
        """Uniform numbers strictly between 0 and 1, of 23 (float32) or 52 bits."""
        numel = math.prod(shape) // self.members
        if dtype == torch.float64:
            words, width, digits = self._words(numel), 64, 52
        else:  # two numbers from each word
            words, width, digits = self._words((numel + 1) // 2), 32, 23
            words = words.view(torch.int32)[:, :numel]
        # signed words, shrunk a little: the ends are 2^-digits and 1 - 2^-digits
        scale = (1 - 2.0 ** (1 - digits)) * 2.0**-width
        return words.to(dtype).mul_(scale).add_(0.5).reshape(shape)

    def spawn(self) -> Tensor:
        """Fresh keys, one per stream, in the shape of this generator's key."""
        return self._words(1).reshape(self.key.shape)


def mixed(word: Tensor) -> Tensor:
    """The finaliser of SplitMix64, a bijection of 64-bit words; changes `word`."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        word.bitwise_xor_(shifted(word, shift)).mul_(factor)
    return word.bitwise_xor_(shifted(word, 31))


def shifted(word: Tensor, by: int) -> Tensor:
    """64-bit words moved to the right, zeros coming in; torch moves the sign in."""
    return (word >> by).bitwise_and_(2 ** (64 - by) - 1)


Generator = torch.Generator | CounterGenerator | None


def uniform(shape, like: Tensor, generator: Generator) -> Tensor:
    """Uniform numbers in (0, 1), dtype and device of `like`, never 0 and never 1."""
    if isinstance(generator, CounterGenerator):
        return generator.uniform(shape, like.dtype)
    source = {} if generator is None else {"generator": generator}
    numbers = torch.rand(shape, dtype=like.dtype, device=like.device, **source)
    return numbers.clamp_min(torch.finfo(like.dtype).eps / 4)


def exponential(shape, like: Tensor, generator: Generator) -> Tensor:
    """Exp(1) numbers, strictly positive and finite."""
    return uniform(shape, like, generator).log_().neg_()


def draw_key(generator: Generator, device: torch.device) -> Tensor:
    """One int64 key for a CounterGenerator, drawn from any generator."""
    if isinstance(generator, CounterGenerator):
        return generator.spawn()
    return torch.randint(2**63 - 1, (), generator=generator, device=device)


def one_hot_argmax(scores: Tensor) -> Tensor:
    """onehot(argmax(scores)) along the last axis, in the dtype of `scores`."""
    index = scores.argmax(-1, keepdim=True)
    return torch.zeros_like(scores).scatter(-1, index, 1.0)


def draw(logits: Tensor, *, generator: Generator = None, gumbel: bool = False) -> Draw:
    """A one-hot sample by the Gumbel-max trick.

        D = onehot(argmax_i (θ_i + G_i)),   G_i = -log E_i,   E_i ~ Exp(1)

    The same numbers are consumed whether or not the noise is returned, so that two
    estimators given the same generator see the same D.

    Promise: P(D = e_i) = softmax(θ)_i.
    Cost: one random number and two logarithms per logit.

    Args:
        logits: θ, shape [*batch, C]; -inf marks an impossible category.
        generator: where the noise comes from; None is torch's default generator.
        gumbel: return G as well.

    Returns:
        Draw(one_hot, gumbel), both [*batch, C]; gumbel is None unless asked for.

    Source: Gumbel (1954); Maddison, Tarlow, Minka (2014). Chapter 6.
    """
    working = logits.detach()
    if working.dtype in (torch.float16, torch.bfloat16):
        working = working.float()
    noise = -exponential(working.shape, working, generator).log()
    one_hot = one_hot_argmax(working.log_softmax(-1) + noise).to(logits.dtype)
    return Draw(one_hot, noise if gumbel else None)


def softmax_vjp(p: Tensor, v: Tensor) -> Tensor:
    """The Jacobian of the softmax times a vector, without the Jacobian.

        J(p) v = (diag(p) - p pᵀ) v = p ⊙ (v - ⟨p, v⟩)

    Promise: equals autograd through softmax; sums to 0 over C when p sums to 1.
    Cost: O(C); the C x C matrix is never built.

    Args:
        p: probabilities, shape [*batch, C].
        v: cotangent, shape [*batch, C].

    Returns:
        J(p) v, shape [*batch, C].

    Source: elementary. Chapter 1.
    """
    return p * (v - (p * v).sum(-1, keepdim=True))


def conditional_gumbel(
    logits: Tensor,
    one_hot: Tensor,
    *,
    num_samples: int | None = None,
    generator: Generator = None,
) -> Tensor:
    """Perturbed logits θ + G, given that their argmax is D.

    With D = e_d, log Z = logsumexp(θ) and E_1 .. E_C iid Exp(1),

        x_d = -log E_d + log Z
        x_j = -logaddexp(log E_j - θ_j, log E_d - log Z)        for j ≠ d.

    Promise: the law of θ + G given argmax(θ + G) = d; differentiable in θ at fixed
    noise. Logits are never exponentiated.
    Cost: one random number per logit and sample.

    Args:
        logits: θ, shape [*batch, C]; need not be normalised; -inf stays -inf.
        one_hot: D, shape [*batch, C].
        num_samples: number of independent draws; None gives one, without an axis.
        generator: where the noise comes from.

    Returns:
        x, shape [*batch, C], or [num_samples, *batch, C].

    Source: Maddison, Tarlow, Minka (2014); Paulus, Maddison, Krause (2021). Chapter 7.
    """
    lead = () if num_samples is None else (num_samples,)
    log_noise = exponential((*lead, *logits.shape), logits, generator).log()
    chosen = one_hot > 0.5
    top = (log_noise * one_hot).sum(-1, keepdim=True) - logits.logsumexp(
        -1, keepdim=True
    )
    others = torch.logaddexp(log_noise - logits, top)
    return -torch.where(chosen, top, others)


def conditional_noise(logits: Tensor, draw: Draw, generator: Generator) -> Tensor:
    """G of a draw: the given one, or one from its law given D. Shape [*batch, C]."""
    if draw.gumbel is not None:
        return draw.gumbel
    perturbed = conditional_gumbel(logits, draw.one_hot, generator=generator)
    possible = logits > -math.inf
    return torch.where(possible, perturbed - logits.masked_fill(~possible, 0.0), 0.0)


def log_midpoint(logits: Tensor, one_hot: Tensor) -> Tensor:
    """θ_D = log((π + D)/2), computed in log space. Shape [*batch, C]."""
    log_pi = logits.log_softmax(-1)
    halfway = torch.logaddexp(log_pi, torch.zeros_like(log_pi))
    return torch.where(one_hot > 0.5, halfway, log_pi) - math.log(2)


def softplus(x: Tensor) -> Tensor:
    """log(1 + eˣ), exact to rounding in float64 too (torch's default cuts at 20)."""
    return F.softplus(x, threshold=20.0 if x.dtype == torch.float32 else 40.0)
