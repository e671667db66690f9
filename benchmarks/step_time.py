"""Training-step time: this package against a plain loop, and where the time goes.

    python benchmarks/step_time.py --write

measures both in turns, each in its own process, takes medians, and with --write
stores benchmarks/step_time.csv and the tables in benchmarks/README.md made from it.

The plain loop is what one writes first: a DataLoader that turns pictures into tensors
one by one, as torchvision's MNIST does, torch's RAdam with its defaults, `.item()` at
every step, and the estimator with its C x C Jacobians built.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from reinmax_tutorial.categorical import CounterGenerator, conditional_gumbel
from reinmax_tutorial.data import ImageData, Split
from reinmax_tutorial.estimators import sample
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.ensemble import Ensemble
from reinmax_tutorial.experiments.optimisers import FusedOptimiser
from reinmax_tutorial.experiments.runner import device_name

HERE = Path(__file__).parent
SHAPES = ((8, 4), (10, 30), (64, 8))
BARS = {(8, 4): 3.5, (10, 30): 9, (64, 8): 54}
CHEAP_BAR = 1.9
COMPARED = ("ours", "plain loop", "plain loop: loading", "ratio")
COLUMNS = ("categories", "latents", "estimator", "what", "value")


def jacobian(p):
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


class Dense(torch.autograd.Function):
    """ReinMax or ReinMax-Rao, every Jacobian built."""

    @staticmethod
    def forward(ctx, logits, inner_samples):
        one_hot = F.one_hot(
            torch.distributions.Categorical(logits=logits).sample(), logits.shape[-1]
        ).float()
        ctx.save_for_backward(logits, one_hot)
        ctx.inner_samples = inner_samples
        return one_hot

    @staticmethod
    def backward(ctx, g):
        logits, one_hot = ctx.saved_tensors
        pi = logits.softmax(-1)
        midpoint = (pi + one_hot) / 2
        if ctx.inner_samples:
            x = conditional_gumbel(
                (midpoint + 1e-20).log(), one_hot, num_samples=ctx.inner_samples
            )
            first = jacobian(x.softmax(-1)).mean(0)
        else:
            first = jacobian(midpoint)
        total = 2 * first - 0.5 * jacobian(pi)
        return (total @ g.unsqueeze(-1)).squeeze(-1), None


def made_up_images():
    """Random bytes in the shape of MNIST."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (60_000, 784), generator=g, dtype=torch.uint8)
    split = Split(pixels, torch.zeros(60_000, dtype=torch.int64), 255)
    return ImageData("mnist", split, split, split)


class Pictures(Dataset):
    """28 x 28 bytes -> a PIL picture -> a float tensor, at every access."""

    def __init__(self, pixels):
        self.pixels = pixels.reshape(-1, 28, 28).numpy()

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        picture = Image.fromarray(self.pixels[index], mode="L")
        return torch.from_numpy(np.array(picture)).unsqueeze(0).float().div(255)


class PlainLoop:
    """The loop that one writes first."""

    def __init__(self, pixels, categories, latents, inner_samples):
        self.shape, self.inner_samples = (latents, categories), inner_samples
        code = categories * latents
        self.encoder = nn.Sequential(
            nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(),
            nn.Linear(256, code),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.Linear(code, 256), nn.ReLU(), nn.Linear(256, 512), nn.ReLU(),
            nn.Linear(512, 784), nn.Sigmoid(),
        )  # fmt: skip
        parameters = [*self.encoder.parameters(), *self.decoder.parameters()]
        self.optimiser = torch.optim.RAdam(parameters, lr=5e-4)
        self.loader = DataLoader(Pictures(pixels), batch_size=100, shuffle=True)
        self.batches = iter(self.loader)
        self.losses = []

    def next_images(self):
        return next(self.batches).flatten(1)

    def step(self):
        x = self.next_images()
        logits = self.encoder(x).reshape(-1, *self.shape)
        z = Dense.apply(logits, self.inner_samples)
        y = self.decoder(z.flatten(1))
        reconstruction = F.binary_cross_entropy(y, x, reduction="sum")
        pi = logits.softmax(-1)
        kl = (pi * (pi * self.shape[1] + 1e-20).log()).sum()
        loss = (reconstruction + kl) / len(x)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.losses.append(loss.item())


def ours(data, categories, latents, estimator):
    config = TrainConfig(
        estimator=estimator,
        num_categories=categories,
        num_latents=latents,
        optimizer="radam",
    )
    ensemble = Ensemble([config], data)
    ensemble.begin_epoch(1)
    return ensemble


def timed(action, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return times


def serve_plain_loop(pipe, shape, inner_samples):
    """In a process of its own: n -> times of n steps, -n -> times of n loadings."""
    plain = PlainLoop(made_up_images().train.pixels, *shape, inner_samples)
    while (number := pipe.recv()) != 0:
        plain.step()  # wake the threads up
        pipe.send(timed(plain.step if number > 0 else plain.next_images, abs(number)))


def compare(data, shape, estimator, rounds, steps):
    """In turns: medians of our step, the plain one and its loading (ms); the ratio.

    Each side lives in its own process, so that neither has the other's memory to
    clean up. The ratio is the median over rounds of one round's: the speed of a shared
    machine drifts, and both sides of a round drift together.
    """
    inner = 100 if estimator == "reinmax_rao" else 0
    plain_steps = 1 if shape[0] * inner > 2000 else steps
    context = multiprocessing.get_context("spawn")
    pipe, far_end = context.Pipe()
    other = context.Process(target=serve_plain_loop, args=(far_end, shape, inner))
    other.start()

    def plain(number):
        pipe.send(number)
        return pipe.recv()

    ensemble = ours(data, *shape, estimator)
    timed(ensemble.train_step, 7)  # past the first steps of RAdam
    plain(plain_steps)
    times = []
    for _ in range(rounds):
        ensemble.train_step()  # wake the threads up
        blocks = (
            timed(ensemble.train_step, steps),
            plain(plain_steps),
            plain(-steps),
        )
        times.append([statistics.median(block) for block in blocks])
    pipe.send(0)
    other.join()
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    return [*medians, statistics.median(slow / fast for fast, slow, _ in times)]


def parts(data, shape, estimator, repeats):
    """Medians of the parts of our step, each timed alone, in ms."""
    ensemble = ours(data, *shape, estimator)
    timed(ensemble.train_step, 7)
    weights = [
        layer.weight.detach()
        for layer in (*ensemble.vae.encoder, *ensemble.vae.decoder)
    ]
    inputs = [torch.rand(1, 100, w.shape[1]) for w in weights]
    outputs = [torch.rand(1, 100, w.shape[2]) for w in weights]

    def products():
        for i, (w, x, y) in enumerate(zip(weights, inputs, outputs, strict=True)):
            x @ w
            x.mT @ y
            if i:  # images need no gradient
                y @ w.mT

    parameters = [nn.Parameter(p.detach().clone()) for p in ensemble.vae.parameters()]
    for p in parameters:
        p.grad = torch.rand_like(p)
    optimiser = FusedOptimiser(parameters, ["radam"], [5e-4])
    logits = torch.randn(1, 100, shape[1], shape[0], requires_grad=True)
    cotangent = torch.randn_like(logits)

    def estimate():
        noise = CounterGenerator(torch.tensor([1]))
        z = sample(logits, estimator, generator=noise, validate=False)
        torch.autograd.grad(z, logits, cotangent)

    actions = {
        "step": ensemble.train_step,
        "matrix products": products,
        "optimiser": optimiser.step,
        "estimator": estimate,
        "images": ensemble.next_batch,
    }
    times = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            times[name] += timed(action, 3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(rounds, steps):
    """All rows of the table."""
    data, rows = made_up_images(), []
    for shape in SHAPES:
        for estimator in ("reinmax", "reinmax_rao"):
            times = compare(data, shape, estimator, rounds, steps)
            for name, value in zip(COMPARED, times, strict=True):
                rows.append((*shape, estimator, name, value))
            for name, value in parts(data, shape, estimator, rounds).items():
                rows.append((*shape, estimator, f"part: {name}", value))
            mine, theirs, *_ = times
            print(f"{shape} {estimator}: {mine:.1f} ms, plain {theirs:.1f} ms")
    return rows


def tables(rows):
    """Markdown tables from the rows of the CSV."""
    values = {(int(c), int(latents), e, w): float(v) for c, latents, e, w, v in rows}
    lines = [
        "| CxL | estimator | plain loop, ms | of it loading, ms | ours, ms | ratio "
        "| prototype's ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    settings = list(dict.fromkeys(key[:3] for key in values))
    for C, L, estimator in settings:
        mine, plain, loading, ratio = (
            values[C, L, estimator, name] for name in COMPARED
        )
        bar = BARS[C, L] if estimator == "reinmax_rao" else CHEAP_BAR
        lines.append(
            f"| {C}x{L} | {estimator} | {plain:.1f} | {loading:.1f} | {mine:.1f} "
            f"| {ratio:.1f} | {bar:g} |"
        )
    names = ("matrix products", "optimiser", "estimator", "images")
    lines += [
        "",
        f"| CxL | estimator | step, ms | {' | '.join(names)} | rest |",
        "|---" * (len(names) + 4) + "|",
    ]
    for C, L, estimator in settings:
        step = values[C, L, estimator, "part: step"]
        shares = [values[C, L, estimator, f"part: {name}"] / step for name in names]
        shares.append(1 - sum(shares))
        cells = " | ".join(f"{100 * share:.0f} %" for share in shares)
        lines.append(f"| {C}x{L} | {estimator} | {step:.1f} | {cells} |")
    return "\n".join(lines)


def write(rows, note):
    """Store the CSV, and put its tables into the README."""
    with open(HERE / "step_time.csv", "w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([(*row[:4], f"{row[4]:.3f}") for row in rows])
    readme = HERE / "README.md"
    text = readme.read_text()
    begin, end = "<!-- step_time: begin -->", "<!-- step_time: end -->"
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    readme.write_text(f"{head}{begin}\n\n{note}\n\n{tables(rows)}\n\n{end}{tail}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--steps", type=int, default=5, help="steps in each round")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds, arguments.steps)
    print(tables(rows))
    if arguments.write:
        write(
            rows,
            f"Measured on {device_name('cpu')}, {torch.get_num_threads()} thread(s), "
            f"torch {torch.__version__}; B = 100, K = 100, float32, RAdam.",
        )


if __name__ == "__main__":
    main()
