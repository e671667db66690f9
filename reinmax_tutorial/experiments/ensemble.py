"""Members trained as one: M models of one shape, each blind to its neighbours.

Every random number of a member is a function of its own seed and of the step: its
starting point, the order of its images, its samples and its inner noise. So a member
is the same alone and in company, and a run continued from a checkpoint is the run
that was never interrupted; there is no generator state to save.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from reinmax_tutorial.categorical import CounterGenerator, Draw, draw
from reinmax_tutorial.data import ImageData, Split, scaled
from reinmax_tutorial.estimators import ESTIMATORS, expected_loss, sample
from reinmax_tutorial.estimators.baselines import RunningConstant, ScoreNetwork
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.optimisers import (
    DeviceOptimiser,
    FusedOptimiser,
    member_slices,
    updated,
)
from reinmax_tutorial.vae import HIDDEN, VAE, kl_to_uniform

METRICS = ("negative_elbo", "reconstruction", "kl")
TRAINING, ORDER, EVALUATION, BOUND = range(4)
"""Purposes of noise: each has a stream of its own."""

BASELINE_RATE = 1e-3
"""Learning rate of a learned baseline, with Adam."""

BASELINE_MEMORY = 0.99
"""Weight of the past in the running constant baseline, per step."""

SHARED = (
    "num_categories num_latents dataset binarised protocol batch_size epochs "
    "evaluate_every bound_samples snapshot_every precision num_samples"
).split()
"""Fields that the members of one ensemble must have in common."""


def stack_key(config: TrainConfig) -> tuple:
    """Members with equal keys can be trained as one."""
    alone = "" if config.is_pathwise else config.estimator
    return (*(getattr(config, name) for name in SHARED), alone)


def member_order(config: TrainConfig) -> tuple:
    """Sorting key that puts members with one optimiser and one estimator together."""
    return (
        config.optimizer,
        config.learning_rate,
        config.estimator,
        config.baseline,
        tuple(map(str, config.options.items())),
        config.seed,
    )


def stream_keys(seeds: Tensor, purpose: int, position: Tensor | int) -> Tensor:
    """One int64 key per member for a purpose at a step; shape of `seeds`.

    Seed, purpose and position are multiplied by odd constants before they meet, and
    the sum is hashed.
    """
    # filled on the device: a copy from the host could not be captured in a graph
    where = {"dtype": torch.int64, "device": seeds.device}
    kind = torch.full((), purpose + 1, **where) * 0x2545F4914F6CDD1D
    if not isinstance(position, Tensor):
        position = torch.full((), position, **where)
    place = position * 0x369DEA0F31A53F85
    mixed = seeds * 0x1D8E4E27C47D124F + kind + place
    return CounterGenerator(mixed).spawn()


def reuse_memory() -> None:
    """Let freed memory stay in the process.

    The GNU C library gives large freed blocks back to the system, which hands them out
    again page by page, zeroed: a third of the time of a step with inner noise. Once a
    block of nearly 32 MiB was freed it keeps blocks up to that size. Elsewhere this
    does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


class Ensemble:
    """M VAEs in training.

    Args:
        configs: one per member; equal in all the fields of SHARED.
        data: the images.
        device: where to train.
        compiled: on a GPU, compile the optimiser's update.
        hidden: widths of the encoder's hidden layers.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        data: ImageData,
        *,
        device: torch.device | str = "cpu",
        compiled: bool = False,
        hidden: tuple[int, int] = HIDDEN,
    ):
        if len({stack_key(config) for config in configs}) != 1:
            raise ValueError(
                f"members of an ensemble must agree in {', '.join(SHARED)}, and "
                "estimators that need values of f train with their like"
            )
        self.configs = sorted(configs, key=member_order)
        self.config = config = self.configs[0]
        self.device = torch.device(device)
        double = config.precision == "float64"
        self.dtype = torch.float64 if double else torch.float32
        self.data = data
        self.train = data.train.to(self.device)
        if self.device.type == "cpu":
            reuse_memory()
        seeds = [member.seed for member in self.configs]
        self.seeds = torch.tensor(seeds, device=self.device)
        shape = (config.num_categories, config.num_latents)
        vae = VAE(data.train.num_pixels, *shape, seeds=seeds, hidden=hidden)
        self.vae = vae.to(self.device, self.dtype)
        self.steps_per_epoch = len(data.train) // config.batch_size
        if self.steps_per_epoch < 1:
            raise ValueError(
                f"batch_size {config.batch_size} exceeds the {len(data.train)} "
                "training images"
            )
        settings = [
            dataclasses.replace(member, seed=0, optimizer="adam", learning_rate=1.0)
            for member in self.configs
        ]
        self.groups = [
            Group(self, start, stop) for start, stop in member_slices(settings)
        ]
        self.optimiser = self._optimiser(
            list(self.vae.parameters()),
            [member.optimizer for member in self.configs],
            [member.learning_rate for member in self.configs],
            compiled,
            gradient_scale=config.batch_size,  # of a sum over images, not of a mean
        )
        learned = [group.network for group in self.groups if group.network]
        self.baseline_optimisers = [
            self._optimiser(
                list(network.parameters()),
                ["adam"] * len(network.first),
                [BASELINE_RATE] * len(network.first),
                compiled,
            )
            for network in learned
        ]
        members = len(self.configs)
        self.step = torch.zeros((), dtype=torch.int64, device=self.device)
        self.alive = torch.ones(members, dtype=torch.bool, device=self.device)
        self.failed_at = torch.full_like(self.seeds, -1)
        self.sums = torch.zeros(3, members, dtype=torch.float64, device=self.device)
        used = self.steps_per_epoch * config.batch_size
        self.order = torch.zeros(members, used, dtype=torch.int64, device=self.device)
        self.offsets = torch.arange(config.batch_size, device=self.device)
        self.keys = torch.zeros_like(self.seeds).repeat(self.steps_per_epoch, 1)

    def _optimiser(self, parameters, kinds, rates, compiled, gradient_scale=1.0):
        settings = (parameters, kinds, rates)
        if self.device.type == "cpu":
            return FusedOptimiser(*settings, gradient_scale=gradient_scale)
        return DeviceOptimiser(
            *settings, gradient_scale=gradient_scale, compiled=compiled
        )

    def without_compiling(self) -> None:
        """Take the plain form of every optimiser's update."""
        for optimiser in (self.optimiser, *self.baseline_optimisers):
            if isinstance(optimiser, DeviceOptimiser):
                optimiser.update = updated

    def forget_gradients(self) -> None:
        """Leave nothing of an unfinished step behind."""
        for optimiser in (self.optimiser, *self.baseline_optimisers):
            optimiser.zero_grad()

    def begin_epoch(self, epoch: int) -> None:
        """Shuffle, one permutation per seed and epoch (1 is the first); new keys."""
        seeds = self.seeds.cpu()
        keys = stream_keys(seeds, ORDER, epoch).tolist()
        orders = {}
        for seed, key in zip(seeds.tolist(), keys, strict=True):
            if seed not in orders:
                shuffler = torch.Generator().manual_seed(key)
                orders[seed] = torch.randperm(len(self.train), generator=shuffler)
        rows = [orders[seed] for seed in seeds.tolist()]
        self.order.copy_(torch.stack(rows)[:, : self.order.shape[1]])
        first = (epoch - 1) * self.steps_per_epoch
        steps = torch.arange(first, first + self.steps_per_epoch).unsqueeze(1)
        self.keys.copy_(stream_keys(seeds, TRAINING, steps))
        self.sums.zero_()

    def next_batch(self) -> tuple[Tensor, Tensor]:
        """For this step: images, [M, B, pixels] in [0, 1], and keys of noise, [M]."""
        within = self.step % self.steps_per_epoch
        columns = within * self.config.batch_size + self.offsets
        index = self.order.index_select(1, columns)
        pixels = self.train.pixels.index_select(0, index.flatten())
        images = scaled(pixels, self.train.levels, self.dtype)
        keys = self.keys.index_select(0, within.reshape(1)).squeeze(0)
        return images.reshape(*index.shape, -1), keys

    def train_step(self) -> None:
        """One update of every member; nothing is read back from the device."""
        images, keys = self.next_batch()
        logits, features = self.vae.encode(images)
        if self.config.is_pathwise:
            codes = [group.codes(logits, features, keys) for group in self.groups]
            codes = codes[0] if len(codes) == 1 else torch.cat(codes)
            reconstruction = self.vae.reconstruction(codes, images)
        else:
            reconstruction = self.groups[0].lifted(logits, images, keys)
        kl = kl_to_uniform(logits)
        loss = reconstruction + kl
        loss.sum().backward()
        with torch.no_grad():
            parts = torch.stack([loss, reconstruction, kl]).detach()
            self.sums += parts.sum(-1)
            self._check(loss)
            for group in self.groups:
                group.learn()
            for optimiser in (self.optimiser, *self.baseline_optimisers):
                alive = self.alive if optimiser is self.optimiser else None
                optimiser.step(alive)
                optimiser.zero_grad()
            self.step += 1

    def _check(self, loss: Tensor) -> None:
        """Flag the members whose loss or gradient is not finite."""
        layers = (*self.vae.encoder, *self.vae.decoder)
        sums = [loss.sum(1), *(layer.bias.grad.sum((1, 2)) for layer in layers)]
        finite = torch.stack(sums).isfinite().all(0)
        newly = self.alive & ~finite
        self.failed_at.copy_(torch.where(newly, self.step, self.failed_at))
        self.alive &= finite

    def training_metrics(self) -> dict[str, Tensor]:
        """Means over the epoch, in nats per image, [M] each; NaN for the failed."""
        images = self.steps_per_epoch * self.config.batch_size
        means = torch.where(self.alive, self.sums / images, torch.nan).cpu()
        return dict(zip(METRICS, means, strict=True))

    @torch.no_grad()
    def held_out_metrics(
        self, split: Split, *, epoch: int, which: int, bound_samples: int = 0
    ) -> dict[str, Tensor]:
        """One pass over held-out images, one hard sample each, [M] each.

        Args:
            split: the images.
            epoch: selects the noise.
            which: number of the split; selects the noise.
            bound_samples: samples of the importance-weighted bound; 0 leaves it out.
        """
        position = 8 * epoch + which
        noise = CounterGenerator(stream_keys(self.seeds, EVALUATION, position))
        inner = CounterGenerator(stream_keys(self.seeds, BOUND, position))
        members = len(self.configs)
        sums = torch.zeros(4, members, dtype=torch.float64, device=self.device)
        step = 500 if not bound_samples else max(1, 20_000 // (bound_samples * members))
        for pixels in split.pixels.split(step):
            pixels = pixels.to(self.device)
            images = scaled(pixels, split.levels, self.dtype)
            images = images.expand(members, *images.shape)
            parts = list(self.vae.negative_elbo(images, generator=noise))
            if bound_samples:
                parts.append(
                    self.vae.importance_weighted_bound(
                        images, num_samples=bound_samples, generator=inner
                    )
                )
            for total, part in zip(sums, parts, strict=False):
                total += part.sum(-1)
        names = (*METRICS, "bound") if bound_samples else METRICS
        means = torch.where(self.alive, sums / len(split), torch.nan).cpu()
        return dict(zip(names, means, strict=False))

    def state_dict(self) -> dict:
        """All that the rest of the run depends on, apart from the settings."""
        return {
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "baselines": [group.state_dict() for group in self.groups],
            "baseline_optimisers": [o.state_dict() for o in self.baseline_optimisers],
            "step": self.step,
            "alive": self.alive,
            "failed_at": self.failed_at,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state, in place."""
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])
        for group, saved in zip(self.groups, state["baselines"], strict=True):
            group.load_state_dict(saved)
        for optimiser, saved in zip(
            self.baseline_optimisers, state["baseline_optimisers"], strict=True
        ):
            optimiser.load_state_dict(saved)
        for name in ("step", "alive", "failed_at"):
            getattr(self, name).copy_(state[name])


class Group:
    """Neighbouring members with one estimator, its options and kind of baseline.

    Args:
        ensemble: whose members they are.
        start: the first member.
        stop: one past the last.
    """

    def __init__(self, ensemble: Ensemble, start: int, stop: int):
        self.ensemble, self.members = ensemble, slice(start, stop)
        config = ensemble.configs[start]
        self.estimator = ESTIMATORS[config.estimator]
        self.options = config.options
        self.num_samples = config.num_samples
        self.network = self.constant = None
        where = (ensemble.device, ensemble.dtype)
        if config.baseline == "learned":
            seeds = [member.seed for member in ensemble.configs[self.members]]
            # not the seeds of the model: the same numbers would start both
            starts = [torch.Generator().manual_seed(seed + 2**40) for seed in seeds]
            self.network = ScoreNetwork(
                config.num_latents,
                config.num_categories,
                ensemble.vae.encoder[-1].weight.shape[1],
                members=stop - start,
                generator=starts,
            ).to(*where)
        elif config.baseline == "constant":
            shape = (stop - start, 1, 1, 1)
            constant = RunningConstant(shape, decay=BASELINE_MEMORY)
            self.constant = constant.to(*where)

    def codes(self, logits: Tensor, features: Tensor, keys: Tensor) -> Tensor:
        """Hard samples that carry the estimator's gradient, [m, B, L, C]."""
        logits, features = logits[self.members], features[self.members]
        baseline = self.network or self.constant
        self.logits = logits.detach()
        return sample(
            logits,
            self.estimator.name,
            generator=CounterGenerator(keys[self.members]),
            baseline=baseline(logits, features) if baseline else None,
            validate=False,
            **self.options,
        )

    def lifted(self, logits: Tensor, images: Tensor, keys: Tensor) -> Tensor:
        """The reconstruction with the gradient of an estimator that needs values."""
        generator, M = CounterGenerator(keys), self.num_samples
        # members lead while drawing, draws lead afterwards
        wide = logits.detach().unsqueeze(1).expand(-1, M, -1, -1, -1)
        one_hot = draw(wide, generator=generator).one_hot.transpose(0, 1)

        def f(codes: Tensor) -> Tensor:
            return self.ensemble.vae.reconstruction(codes, images)

        return expected_loss(
            f,
            logits,
            self.estimator.name,
            num_samples=M,
            generator=generator,
            draw=Draw(one_hot),
            validate=False,
            **self.options,
        )

    def learn(self) -> None:
        """After the backward pass: fold this draw into the running constant."""
        if self.constant:
            self.constant.update(self.logits)

    def state_dict(self) -> dict:
        """The baseline's state."""
        baseline = self.network or self.constant
        return baseline.state_dict() if baseline else {}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state."""
        if state:
            (self.network or self.constant).load_state_dict(state)
