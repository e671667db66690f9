"""What an estimator says of itself: options, promises, cost, source."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reinmax_tutorial.categorical import Draw, Generator

COUPLINGS = ("conditional", "forward", "released")
"""The three choices of S in ReinMax-CV."""


def is_number(value: Any) -> bool:
    """A finite real number, not a bool."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_positive(value: Any) -> bool:
    """A finite number above 0."""
    return is_number(value) and value > 0


def is_count(value: Any) -> bool:
    """An integer of at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def is_coupling(value: Any) -> bool:
    """One of the three couplings of ReinMax-CV."""
    return isinstance(value, str) and value in COUPLINGS


def is_strength(value: Any) -> bool:
    """A number, or a tensor (which learns if it requires grad)."""
    return isinstance(value, Tensor) or is_number(value)


def is_node_weight(value: Any) -> bool:
    """A number other than 1, where the second node would be at infinity."""
    return is_number(value) and value != 1


class Option(NamedTuple):
    """One option: its symbol, what is allowed in words, and the test for it."""

    symbol: str
    allowed: str
    accepts: Callable[[Any], bool]


OPTIONS = {
    "temperature": Option("τ", "a finite number > 0", is_positive),
    "inner_samples": Option("K", "an integer >= 1", is_count),
    "gap": Option("gap", "a finite number > 0", is_positive),
    "eta": Option("η", "a finite number (a tensor for rebar)", is_strength),
    "coupling": Option("coupling", f"one of {', '.join(COUPLINGS)}", is_coupling),
    "beta": Option("β", "a finite number", is_number),
    "node_weight": Option("β", "a finite number other than 1", is_node_weight),
    "limit": Option("limit", "an integer >= 1", is_count),
}
"""Every option of every estimator; a record names the ones it has."""


class Promise(NamedTuple):
    """How exact the mean gradient is at some options (the defaults elsewhere).

    Attributes:
        exact: a polynomial degree in each latent; "unbiased", exact for every f; or
            "none", biased for linear f already.
        options: the options at which this holds.
    """

    exact: int | Literal["unbiased", "none"]
    options: dict[str, Any] = {}


class Cost(NamedTuple):
    """Evaluations of f in one estimate: a label and the count at (C, L, M)."""

    label: str
    count: Callable[[int, int, int], int]


@dataclass(frozen=True)
class Estimator:
    """One row of ESTIMATORS.

    Exactly one of `formula` (pathwise: needs only the cotangent) and `objective`
    (needs values of f, or more than one evaluation) is given.

    Attributes:
        name: key in ESTIMATORS.
        label: name in tables and legends.
        family: "exact", "score function", "end points", "noise" or "quadrature".
        needs: what it asks of f: "value", "gradient" or both.
        promises: cases, tested one by one.
        cost: evaluations of f.
        source: where it comes from.
        chapter: number of the chapter that derives it.
        equation: the estimate in one line of LaTeX, for the tables of the book.
        formula: vjp(logits, draw, cotangent, **options) -> [*batch, C].
        objective: (f, logits, *, num_samples, generator, draw, **options) -> [*batch].
        uses_gumbel: reads draw.gumbel.
        random: draws noise of its own; the formula takes `generator`.
        fewest_samples: smallest M.
        most_samples: largest M, None for no limit.
        fixed_draws: independent draws of D in one estimate, where that is not M.
        renamed: option name to the entry of OPTIONS that checks it, where they differ.
        options: option names and their defaults, read from the signature.
    """

    name: str
    label: str
    family: str
    needs: str
    promises: tuple[Promise, ...]
    cost: Cost
    source: str
    chapter: int
    equation: str
    formula: Callable[..., Tensor] | None = None
    objective: Callable[..., Tensor] | None = None
    uses_gumbel: bool = False
    random: bool = False
    fewest_samples: int = 1
    most_samples: int | None = None
    fixed_draws: int | None = None
    renamed: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(init=False)

    def __post_init__(self):
        signature = inspect.signature(self.formula or self.objective)
        defaults = {
            name: parameter.default
            for name, parameter in signature.parameters.items()
            if name in OPTIONS
        }
        object.__setattr__(self, "options", defaults)

    @property
    def takes_baseline(self) -> bool:
        """Whether `baseline=` is accepted: it adds -κu and needs a single draw of D."""
        if self.formula is not None:
            return True
        return "baseline" in inspect.signature(self.objective).parameters

    def check_options(self, options: dict[str, Any]) -> None:
        """Refuse an unknown option or a value out of range (ValueError)."""
        known = self.options
        for name, value in options.items():
            if name not in known:
                raise ValueError(
                    f"{self.name} has no option {name!r}; it has: "
                    f"{', '.join(known) or 'none'}"
                )
            option = OPTIONS[self.renamed.get(name, name)]
            if not option.accepts(value):
                raise ValueError(f"{name} must be {option.allowed}, got {value!r}")

    def num_draws(self, num_samples: int) -> int:
        """Independent draws of D in one estimate: what `draw=` carries."""
        return num_samples if self.fixed_draws is None else self.fixed_draws

    def evaluations(self, num_categories: int, num_latents: int, num_samples: int):
        """Evaluations of f in one estimate."""
        return self.cost.count(num_categories, num_latents, num_samples)

    @property
    def vjp(self) -> Callable[..., Tensor] | None:
        """The estimate as a function of (logits, draw, cotangent), or None.

        Called as vjp(logits, draw, cotangent, *, baseline=None, generator=None,
        validate=True, **options); every tensor is [*batch, C], and so is the result.
        A baseline κ, broadcastable to [*batch, 1], turns r into r - κ(D - π). Half
        precision is computed in float32 and cast back.
        """
        return None if self.formula is None else self._estimate

    def _estimate(
        self,
        logits: Tensor,
        draw: Draw,
        cotangent: Tensor,
        *,
        baseline: Tensor | float | None = None,
        generator: Generator = None,
        validate: bool = True,
        **options: Any,
    ) -> Tensor:
        self.check_options(options)
        check_logits(logits, validate=validate)
        check_same_shape("cotangent", cotangent, logits)
        check_draw(draw, logits, validate=False)  # formulas may be asked at soft D
        noise = {"generator": generator} if self.random else {}
        working = promoted(logits)
        draw = Draw(*(None if x is None else x.to(working.dtype) for x in draw))
        estimate = self.formula(
            working, draw, cotangent.to(working.dtype), **noise, **options
        )
        if baseline is not None:
            estimate = estimate - baseline * (draw.one_hot - working.softmax(-1))
        return estimate.to(logits.dtype)


def promoted(x: Tensor) -> Tensor:
    """Half precision as float32; everything else as it is."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def may_look(x: Tensor) -> bool:
    """Whether the values of x can be inspected: not compiled, mapped or captured."""
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(
        x
    ):
        return False
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def check_logits(logits: Tensor, *, validate: bool = True) -> None:
    """Refuse what is not a batch of logits (ValueError)."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        kind = logits.dtype if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"logits must be a floating-point tensor, got {kind}")
    if logits.ndim < 1 or logits.shape[-1] < 2:
        raise ValueError(
            f"logits need at least 2 categories on their last axis, got shape "
            f"{tuple(logits.shape)}"
        )
    if validate and logits.numel() and may_look(logits):
        top = logits.detach().amax(-1)  # NaN if any is, ±inf if no category is possible
        if not top.isfinite().all():
            bad = top[~top.isfinite()][0].item()
            raise ValueError(
                "logits must not hold NaN or +inf, nor a row with every category "
                f"masked (-inf); got a row whose largest logit is {bad}"
            )


def check_same_shape(what: str, x: Tensor, logits: Tensor) -> None:
    """Refuse a tensor whose shape is not that of the logits (ValueError)."""
    if x.shape != logits.shape:
        raise ValueError(
            f"{what} must have the shape of the logits {tuple(logits.shape)}, got "
            f"{tuple(x.shape)}"
        )


def check_draw(draw: Draw, logits: Tensor, *, validate: bool = True) -> None:
    """Refuse a draw that is not one one-hot vector per row of logits (ValueError)."""
    check_same_shape("draw.one_hot", draw.one_hot, logits)
    if draw.gumbel is not None:
        check_same_shape("draw.gumbel", draw.gumbel, logits)
    if validate and logits.numel() and may_look(draw.one_hot) and may_look(logits):
        one_hot = draw.one_hot.detach()
        if not ((one_hot.amax(-1) == 1) & (one_hot.abs().sum(-1) == 1)).all():
            raise ValueError("draw.one_hot must hold exactly one 1 in each row, else 0")
        if ((logits.detach() == -math.inf) & (one_hot > 0.5)).any():
            raise ValueError("draw.one_hot chooses a category of probability 0")
