"""Gradient estimators for discrete latent variables, behind one call.

z = sample(logits, "reinmax")               a hard sample that can be differentiated
loss = expected_loss(f, logits, "rloo")     any estimator of any family
gradient = exact_gradient(f, logits)        the truth, by enumeration
"""

from reinmax_tutorial.categorical import Draw, draw
from reinmax_tutorial.distributions import Bernoulli, OneHotCategorical
from reinmax_tutorial.estimators import (
    ESTIMATORS,
    exact_gradient,
    expected_loss,
    sample,
)
from reinmax_tutorial.estimators import reinmax_and_probabilities as reinmax
from reinmax_tutorial.experiments.results import load_results
from reinmax_tutorial.measurement import measure

__all__ = [
    "ESTIMATORS",
    "Bernoulli",
    "Draw",
    "OneHotCategorical",
    "draw",
    "exact_gradient",
    "expected_loss",
    "load_results",
    "measure",
    "reinmax",
    "sample",
]
