"""What a score baseline saves late in training: the table of chapter 8, measured.

    python benchmarks/score_baseline.py --data mnist-folder [--seeds 2]

An 8x4 VAE (C = 8, L = 4) is trained for three epochs (1,800 steps) with ReinMax, Adam
5e-4, as the paper does, and then held fixed. On one batch of 100 training images the
reconstruction term and its gradient are tabulated at all 4096 codes, so that the exact
gradient in the logits is known and measuring costs look-ups only. Baselines:

none        κ = 0
constant    one number for all images and latents, the best for this batch
learned     a ScoreNetwork trained for 600 steps on other batches of the fixed model
per image   the best number for each image
per latent  the best number for each latent of each image: the limit of a learned one

Noiseless estimators are measured by enumeration; ReinMax-Rao and Gumbel-Rao, K = 100,
from 256 streamed estimates each. Writes reinmax_tutorial/results/score_baseline.csv
and its provenance beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

import reinmax_tutorial as rt
from reinmax_tutorial.data import load_images
from reinmax_tutorial.estimators.baselines import (
    ScoreNetwork,
    mean_squared_score,
    optimal_constant,
)
from reinmax_tutorial.estimators.exact import all_codes
from reinmax_tutorial.experiments.command_line import current_commit
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.ensemble import Ensemble
from reinmax_tutorial.experiments.runner import device_name
from reinmax_tutorial.vae import VAE

EPOCHS, BATCH = 3, 100
CASES = {
    "reinmax": {"temperature": 1.0},
    "reinmax_rao": {"temperature": 1.0, "inner_samples": 100},
    "gumbel_rao": {"temperature": 0.5, "inner_samples": 100},
    "straight_through": {"temperature": 1.0},
}
RESULTS = Path(rt.__file__).parent / "results"


class Tabulated:
    """A loss known at all codes of every image, with its gradient there.

    Args:
        f: codes [S, 1, B, L, C] -> values [S, 1, B].
        L: number of latents.
        C: number of categories.
        batch: B.
    """

    def __init__(self, f, L: int, C: int, batch: int):
        self.place = C ** torch.arange(L - 1, -1, -1)
        self.image = torch.arange(batch)
        values, gradients = [], []
        for chunk in all_codes(L, C, torch.zeros(())):
            for codes in chunk.split(64):
                z = codes[:, None, None].expand(-1, 1, batch, L, C).clone()
                value = f(z.requires_grad_())
                gradients.append(torch.autograd.grad(value.sum(), z)[0].squeeze(1))
                values.append(value.detach().squeeze(1))
        self.values, self.gradients = torch.cat(values), torch.cat(gradients)

    def __call__(self, codes: Tensor) -> Tensor:
        """Values [S, B] of hard codes [S, B, L, C]."""
        index = (codes.detach().argmax(-1) * self.place).sum(-1)
        value = self.values[index, self.image].to(codes.dtype)
        if not codes.requires_grad:
            return value
        slope = self.gradients[index, self.image].to(codes.dtype)
        return value + (slope * (codes - codes.detach())).sum((-2, -1))


def trained(seed: int, data) -> Ensemble:
    """The VAE after 1,800 steps."""
    config = TrainConfig(estimator="reinmax", epochs=EPOCHS, seed=seed)
    ensemble = Ensemble([config], data)
    for epoch in range(1, EPOCHS + 1):
        ensemble.begin_epoch(epoch)
        for _ in range(ensemble.steps_per_epoch):
            ensemble.train_step()
    return ensemble


def learned(name, options, vae: VAE, ensemble: Ensemble, seed: int) -> ScoreNetwork:
    """A network κ(features, π), trained on the fixed model, 600 batches."""
    g = torch.Generator().manual_seed(1000 + seed)
    network = ScoreNetwork(vae.num_latents, vae.num_categories, 256, generator=g)
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    ensemble.begin_epoch(EPOCHS + 1)
    ensemble.step.zero_()
    for _ in range(600):
        images, _ = ensemble.next_batch()
        with torch.no_grad():
            logits, features = vae.encode(images)
        kappa = network(logits, features)
        z = rt.sample(
            logits.requires_grad_(), name, generator=g, baseline=kappa, **options
        )
        vae.reconstruction(z, images).sum().backward()
        optimiser.step()
        optimiser.zero_grad()
        ensemble.step += 1
    return network


def measured(seed: int, data) -> pd.DataFrame:
    """All rows of one seed."""
    started = time.perf_counter()
    ensemble = trained(seed, data)
    nats = ensemble.training_metrics()["negative_elbo"].item()
    vae = ensemble.vae.requires_grad_(False)
    ensemble.begin_epoch(EPOCHS + 2)
    ensemble.step.zero_()
    images, _ = ensemble.next_batch()
    logits, features = vae.encode(images)
    L, C = vae.num_latents, vae.num_categories
    f = Tabulated(lambda z: vae.reconstruction(z, images), L, C, BATCH)
    theta = logits[0].double()
    exact = rt.exact_gradient(f, theta)
    print(f"seed {seed}: {nats:.1f} nats, {time.perf_counter() - started:.0f} s")
    weight = mean_squared_score(theta)
    frames = []
    for name, options in CASES.items():
        g = torch.Generator().manual_seed(seed)
        noisy = rt.ESTIMATORS[name].random
        fewer = {**options, "inner_samples": 4} if noisy else options
        best = optimal_constant(f, theta, name, per_latent=True, generator=g, **fewer)
        total = (best * weight).sum(-2, keepdim=True)
        network = learned(name, fewer, vae, ensemble, seed)
        baselines = {
            "none": torch.zeros(()),
            "constant": total.sum() / weight.sum(),
            "learned": network(logits, features)[0].detach(),
            "per image": total / weight.sum(-2, keepdim=True),
            "per latent": best,
        }
        for baseline, kappa in baselines.items():
            frame = rt.measure(
                name,
                f,
                theta,
                num_estimates=256,
                generator=torch.Generator().manual_seed(seed),
                exact=exact,
                limit=1 if noisy else 4096,
                baseline=kappa.double(),
                **options,
            )
            frame.insert(0, "seed", seed)
            frame.insert(2, "baseline", baseline)
            frame["mean_kappa"] = kappa.mean().item()
            frames.append(frame)
            mse, bias = (
                frame.set_index("metric").value[metric]
                for metric in ("relative_mse", "relative_bias")
            )
            took = time.perf_counter() - started
            print(f"  {name:18s}{baseline:12s}{mse:6.2f} / {bias:.2f}   {took:.0f} s")
    return pd.concat(frames)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="folder of the MNIST files")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULTS / "score_baseline.csv")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    data = load_images("mnist", folder=arguments.data)
    table = pd.concat([measured(seed, data) for seed in range(arguments.seeds)])
    table.to_csv(arguments.output, index=False, float_format="%.6g")
    provenance = {
        "command": "python benchmarks/score_baseline.py --data MNIST "
        f"--seeds {arguments.seeds}",
        "commit": current_commit(),
        "training": f"8x4, reinmax, adam 5e-4, {EPOCHS} epochs of MNIST, batch {BATCH}",
        "device": device_name("cpu"),
        "threads": 1,
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
    }
    text = json.dumps(provenance, indent=1) + "\n"
    arguments.output.with_suffix(".json").write_text(text)


if __name__ == "__main__":
    main()
