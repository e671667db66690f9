"""A variational autoencoder with a categorical code, M models trained as one.

The network of the paper: encoder pixels-512-256-L·C, decoder L·C-256-512-pixels,
ReLU between layers and none on the logits. Every parameter carries a leading member
axis, [M, in, out], so that one batched product trains M models that know nothing of
each other; M = 1 is an ordinary VAE.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reinmax_tutorial.categorical import Generator, draw

HIDDEN = (512, 256)
"""Widths of the encoder's hidden layers; the decoder mirrors them."""


class StackedLinear(nn.Module):
    """M linear layers side by side: x_m W_m + b_m.

    Args:
        num_inputs: width of x.
        num_outputs: width of the result.
        generators: one per member; weights and biases start uniform on
            ±1/√num_inputs, torch's default for a linear layer.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        generators: Sequence[torch.Generator],
    ):
        super().__init__()
        bound = 1 / math.sqrt(num_inputs)

        def uniform(*shape: int) -> nn.Parameter:
            members = [
                torch.rand(shape, generator=g, dtype=torch.float64) for g in generators
            ]
            start = (2 * torch.stack(members) - 1) * bound
            return nn.Parameter(start.to(torch.get_default_dtype()))

        self.weight = uniform(num_inputs, num_outputs)
        self.bias = uniform(1, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[M, N, in] -> [M, N, out]."""
        return torch.baddbmm(self.bias, x, self.weight)


class NegativeElbo(NamedTuple):
    """−ELBO and its two parts, in nats per image, each [M, B]."""

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


class VAE(nn.Module):
    """M categorical VAEs of one shape.

    Args:
        num_pixels: size of an image.
        num_categories: C.
        num_latents: L, independent given the image.
        seeds: one per member; member m's starting point depends on seeds[m] alone.
        hidden: widths of the encoder's hidden layers; the decoder mirrors them.
    """

    def __init__(
        self,
        num_pixels: int,
        num_categories: int,
        num_latents: int,
        *,
        seeds: Sequence[int] = (0,),
        hidden: tuple[int, int] = HIDDEN,
    ):
        super().__init__()
        self.num_categories, self.num_latents = num_categories, num_latents
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        code = num_latents * num_categories
        wide, narrow = hidden
        sizes = (num_pixels, wide, narrow, code)
        self.encoder = nn.ModuleList(
            StackedLinear(a, b, generators) for a, b in itertools.pairwise(sizes)
        )
        self.decoder = nn.ModuleList(
            StackedLinear(a, b, generators) for a, b in itertools.pairwise(sizes[::-1])
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [M, B, pixels] -> logits θ [M, B, L, C], last hidden layer."""
        first, second, last = self.encoder
        hidden = second(first(images).relu()).relu()
        shape = (*images.shape[:2], self.num_latents, self.num_categories)
        return last(hidden).reshape(shape), hidden

    def decode(self, codes: Tensor) -> Tensor:
        """Codes z [M, N, L, C] -> logits of the pixels [M, N, pixels]."""
        first, second, last = self.decoder
        return last(second(first(codes.flatten(-2)).relu()).relu())

    def reconstruction(self, codes: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy of the pixels given z, in nats per image.

            f(z) = Σ_pixels softplus(l) - x l,    l = decode(z)

        Grey pixels x in [0, 1] are taken as they are, as the paper does.

        Args:
            codes: z, shape [*lead, M, B, L, C]; extra leading axes are treated
                independently, so that this is a loss f for rt.expected_loss.
            images: x, shape [M, B, pixels].

        Returns:
            Shape [*lead, M, B].
        """
        lead, code = codes.shape[:-4], codes.shape[-2:]
        members, batch = images.shape[:2]
        stacked = codes.reshape(-1, members, batch, *code).transpose(0, 1)
        pixels = self.decode(stacked.reshape(members, -1, *code))
        pixels = pixels.reshape(members, -1, batch, images.shape[-1])
        nats = cross_entropy(pixels, images.unsqueeze(1))
        return nats.transpose(0, 1).reshape(*lead, members, batch)

    def negative_elbo(
        self, images: Tensor, *, generator: Generator = None
    ) -> NegativeElbo:
        """−ELBO with one hard sample: what is reported for held-out images.

        Args:
            images: x in [0, 1], shape [M, B, pixels].
            generator: where the sample comes from.
        """
        logits, _ = self.encode(images)
        codes = draw(logits, generator=generator).one_hot
        reconstruction, kl = self.reconstruction(codes, images), kl_to_uniform(logits)
        return NegativeElbo(reconstruction + kl, reconstruction, kl)

    def importance_weighted_bound(
        self,
        images: Tensor,
        *,
        num_samples: int = 100,
        generator: Generator = None,
    ) -> Tensor:
        """The importance-weighted bound on −log p(x), in nats per image.

            -log (1/S) Σ_s p(x|z_s) p(z_s) / q(z_s|x),    z_s ~ q(z|x)

        Promise: at S = 1 −ELBO in the mean; falls in S towards −log p(x). For grey
        pixels p(x|z) is not a density, and the number only compares models.

        Args:
            images: x, shape [M, B, pixels].
            num_samples: S ≥ 1.
            generator: where the samples come from.

        Returns:
            Shape [M, B].

        Source: Burda, Grosse, Salakhutdinov (2016).
        """
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
        logits, _ = self.encode(images)
        log_pi = logits.log_softmax(-1)
        log_prior = -self.num_latents * math.log(self.num_categories)
        # the member axis leads, so that a member's noise is its own
        wide = logits.unsqueeze(1).expand(-1, num_samples, -1, -1, -1)
        codes = draw(wide, generator=generator).one_hot
        log_q = (log_pi.unsqueeze(1) * codes).sum((-2, -1))
        members, batch = images.shape[:2]
        pixels = self.decode(codes.flatten(1, 2))
        pixels = pixels.reshape(members, num_samples, batch, -1)
        log_p = -cross_entropy(pixels, images.unsqueeze(1))
        log_weights = log_p + log_prior - log_q
        return math.log(num_samples) - log_weights.logsumexp(1)

    def exact_negative_elbo(
        self, images: Tensor, *, limit: int = 20_000
    ) -> NegativeElbo:
        """−ELBO by enumerating all C^L codes, in nats per image.

            Σ_z q(z|x) f(z) + KL(q || p)

        Promise: no sampling error. Each code is decoded once for all images.
        Cost: C^L decodings and one matrix product.

        Args:
            images: x, shape [M, B, pixels].
            limit: largest C^L that is enumerated.

        Raises:
            ValueError: when C^L is larger.
        """
        C, L = self.num_categories, self.num_latents
        if C**L > limit:
            raise ValueError(f"C**L = {C}**{L} = {C**L} codes, above limit={limit}")
        logits, _ = self.encode(images)
        log_pi = logits.log_softmax(-1)
        index = torch.cartesian_prod(*[torch.arange(C, device=images.device)] * L)
        index = index.reshape(-1, L)
        reconstruction = torch.zeros_like(images[..., 0])
        for some in index.split(512):
            codes = F.one_hot(some, C).to(images.dtype)
            pixels = self.decode(codes.expand(len(images), *codes.shape))
            nats = F.softplus(pixels).sum(-1).unsqueeze(1) - images @ pixels.mT
            log_q = log_pi.flatten(-2) @ codes.flatten(-2).T
            reconstruction = reconstruction + (log_q.exp() * nats).sum(-1)
        kl = kl_to_uniform(logits)
        return NegativeElbo(reconstruction + kl, reconstruction, kl)


def cross_entropy(pixel_logits: Tensor, images: Tensor) -> Tensor:
    """Bernoulli cross-entropy from logits, summed over pixels, in nats per image."""
    target = images.expand(pixel_logits.shape)
    nats = F.binary_cross_entropy_with_logits(pixel_logits, target, reduction="none")
    return nats.sum(-1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """KL from softmax(θ) to the uniform prior, summed over latents, in nats.

        Σ_l Σ_c π_lc (log π_lc + log C)

    Through π alone, untempered, never through a sample.

    Args:
        logits: θ, shape [*batch, L, C].

    Returns:
        Shape [*batch].
    """
    log_pi = logits.log_softmax(-1)
    nats = log_pi.exp() * (log_pi + math.log(logits.shape[-1]))
    return nats.sum((-2, -1))
