"""The committed sweeps: named lists of training runs.

The settings of the paper's table are those stored with its released code (chapter
11 gives the source); `fair` chooses its own.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.results import SHAPE

SHAPES = ("8x4", "4x24", "8x16", "16x12", "64x8", "10x30")

# learning rate, temperature, optimiser (A Adam, R RAdam); for reinmax_cv also eta
STORED = {
    "gumbel_softmax": (
        "3e-4 .5 A", "5e-4 .3 R", "5e-4 .5 R", "7e-4 .7 R", "7e-4 .7 R", "5e-4 .5 R",
    ),
    "gumbel_rao": (
        "5e-4 .5 A", "5e-4 .3 R", "7e-4 .7 R", "5e-4 1 A", "7e-4 2 A", "5e-4 1 R",
    ),
    "gapped_straight_through": (
        "5e-4 1 A", "5e-4 .5 R", "7e-4 .5 R", "7e-4 .5 R", "7e-4 .7 R", "5e-4 .5 R",
    ),
    "straight_through": (
        "1e-3 1.3 A", "1e-3 1.5 R", "1e-3 1.5 R", "5e-4 1.5 A", "5e-4 1.5 A",
        "7e-3 1.4 R",
    ),
    "reinmax": (
        "5e-4 1.3 A", "5e-4 1.5 R", "7e-4 1.5 R", "7e-4 1.5 R", "5e-4 1.5 R",
        "5e-4 1.3 R",
    ),
    "reinmax_rao": (
        "5e-4 1 A", "5e-4 .7 R", "7e-4 1 R", "7e-4 1 R", "7e-4 1 R", "5e-4 .7 R",
    ),
    "reinmax_cv": (
        "5e-4 1 A 1.5", "5e-4 1.3 A 1.5", "5e-4 1.1 R 1.5", "5e-4 .7 R 1.5",
        "5e-4 .7 R 1.5", "5e-4 .7 R 1.0",
    ),
}  # fmt: skip


METHOD = (*SHAPE, "estimator", "temperature")
"""Fields in which runs that differ in their baseline agree."""


@dataclass(frozen=True)
class Sweep:
    """A named list of runs.

    Attributes:
        name: how it is called on the command line.
        purpose: one line.
        seeds: members per setting, unless told otherwise.
        settings: makes the runs at seed 0; a sweep with `search` is given the table
            of that sweep.
        search: name of the sweep whose table chooses the settings.
        within: fields in which two settings must agree to be compared.
        on_large: fields for data sets larger than the digits, when --data asks for
            one.
    """

    name: str
    purpose: str
    seeds: int
    settings: Callable[..., list[TrainConfig]]
    search: str | None = None
    within: tuple[str, ...] = SHAPE
    on_large: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> str:
        """How many runs, where that does not wait for another sweep."""
        return f"after {self.search}" if self.search else f"{len(self.configs())} runs"

    def configs(
        self, *, seeds: int | None = None, searched: pd.DataFrame | None = None
    ) -> list[TrainConfig]:
        """All runs, seed by seed, so that an unfinished sweep is a fair one.

        Args:
            seeds: members per setting.
            searched: the table of the search sweep, where there is one.
        """
        if seeds is not None and seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        chosen = self.settings(searched) if self.search else self.settings()
        members = range(self.seeds if seeds is None else seeds)
        return [
            dataclasses.replace(config, seed=seed)
            for seed in members
            for config in chosen
        ]


def shape_fields(shape: str) -> dict[str, int]:
    """A shape as fields: "8x4" is C = 8 categories, L = 4 latents."""
    categories, latents = shape.split("x")
    return {"num_categories": int(categories), "num_latents": int(latents)}


def stored_setting(estimator: str, shape: str) -> TrainConfig:
    """The setting stored with the released code for an estimator and a shape."""
    rate, temperature, letter, *eta = STORED[estimator][SHAPES.index(shape)].split()
    more = {"eta": float(eta[0]), "coupling": "released"} if eta else {}
    return TrainConfig(
        estimator=estimator,
        learning_rate=float(rate),
        temperature=float(temperature),
        optimizer={"A": "adam", "R": "radam"}[letter],
        **shape_fields(shape),
        **more,
    )


def paper_methods(shape: str) -> list[TrainConfig]:
    """The seven rows of the table, ReinMax at τ = 1 as the eighth."""
    rows = [stored_setting(estimator, shape) for estimator in STORED]
    rows.append(dataclasses.replace(stored_setting("reinmax", shape), temperature=1.0))
    if shape == "10x30":  # the stored rate is probably a slip of the pen: run both
        stored = stored_setting("straight_through", shape)
        rows.append(dataclasses.replace(stored, learning_rate=7e-4))
    return rows


def smoke() -> list[TrainConfig]:
    """Four estimators on the digits, two seeds, in a minute."""
    methods = ("straight_through", "reinmax", "reinmax_rao", "reinmax_cv")
    return [
        TrainConfig(
            estimator=name,
            inner_samples=20,
            dataset="digits",
            learning_rate=1e-3,
            batch_size=25,
            epochs=12,
            evaluate_every=6,
        )
        for name in methods
    ]


def short() -> list[TrainConfig]:
    """The seven stored settings of 8x4 for 20 epochs: an hour or two on a CPU."""
    return [
        dataclasses.replace(
            stored_setting(estimator, "8x4"), epochs=20, evaluate_every=2
        )
        for estimator in STORED
    ]


def paper() -> list[TrainConfig]:
    """The paper's whole table."""
    return [config for shape in SHAPES for config in paper_methods(shape)]


def paper_beta() -> list[TrainConfig]:
    """The paper's figure over β, and the same for the end-point family."""
    return [
        TrainConfig(
            estimator=estimator,
            beta=step / 20,
            epochs=50,
            evaluate_every=10,
            **shape_fields(shape),
        )
        for shape in ("8x4", "8x16", "4x24")
        for estimator in ("reinmax_rk2", "weighted_endpoints")
        for step in range(-4, 25)
    ]


def paper_checkpoints() -> list[TrainConfig]:
    """One model saved along its training, for bias and variance at each point."""
    return [TrainConfig(epochs=50, evaluate_every=5, snapshot_every=5)]


FAIR_SHAPES = ("8x4", "16x12")
FAIR_RATES = (3e-4, 5e-4, 7e-4, 1e-3)

# three values of the method's own option; rloo has none, and the same budget
FAIR_OPTIONS: dict[str, tuple[dict, ...]] = {
    "gumbel_softmax": tuple({"temperature": t} for t in (0.3, 0.5, 1.0)),
    "gumbel_rao": tuple({"temperature": t} for t in (0.3, 0.5, 1.0)),
    "gapped_straight_through": tuple({"temperature": t} for t in (0.5, 0.7, 1.0)),
    "straight_through": tuple({"temperature": t} for t in (1.0, 1.3, 1.5)),
    "reinmax": tuple({"temperature": t} for t in (1.1, 1.3, 1.5)),
    "reinmax_rao": tuple({"temperature": t} for t in (0.5, 0.7, 1.0)),
    "reinmax_cv": tuple(
        {"eta": e, "coupling": "released", "temperature": 1.0} for e in (0.5, 1.0, 1.5)
    ),
    "reinmax at τ = 1": tuple({"optimizer": o} for o in ("adam", "radam")),
    "reinmax with a learned baseline": tuple(
        {"temperature": t, "baseline": "learned"} for t in (1.0, 1.3, 1.5)
    ),
    "rloo": tuple({"num_samples": 2, "optimizer": o} for o in ("adam", "radam")),
}


def fair_search() -> list[TrainConfig]:
    """Twelve settings for each method, judged on held-out training images.

    Two methods have no option of their own: they get two optimisers and six rates
    in place of three options and four rates.
    """
    configs = []
    for shape, (method, choices) in itertools.product(
        FAIR_SHAPES, FAIR_OPTIONS.items()
    ):
        rates = FAIR_RATES if len(choices) == 3 else (*FAIR_RATES, 2e-4, 1.4e-3)
        configs += [
            TrainConfig(
                estimator=method.split()[0],
                learning_rate=rate,
                binarised=True,
                protocol="validation",
                epochs=50,
                evaluate_every=10,
                **shape_fields(shape),
                **choice,
            )
            for choice, rate in itertools.product(choices, rates)
        ]
    return configs


def fair_method(estimator: str, baseline: str, temperature: float) -> tuple[str, str]:
    """Which of the competing methods a run belongs to."""
    plain = estimator == "reinmax" and baseline == "none" and temperature == 1
    return estimator, "at τ = 1" if plain else baseline


def fair(searched: pd.DataFrame) -> list[TrainConfig]:
    """The best setting of each method, at full length and on test images."""
    last = searched["epoch"] == searched["epochs"]
    judged = searched[
        last
        & (searched["split"] == "validation")
        & (searched["metric"] == "negative_elbo")
    ]
    scores = {row["run_id"]: row["value"] for _, row in judged.iterrows()}
    best: dict[tuple, tuple[float, TrainConfig]] = {}
    for config in fair_search():
        score = scores.get(config.run_id)
        if score is None:
            raise ValueError(
                f"the table of fair_search lacks {config.run_id}; finish that sweep "
                "before fair"
            )
        method = fair_method(config.estimator, config.baseline, config.temperature)
        key = (config.num_categories, *method)
        if score == score and (key not in best or score < best[key][0]):
            best[key] = (score, config)
    return [
        dataclasses.replace(config, epochs=160, evaluate_every=20, bound_samples=100)
        for _, config in best.values()
    ]


def coupling() -> list[TrainConfig]:
    """ReinMax-CV: which coupling, how strong, how hot."""
    return [
        TrainConfig(
            estimator="reinmax_cv",
            coupling=kind,
            eta=eta,
            temperature=temperature,
            epochs=50,
            evaluate_every=10,
        )
        for kind in ("conditional", "forward", "released")
        for eta in (0.0, 0.5, 1.0, 1.5, 2.0)
        for temperature in (0.3, 0.7, 1.0)
    ]


def with_baselines(shape: str, epochs: int, every: int) -> list[TrainConfig]:
    """Four settings of a shape, each without and with two kinds of baseline."""
    methods = [
        stored_setting("straight_through", shape),
        dataclasses.replace(stored_setting("reinmax", shape), temperature=1.0),
        stored_setting("reinmax", shape),
        stored_setting("reinmax_rao", shape),
    ]
    return [
        dataclasses.replace(config, baseline=kind, epochs=epochs, evaluate_every=every)
        for config in methods
        for kind in ("none", "constant", "learned")
    ]


def baseline() -> list[TrainConfig]:
    """Score baselines under pathwise estimators, at full length."""
    shapes = ("8x4", "16x12", "64x8")
    return [config for shape in shapes for config in with_baselines(shape, 160, 20)]


def baseline_short() -> list[TrainConfig]:
    """Score baselines on 8x4 for 20 epochs: an hour or two on a CPU."""
    return with_baselines("8x4", 20, 2)


SWEEPS = {
    sweep.name: sweep
    for sweep in (
        Sweep(
            "smoke",
            "four estimators on the digits, in a minute",
            2,
            smoke,
            on_large=(("batch_size", 400), ("epochs", 2)),
        ),
        Sweep("short", "seven estimators on MNIST 8x4, 20 epochs, for CPUs", 3, short),
        Sweep(
            "baseline_short",
            "score baselines on MNIST 8x4, 20 epochs, for CPUs",
            3,
            baseline_short,
            within=METHOD,
        ),
        Sweep("paper", "the paper's table: 6 shapes, 160 epochs", 10, paper),
        Sweep("paper_beta", "the paper's figure over beta", 5, paper_beta),
        Sweep(
            "paper_checkpoints",
            "the paper's models along training, for bias and variance",
            10,
            paper_checkpoints,
        ),
        Sweep(
            "fair_search", "12 settings a method, on validation data", 1, fair_search
        ),
        Sweep(
            "fair",
            "each method at its best setting, on binarised MNIST",
            20,
            fair,
            search="fair_search",
        ),
        Sweep("coupling", "ReinMax-CV: coupling, strength, temperature", 5, coupling),
        Sweep(
            "baseline",
            "score baselines at full length",
            10,
            baseline,
            within=METHOD,
        ),
    )
}


def find_sweep(name: str) -> Sweep:
    """A sweep by name (ValueError for an unknown one)."""
    if name not in SWEEPS:
        raise ValueError(f"unknown sweep {name!r}; known: {', '.join(SWEEPS)}")
    return SWEEPS[name]
