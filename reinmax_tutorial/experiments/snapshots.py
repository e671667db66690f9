"""Bias and variance along a training run: `measure` at every saved model."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from reinmax_tutorial.data import ImageData
from reinmax_tutorial.estimators import ESTIMATORS
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.ensemble import stream_keys
from reinmax_tutorial.experiments.storage import RunFolder
from reinmax_tutorial.measurement import measure
from reinmax_tutorial.vae import VAE

MEASURING = 7
"""Purpose of the noise, beside those of training."""

ENUMERABLE = 20_000
"""Most codes that are tabulated."""


class TabulatedLoss:
    """f and its gradient at every code, for one batch of images.

    Each code is decoded once for all images; afterwards a value or a gradient is a
    look-up, and an estimate costs next to nothing.

    Args:
        vae: one model (M = 1).
        images: [B, pixels].
    """

    def __init__(self, vae: VAE, images: Tensor):
        C, L = vae.num_categories, vae.num_latents
        if C**L > ENUMERABLE:
            raise ValueError(f"C**L = {C}**{L} codes are too many to tabulate")
        grid = torch.cartesian_prod(*[torch.arange(C)] * L).reshape(-1, L)
        self.place = torch.tensor([C ** (L - 1 - i) for i in range(L)])
        self.place = self.place.to(images.device)
        values, gradients = [], []
        for some in grid.to(images.device).split(256):
            z = F.one_hot(some, C).to(images.dtype).requires_grad_()
            pixels = vae.decode(z.unsqueeze(0))[0]
            nats = F.softplus(pixels).sum(-1) - images @ pixels.T
            values.append(nats.detach())
            gradients.append(
                torch.stack(
                    [torch.autograd.grad(row.sum(), z, retain_graph=True)[0]
                     for row in nats]
                )
            )  # fmt: skip
        self.values = torch.cat(values, 1)
        self.gradients = torch.cat(gradients, 1)

    def __call__(self, codes: Tensor) -> Tensor:
        """Codes [S, B, L, C] -> nats [S, B], differentiable at the vertices."""
        number = (codes.detach().argmax(-1) * self.place).sum(-1)
        image = torch.arange(len(self.values), device=number.device)
        value, slope = self.values[image, number], self.gradients[image, number]
        return value + (slope * (codes - codes.detach())).sum((-2, -1))


def load_snapshot(
    config: TrainConfig, epoch: int, folder: RunFolder, num_pixels: int
) -> VAE:
    """The model of a run as it was after an epoch (FileNotFoundError if not saved)."""
    path = folder.of(config) / f"snapshot_{epoch:03d}.pt"
    vae = VAE(num_pixels, config.num_categories, config.num_latents)
    vae.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return vae


def measured_snapshot(
    config: TrainConfig,
    epoch: int,
    folder: RunFolder,
    data: ImageData,
    *,
    estimators: Sequence[str] = tuple(ESTIMATORS),
    num_images: int = 100,
    num_estimates: int = 1024,
    device: str = "cpu",
) -> pd.DataFrame:
    """Every estimator on the reconstruction term of one batch, at one saved model.

    The batch is the first `num_images` training images. Estimators without noise of
    their own are enumerated; the others, and those of several draws, are sampled
    `num_estimates` times. Options are the defaults of the records (τ = 1, K = 100).

    Returns:
        The rows of `measure`, with run_id, seed and epoch before them.
    """
    vae = load_snapshot(config, epoch, folder, data.train.num_pixels).to(device)
    images = data.train.images(slice(0, num_images)).to(device)
    with torch.no_grad():
        logits = vae.encode(images.unsqueeze(0))[0][0]
    f = TabulatedLoss(vae, images)
    pi = logits.softmax(-1)
    exact = exact_from_table(f, logits, pi)
    tables = []
    for name in estimators:
        record = ESTIMATORS[name]
        if name == "runge_kutta":
            continue  # needs f between the vertices
        key = stream_keys(torch.tensor([config.seed]), MEASURING, epoch)
        generator = torch.Generator(device).manual_seed(int(key))
        rows = measure(
            name,
            f,
            logits,
            num_estimates=num_estimates,
            generator=generator,
            limit=1 if record.random else ENUMERABLE,
            exact=exact,
        )
        tables.append(rows)
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "run_id", config.run_id)
    table.insert(1, "seed", config.seed)
    table.insert(2, "epoch", epoch)
    return table


def exact_from_table(f: TabulatedLoss, logits: Tensor, pi: Tensor) -> Tensor:
    """∇ = J(π_l) F_l with F_l,c the mean of f given D_l = e_c, [B, L, C]."""
    B, L, C = logits.shape
    joint = torch.ones(B, 1, device=pi.device, dtype=torch.float64)
    for latent in range(L):
        joint = (joint.unsqueeze(-1) * pi[:, latent].double().unsqueeze(1)).flatten(1)
    weighted = (joint * f.values.double()).reshape(B, *[C] * L)
    parts = []
    for latent in range(L):
        others = [axis + 1 for axis in range(L) if axis != latent]
        mass = weighted.sum(others) if others else weighted  # π_c F_c
        p = pi[:, latent].double()
        parts.append(mass - p * mass.sum(-1, keepdim=True))
    return torch.stack(parts, 1).to(logits.dtype)
