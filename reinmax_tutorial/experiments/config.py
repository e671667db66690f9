"""What a training run is: one frozen record, whose fields are the table's columns."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from reinmax_tutorial.data import NAMES, PROTOCOLS
from reinmax_tutorial.estimators import ESTIMATORS

ALLOWED = {
    "estimator": tuple(ESTIMATORS),
    "baseline": ("none", "constant", "learned"),
    "dataset": NAMES,
    "protocol": PROTOCOLS,
    "coupling": ("conditional", "forward", "released"),
    "optimizer": ("adam", "radam"),
    "precision": ("float32", "tf32", "float64"),
}

AT_LEAST = {
    "inner_samples": 1,
    "num_samples": 1,
    "num_categories": 2,
    "num_latents": 1,
    "batch_size": 1,
    "epochs": 1,
    "evaluate_every": 1,
    "bound_samples": 0,
    "snapshot_every": 0,
}

ABOVE_ZERO = ("temperature", "gap", "learning_rate")


@dataclass(frozen=True)
class TrainConfig:
    """All that decides the numbers of one training run, and nothing else.

    Options that an estimator does not have are ignored by it and stay at their
    defaults.
    """

    estimator: str = "reinmax"  # a name in ESTIMATORS
    temperature: float = 1.0  # τ > 0
    inner_samples: int = 100  # K, conditional noise draws inside one estimate
    eta: float = 1.0  # η, strength of the control variate
    coupling: str = "conditional"  # how reinmax_cv draws its single sample
    beta: float = 0.5  # β of the families of end-point rules
    gap: float = 1.0  # lead of the sampled logit, gapped_straight_through
    num_samples: int = 1  # M, draws of D per image and step
    baseline: str = "none"  # κ of the score baseline: none, constant or learned
    num_categories: int = 8  # C
    num_latents: int = 4  # L
    dataset: str = "mnist"  # digits, mnist or fashion_mnist
    binarised: bool = False  # pixels drawn once as 0 or 1; grey levels otherwise
    protocol: str = "paper"  # paper: all training images; validation: some held out
    optimizer: str = "adam"  # adam or radam, β1 = .9, β2 = .999, eps = 1e-8
    learning_rate: float = 5e-4  # constant
    batch_size: int = 100  # images per step
    epochs: int = 160  # passes over the training images
    evaluate_every: int = 20  # epochs between two rows of the table
    bound_samples: int = 0  # samples of the importance-weighted bound; 0: none
    snapshot_every: int = 0  # epochs between two saved models; 0: none
    precision: str = "float32"  # float32, tf32 (matrix products on a GPU) or float64
    seed: int = 0  # starting point, order of the images, noise

    def __post_init__(self):
        for name, allowed in ALLOWED.items():
            if (value := getattr(self, name)) not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {value!r}"
                )
        for name, least in AT_LEAST.items():
            if (value := getattr(self, name)) < least:
                raise ValueError(f"{name} must be at least {least}, got {value!r}")
        for name in ABOVE_ZERO:
            if not (value := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed must be in 0 .. 2**31 - 1, got {self.seed!r}")
        record = ESTIMATORS[self.estimator]
        most = 1 if self.is_pathwise else record.most_samples or self.num_samples
        if not record.fewest_samples <= self.num_samples <= most:
            raise ValueError(
                f"num_samples of {self.estimator} must be at least "
                f"{record.fewest_samples}{', and 1 in training' * self.is_pathwise}, "
                f"got {self.num_samples!r}"
            )
        if self.baseline != "none" and not self.is_pathwise:
            raise ValueError(
                f"baseline {self.baseline!r} is for pathwise estimators; "
                f"{self.estimator} takes 'none'"
            )

    @property
    def is_pathwise(self) -> bool:
        """Whether one sample and its cotangent suffice."""
        return ESTIMATORS[self.estimator].vjp is not None

    @property
    def options(self) -> dict[str, Any]:
        """The options that this estimator has."""
        names = ESTIMATORS[self.estimator].options
        fields = {field.name for field in dataclasses.fields(self)}
        return {name: getattr(self, name) for name in names if name in fields}

    @property
    def run_id(self) -> str:
        """Estimator and eight digits of a hash of all fields: no clock in it."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return f"{self.estimator}-{digest[:8]}"

    def evaluates(self, epoch: int) -> bool:
        """Whether the table has rows for this epoch (1 is the first)."""
        return epoch in (1, self.epochs) or epoch % self.evaluate_every == 0

    def takes_snapshot(self, epoch: int) -> bool:
        """Whether the model is saved after this epoch."""
        every = self.snapshot_every
        return every > 0 and (epoch == 1 or epoch % every == 0)


FIELDS = {field.name: field.type for field in dataclasses.fields(TrainConfig)}
"""Column names of every results table, with their types."""


def parse_setting(text: str) -> tuple[str, Any]:
    """`field=value` from the command line, as a field name and a typed value."""
    name, equals, value = text.partition("=")
    if not equals or name not in FIELDS:
        raise ValueError(
            f"expected field=value, got {text!r}; fields: {', '.join(FIELDS)}"
        )
    kind = FIELDS[name]
    if kind == "bool":
        if value not in ("true", "false"):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        return name, value == "true"
    try:
        return name, {"int": int, "float": float, "str": str}[kind](value)
    except ValueError:
        raise ValueError(f"{name} must be of type {kind}, got {value!r}") from None
