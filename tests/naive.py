"""Every pathwise estimator as one would write it first: exp, divide, log(x + 1e-20).

Dense Jacobians and probabilities that go through exp of the logits: right on easy
inputs, and kept here to show what the grid of hard inputs is for.
"""

import torch


def softmax(x):
    """exp(x) / Σ exp(x), nothing subtracted."""
    e = x.exp()
    return e / e.sum(-1, keepdim=True)


def dense_jacobian(p):
    """diag(p) - p pᵀ."""
    return torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)


def times(J, g):
    """A batch of matrices times a batch of vectors."""
    return (J @ g.unsqueeze(-1)).squeeze(-1)


def smoothed(log_weights, draw, temperature, E):
    """Mean over K of J(softmax(x_k/τ))/τ with x_k given D; E is [rows, K, C]."""
    w = log_weights.exp().unsqueeze(-2)
    D = draw.one_hot.unsqueeze(-2)
    Z = w.sum(-1, keepdim=True)
    E_D = (E * D).sum(-1, keepdim=True)
    top = -(E_D / Z + 1e-20).log()
    others = -(E / w + E_D / Z + 1e-20).log()
    x = torch.where(D > 0.5, top, others)
    return dense_jacobian(softmax(x / temperature)).mean(-3) / temperature


def estimate(name, logits, draw, g, E, *, temperature=1.0):
    """The estimate at the default options but for τ; E holds the inner noise."""
    J, D, tau = dense_jacobian, draw.one_hot, temperature
    G, E = draw.gumbel.to(logits.dtype), E.to(logits.dtype)
    pi, p = softmax(logits), softmax(logits / tau)
    heun = times(2 * J((pi + D) / 2) - 0.5 * J(pi), g)
    theta_D = ((pi + D) / 2 + 1e-20).log()
    if name == "straight_through":
        return times(J(p), g) / tau
    if name == "reinmax":
        return times(2 * J((p + D) / 2) - 0.5 * J(pi), g)
    if name == "darn":
        return (D - pi) * ((D - pi) * g).sum(-1, keepdim=True)
    if name == "weighted_endpoints":
        return heun
    if name == "reinmax_rk2":
        mixed = ((p + D) / 2 * g).sum(-1, keepdim=True)
        raw = (p + D) * (g - mixed) - 0.5 * times(J(pi), g)
        return raw - raw.mean(-1, keepdim=True)
    if name == "gumbel_softmax":
        return times(J(softmax((logits + G) / tau)), g) / tau
    if name == "gapped_straight_through":
        top = logits.amax(-1, keepdim=True)
        shifted = torch.where(D > 0.5, top, torch.minimum(logits, top - 1))
        return times(J(softmax(shifted / tau)), g) / tau
    if name == "gumbel_rao":
        return times(smoothed(logits, draw, tau, E), g)
    if name == "reinmax_rao":
        return times(2 * smoothed(theta_D, draw, tau, E) - 0.5 * J(pi), g)
    single = smoothed(theta_D, draw, tau, E[:, :1])  # reinmax_cv, conditional
    return heun + times(smoothed(theta_D, draw, tau, E) - single, g)
