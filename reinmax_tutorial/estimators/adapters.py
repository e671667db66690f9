"""From a formula to a gradient: the one autograd function, and the calls built on it.

`sample` makes any pathwise formula differentiable; `expected_loss` lifts any estimator
of any family to a loss whose value is f(D) and whose gradient is the estimate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reinmax_tutorial.categorical import (
    CounterGenerator,
    Draw,
    Generator,
    draw_key,
)
from reinmax_tutorial.categorical import draw as make_draw
from reinmax_tutorial.estimators.record import (
    Estimator,
    check_draw,
    check_logits,
    promoted,
)


class Estimate(torch.autograd.Function):
    """Forward: the hard sample. Backward: what the estimator's formula says.

    The noise of the backward pass is a function of `key`, drawn in the forward, so
    two backward passes over one graph agree and no generator is advanced. A baseline
    that requires grad receives the gradient of the estimate's squared norm,
    -2 ⟨u, r - κu⟩. There is no second derivative.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(logits, baseline, one_hot, gumbel, key, estimator, options):
        """The sample itself."""
        return one_hot.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the draw and the key; nothing of size K."""
        logits, baseline, one_hot, gumbel, key, estimator, options = inputs
        ctx.learns = isinstance(baseline, Tensor)
        ctx.number = None if ctx.learns else baseline
        tensors = (logits, baseline if ctx.learns else None, one_hot, gumbel, key)
        ctx.save_for_backward(*tensors)
        ctx.estimator, ctx.options = estimator, options

    @staticmethod
    def backward(ctx, cotangent):
        """The estimate in the logits, and the baseline's own gradient."""
        logits, baseline, one_hot, gumbel, key = ctx.saved_tensors
        kappa = baseline if ctx.learns else ctx.number
        with torch.no_grad(), torch.autocast(logits.device.type, enabled=False):
            estimate = ctx.estimator.vjp(
                logits,
                Draw(one_hot, gumbel),
                cotangent,
                baseline=kappa,
                generator=CounterGenerator(key),
                validate=False,
                **dict(ctx.options),
            )
            for_baseline = None
            if ctx.learns and ctx.needs_input_grad[1]:
                u = one_hot - promoted(logits).softmax(-1)
                slope = -2 * (u * estimate).sum(-1, keepdim=True)
                for_baseline = slope.sum_to_size(baseline.shape).to(baseline.dtype)
        return estimate, for_baseline, None, None, None, None, None


def sample(
    logits: Tensor,
    estimator: Estimator,
    *,
    generator: Generator = None,
    draw: Draw | None = None,
    dim: int = -1,
    mask: Tensor | None = None,
    baseline: Tensor | float | None = None,
    validate: bool = True,
    **options: Any,
) -> Tensor:
    """The hard sample of a pathwise estimator; see `reinmax_tutorial.sample`."""
    if estimator.formula is None:
        raise ValueError(
            f"{estimator.name} needs values of f and cannot act on a sample alone; use "
            f"expected_loss(f, logits, {estimator.name!r})"
        )
    estimator.check_options(options)
    logits = prepared(logits, dim, mask, validate)
    if draw is None:
        draw = make_draw(logits, generator=generator, gumbel=estimator.uses_gumbel)
    else:
        draw = Draw(*(x if x is None else x.detach().movedim(dim, -1) for x in draw))
        check_draw(draw, logits, validate=validate)
    check_baseline(baseline, logits)
    key = draw_key(generator, logits.device)
    one_hot = draw.one_hot.to(logits.dtype)
    z = Estimate.apply(
        logits, baseline, one_hot, draw.gumbel, key, estimator, tuple(options.items())
    )
    return z.movedim(-1, dim)


def prepared(logits: Tensor, dim: int, mask: Tensor | None, validate: bool) -> Tensor:
    """Logits with categories on the last axis, masked, and checked."""
    if not isinstance(logits, Tensor) or logits.ndim == 0:
        raise ValueError(f"logits must be a tensor with an axis, got {logits!r}")
    if not -logits.ndim <= dim < logits.ndim:
        raise ValueError(
            f"dim must be an axis of logits of shape {tuple(logits.shape)}, got {dim}"
        )
    if mask is not None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be of dtype torch.bool, got {mask.dtype}")
        try:
            torch.broadcast_to(mask, logits.shape)
        except RuntimeError:
            raise ValueError(
                f"mask must broadcast to the logits {tuple(logits.shape)}, got "
                f"{tuple(mask.shape)}"
            ) from None
        logits = logits.masked_fill(~mask, -torch.inf)
    logits = logits.movedim(dim, -1)
    check_logits(logits, validate=validate)
    return logits


def check_baseline(baseline: Tensor | float | None, logits: Tensor) -> None:
    """Refuse a baseline that does not broadcast to [*batch, 1] (ValueError)."""
    if not isinstance(baseline, Tensor):
        if baseline is not None and not isinstance(baseline, int | float):
            raise ValueError(f"baseline must be a number or a tensor, got {baseline!r}")
        return
    wanted = (*logits.shape[:-1], 1)
    try:
        fits = torch.broadcast_shapes(baseline.shape, wanted) == wanted
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"baseline must broadcast to {wanted}, got {tuple(baseline.shape)}"
        )


def with_gradient(value: Tensor, logits: Tensor, estimate: Tensor) -> Tensor:
    """`value`, unchanged, with `estimate` as its gradient in the logits.

    Args:
        value: [*batch].
        logits: [*batch, L, C].
        estimate: [*batch, L, C].
    """
    finite = logits.masked_fill(logits == -torch.inf, 0.0)
    carrier = estimate.detach() * (finite - finite.detach())
    return value + carrier.sum((-2, -1)).to(value.dtype)


def with_slope(value: Tensor, parameter: Any, slope: Tensor) -> Tensor:
    """`value`, unchanged, with `slope` [*batch, L, C] as the gradient in a parameter.

    A parameter that is a number, or that does not require grad, is left alone.
    """
    if not (isinstance(parameter, Tensor) and parameter.requires_grad):
        return value
    carrier = slope.detach() * (parameter - parameter.detach())
    return value + carrier.sum((-2, -1)).to(value.dtype)


def evaluated(f: Callable[[Tensor], Tensor], codes: Tensor) -> Tensor:
    """f(codes), after a check that [S, *batch, L, C] became [S, *batch]."""
    values = f(codes)
    if not isinstance(values, Tensor) or values.shape != codes.shape[:-2]:
        got = tuple(values.shape) if isinstance(values, Tensor) else type(values)
        raise ValueError(
            f"f must map codes {tuple(codes.shape)} to values "
            f"{tuple(codes.shape[:-2])}, got {got}"
        )
    return values


def many_draws(
    logits: Tensor,
    num_samples: int,
    generator: Generator,
    draw: Draw | None,
    *,
    gumbel: bool = False,
    validate: bool = True,
) -> tuple[Tensor, Draw]:
    """Logits [M, *batch, L, C] and as many draws; a given draw is only reshaped."""
    logits = logits.expand(num_samples, *logits.shape)
    if draw is None:
        return logits, make_draw(logits, generator=generator, gumbel=gumbel)
    given = [None if x is None else x.detach() for x in draw]
    if num_samples == 1 and given[0].shape == logits.shape[1:]:
        given = [None if x is None else x.unsqueeze(0) for x in given]
    draw = Draw(*given)
    check_draw(draw, logits, validate=validate)
    return logits, draw


def expected_loss(
    f: Callable[[Tensor], Tensor],
    logits: Tensor,
    estimator: Estimator,
    *,
    num_samples: int | None = None,
    generator: Generator = None,
    draw: Draw | None = None,
    baseline: Tensor | float | None = None,
    validate: bool = True,
    **options: Any,
) -> Tensor:
    """The loss of any estimator; see `reinmax_tutorial.expected_loss`."""
    estimator.check_options(options)
    check_logits(logits, validate=validate)
    if logits.ndim < 2:
        raise ValueError(
            f"logits must be [*batch, L, C], got shape {tuple(logits.shape)}"
        )
    M = estimator.fewest_samples if num_samples is None else num_samples
    check_samples(estimator, M)
    if baseline is not None and not estimator.takes_baseline:
        raise ValueError(f"{estimator.name} takes no baseline")
    check_baseline(baseline, logits)
    if estimator.objective is not None:
        if baseline is not None:
            options = {**options, "baseline": baseline}
        return estimator.objective(
            f,
            logits,
            num_samples=M,
            generator=generator,
            draw=draw,
            validate=validate,
            **options,
        )
    expanded, draw = many_draws(
        logits, M, generator, draw, gumbel=estimator.uses_gumbel, validate=validate
    )
    z = sample(
        expanded,
        estimator,
        generator=generator,
        draw=draw,
        baseline=None if baseline is None else baseline / M,  # the cotangents carry 1/M
        validate=False,
        **options,
    )
    return evaluated(f, z).mean(0)


def check_samples(estimator: Estimator, num_samples: Any) -> None:
    """Refuse a number of samples M that the estimator cannot use (ValueError)."""
    fewest, most = estimator.fewest_samples, estimator.most_samples
    is_integer = isinstance(num_samples, int) and not isinstance(num_samples, bool)
    if not is_integer or num_samples < fewest or (most and num_samples > most):
        allowed = f"an integer >= {fewest}" if most is None else f"{most}"
        raise ValueError(
            f"num_samples of {estimator.name} must be {allowed}, got {num_samples!r}"
        )
