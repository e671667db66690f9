"""Adam and RAdam over stacked parameters, each member with its own learning rate.

On a CPU both run as one fused pass over memory: RAdam is Adam with another step size
and another eps, so torch's fused Adam serves for both. On a GPU one elementwise
function is compiled; all it needs lives on the device, so that it can be captured in
a CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
RHO_INFINITY = 2 / (1 - BETA2) - 1


def rectification(step: int) -> float | None:
    """RAdam's factor on the step size; None while the variance is unknown.

    Source: Liu et al. (2020), On the variance of the adaptive learning rate.
    """
    decayed = BETA2**step
    rho = RHO_INFINITY - 2 * step * decayed / (1 - decayed)
    if rho <= 5:
        return None
    top = (rho - 4) * (rho - 2) * RHO_INFINITY
    return math.sqrt(top / ((RHO_INFINITY - 4) * (RHO_INFINITY - 2) * rho))


def member_slices(values: Sequence) -> list[tuple[int, int]]:
    """Runs of equal neighbours, as (start, stop)."""
    cuts = [i for i in range(1, len(values)) if values[i] != values[i - 1]]
    return list(zip([0, *cuts], [*cuts, len(values)], strict=True))


class FusedOptimiser:
    """torch.optim.Adam(fused=True) over slices of stacked parameters, on a CPU.

    Args:
        parameters: stacked parameters, [M, ...].
        kinds: "adam" or "radam", one per member.
        learning_rates: one per member; equal (kind, rate) should be neighbours.
        gradient_scale: how many times the gradient each .grad is.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        kinds: Sequence[str],
        learning_rates: Sequence[float],
        *,
        gradient_scale: float = 1.0,
    ):
        self.parameters = list(parameters)
        self.settings = list(zip(kinds, learning_rates, strict=True))
        self.slices = member_slices(self.settings)
        # slices share the memory of the stacked parameters, and of their gradients
        groups = []
        for start, stop in self.slices:
            kind, rate = self.settings[start]
            params = [nn.Parameter(p.detach()[start:stop]) for p in self.parameters]
            groups.append({"params": params, "lr": rate, "kind": kind, "rate": rate})
        # m and √v grow with the gradients; with eps grown too, m/(√v + eps) stays
        self.scale, self.eps = gradient_scale, EPS * gradient_scale
        self.adam = torch.optim.Adam(
            groups, betas=(BETA1, BETA2), eps=self.eps, fused=True
        )
        self.count = 0

    @torch.no_grad()
    def step(self, alive: Tensor | None = None) -> None:
        """One update from the .grad of the stacked parameters; the dead stay."""
        well = alive is None or bool(alive.all())
        dead = [] if well else (~alive).nonzero().flatten().tolist()
        kept = [(p, m, p[m].clone()) for m in dead for p in self.parameters]
        self.count += 1
        factor = rectification(self.count)
        for (start, stop), group in zip(
            self.slices, self.adam.param_groups, strict=True
        ):
            for part, whole in zip(group["params"], self.parameters, strict=True):
                part.grad = whole.grad[start:stop]
            if group["kind"] == "radam":
                group["lr"] = group["rate"] * (factor or 0.0)
                group["eps"] = self.eps / math.sqrt(1 - BETA2**self.count)
        self.adam.step()
        if factor is None:
            self._plain_momentum()
        for parameter, member, before in kept:
            parameter[member] = before

    @torch.no_grad()
    def _plain_momentum(self) -> None:
        """RAdam's first steps: momentum only."""
        for group in self.adam.param_groups:
            if group["kind"] == "radam":
                size = group["rate"] / (1 - BETA1**self.count) / self.scale
                for part in group["params"]:
                    part.sub_(self.adam.state[part]["exp_avg"], alpha=size)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """Everything that a later step depends on, the parameters apart."""
        return {"adam": self.adam.state_dict(), "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state."""
        self.adam.load_state_dict(state["adam"])
        self.count = state["count"]


class DeviceOptimiser:
    """The same updates, elementwise, with every number on the device.

    A member's rate, kind and aliveness are tensors [M]; nothing depends on a value
    in host memory, so a step can be captured. Members that are not alive keep their
    parameters.

    Args:
        parameters: stacked parameters, [M, ...].
        kinds: "adam" or "radam", one per member.
        learning_rates: one per member.
        gradient_scale: how many times the gradient each .grad is.
        compiled: let torch.compile make one kernel of it.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        kinds: Sequence[str],
        learning_rates: Sequence[float],
        *,
        gradient_scale: float = 1.0,
        compiled: bool = False,
    ):
        self.parameters, self.scale = list(parameters), gradient_scale
        first = self.parameters[0]
        self.rates = torch.tensor(
            learning_rates, dtype=first.dtype, device=first.device
        )
        self.rectified = torch.tensor(
            [kind == "radam" for kind in kinds], device=first.device
        )
        self.count = torch.zeros((), dtype=torch.float64, device=first.device)
        self.means = [torch.zeros_like(p) for p in self.parameters]
        self.squares = [torch.zeros_like(p) for p in self.parameters]
        self.update = torch.compile(updated) if compiled else updated

    @torch.no_grad()
    def step(self, alive: Tensor | None = None) -> None:
        """One update from the .grad of the parameters."""
        self.count += 1
        factors = step_factors(self.count, self.rates, self.rectified, alive)
        for p, m, v in zip(self.parameters, self.means, self.squares, strict=True):
            flat = (x.flatten(1) for x in (p, p.grad, m, v))  # one rank for all
            self.update(*flat, *factors, self.scale)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict:
        """Everything that a later step depends on, the parameters apart."""
        return {"means": self.means, "squares": self.squares, "count": self.count}

    def load_state_dict(self, state: dict) -> None:
        """Continue from a saved state, in place."""
        self.count.copy_(state["count"])
        for name in ("means", "squares"):
            for mine, saved in zip(getattr(self, name), state[name], strict=True):
                mine.copy_(saved)


def step_factors(
    count: Tensor, rates: Tensor, rectified: Tensor, alive: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Per member [M, 1]: size on m/(√v + eps), eps, size on m alone."""
    decayed = BETA2**count
    root = (1 - decayed).sqrt()
    rho = RHO_INFINITY - 2 * count * decayed / (1 - decayed)
    top = (rho - 4) * (rho - 2) * RHO_INFINITY
    bottom = (RHO_INFINITY - 4) * (RHO_INFINITY - 2) * rho
    known = rho > 5
    rectify = torch.where(known, (top / bottom).clamp_min(0).sqrt(), 0.0)
    step = rates / (1 - BETA1**count)
    adaptive = step * root * torch.where(rectified, rectify, 1.0)
    eps = torch.where(rectified, EPS, EPS * root)
    plain = torch.where(rectified & ~known, step, 0.0)
    if alive is not None:
        adaptive = torch.where(alive, adaptive, torch.nan)
    return tuple(x.to(rates.dtype).reshape(-1, 1) for x in (adaptive, eps, plain))


def updated(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
    adaptive: Tensor,
    eps: Tensor,
    plain: Tensor,
    scale: float,
) -> None:
    """One elementwise step in place; a member whose size is NaN keeps its numbers."""
    alive = adaptive == adaptive
    gradient = gradient / scale
    m = mean.lerp(gradient, 1 - BETA1)
    v = torch.lerp(square, gradient * gradient, 1 - BETA2)
    moved = parameter - adaptive * m / (v.sqrt() + eps) - plain * m
    mean.copy_(torch.where(alive, m, mean))
    square.copy_(torch.where(alive, v, square))
    parameter.copy_(torch.where(alive, moved, parameter))
