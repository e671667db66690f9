"""The book's figures: one style, one hue per idea, functions from tables to axes.

Importing this module changes nothing; `use_style()` does, when called.  The four
plotting functions take an axes and a table, return the axes, compute no statistics
and save nothing.  Legends and colours come from the names in `ESTIMATORS`.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from reinmax_tutorial.estimators import ESTIMATORS

# Okabe and Ito's palette: eight hues that stay distinct for colour-blind readers.
BLACK = "#000000"
ORANGE = "#E69F00"
SKY = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"

# One hue per idea, one line style per variant of it.
STYLES = {
    "exact": (BLACK, "-"),
    # the straight-through heuristic and its cousins at one end of the segment
    "straight_through": (VERMILION, "-"),
    "darn": (VERMILION, "--"),
    "weighted_endpoints": (VERMILION, ":"),
    # ReinMax and what is built on it
    "reinmax": (BLUE, "-"),
    "reinmax_rao": (BLUE, "--"),
    "reinmax_cv": (BLUE, ":"),
    "paired_reinmax": (BLUE, "-."),
    # other quadrature rules
    "runge_kutta": (SKY, "-"),
    "reinmax_rk2": (SKY, "--"),
    # relaxations
    "gumbel_softmax": (ORANGE, "-"),
    "gumbel_rao": (ORANGE, "--"),
    "gapped_straight_through": (ORANGE, ":"),
    # score functions
    "reinforce": (GREEN, "-"),
    "rloo": (GREEN, "--"),
    "rebar": (GREEN, ":"),
    "flip": (GREEN, "-."),
    # summing one latent out
    "local_expectation": (PURPLE, "-"),
}

FIGURE_SIZE = (6.0, 3.4)  # inches
DIRECT_LABELS = 5  # at most this many lines are labelled beside them, not in a legend

_PARAMETERS = {
    "figure.figsize": FIGURE_SIZE,
    "figure.dpi": 120,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.dpi": 120,
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": "medium",
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "lines.linewidth": 1.8,
    "font.size": 10.0,
    "image.cmap": "cividis",
}


def use_style() -> None:
    """Set the book's figure style: 6 x 3.4 in, 120 dpi, white face, Okabe-Ito hues."""
    plt.rcParams.update(_PARAMETERS)
    hues = [BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE, BLACK]
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=hues)


def line_style(name: str) -> dict[str, str]:
    """Colour and line style of an estimator, as keyword arguments of `ax.plot`.

    Args:
        name: A key of `ESTIMATORS`.

    Returns:
        A dictionary with `color` and `linestyle`.

    Raises:
        ValueError: If the name has no style.
    """
    if name not in STYLES:
        raise ValueError(f"no line style for {name!r}; known: {', '.join(STYLES)}")
    color, linestyle = STYLES[name]
    return {"color": color, "linestyle": linestyle}


def plot_bias_variance(ax: Axes, table: pd.DataFrame) -> Axes:
    """One marker for each estimator: its bias across, its variance upwards.

    Rows of one estimator (several temperatures, say) are joined by its line in the
    order of the table.  Five estimators or fewer are labelled beside their marker,
    more get a legend.

    Args:
        ax: The axes to draw on.
        table: Columns `estimator`, `bias` and `variance`, one row per setting.

    Returns:
        `ax`, with a logarithmic variance axis.
    """
    names = list(table["estimator"].unique())
    for name in names:
        rows = table[table["estimator"] == name]
        style = line_style(name)
        ax.plot(rows["bias"], rows["variance"], marker="o", label=_label(name), **style)
        if len(names) <= DIRECT_LABELS:
            end = (rows["bias"].iloc[-1], rows["variance"].iloc[-1])
            _direct_label(ax, name, end)
    ax.set(xlabel="bias (norm)", ylabel="total variance", yscale="log")
    ax.margins(x=0.15, y=0.15)
    if len(names) > DIRECT_LABELS:
        ax.legend()
    return ax


def plot_against(
    ax: Axes, table: pd.DataFrame, x: str, y: str, *, error: str | None = None
) -> Axes:
    """One line for each estimator: a quantity against temperature, beta, K or a step.

    Args:
        ax: The axes to draw on.
        table: Columns `estimator`, `x` and `y`, one row per estimator and abscissa.
        x: The column across.
        y: The column upwards.
        error: A column with the half-width of the band around each line; say in the
            caption what it means.

    Returns:
        `ax`, labelled with the columns' names.
    """
    names = list(table["estimator"].unique())
    for name in names:
        rows = table[table["estimator"] == name].sort_values(x)
        style = line_style(name)
        ax.plot(rows[x], rows[y], label=_label(name), **style)
        if error is not None:
            low, high = rows[y] - rows[error], rows[y] + rows[error]
            ax.fill_between(rows[x], low, high, color=style["color"], alpha=0.2, lw=0)
        if len(names) <= DIRECT_LABELS:
            _direct_label(ax, name, (rows[x].iloc[-1], rows[y].iloc[-1]))
    ax.set(xlabel=x.replace("_", " "), ylabel=y.replace("_", " "))
    if len(names) > DIRECT_LABELS:
        ax.legend()
    return ax


def plot_learning_curves(ax: Axes, table: pd.DataFrame) -> Axes:
    """One line for each estimator: the negative ELBO during training.

    Args:
        ax: The axes to draw on.
        table: Columns `estimator`, `step` and `value` (nats per image), one row per
            estimator and step; `low` and `high`, where present, are drawn as a band.

    Returns:
        `ax`, with steps across and nats upwards.
    """
    names = list(table["estimator"].unique())
    for name in names:
        rows = table[table["estimator"] == name].sort_values("step")
        style = line_style(name)
        ax.plot(rows["step"], rows["value"], label=_label(name), **style)
        if {"low", "high"} <= set(rows.columns):
            color = style["color"]
            ax.fill_between(
                rows["step"], rows["low"], rows["high"], color=color, alpha=0.2, lw=0
            )
    ax.set(xlabel="step", ylabel="negative ELBO (nats per image)")
    ax.legend()
    return ax


def plot_matrix(ax: Axes, matrix: torch.Tensor) -> Axes:
    """A small matrix, such as a C x C Jacobian: hue for the sign, depth for the size.

    Args:
        ax: The axes to draw on.
        matrix: `[rows, columns]`, at most 12 on a side for the numbers to be legible.

    Returns:
        `ax`, with every entry printed and the colours symmetric about zero.
    """
    values = matrix.detach().cpu().double().numpy()
    bound = max(abs(values).max(), 1e-12)
    ax.imshow(values, cmap="PuOr", vmin=-1.6 * bound, vmax=1.6 * bound)
    for row, column in np.ndindex(*values.shape):
        text = f"{values[row, column]:.2f}"
        ax.text(column, row, text, ha="center", va="center", fontsize="small")
    ax.set_xticks(range(values.shape[1]))
    ax.set_yticks(range(values.shape[0]))
    ax.grid(False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def _label(name: str) -> str:
    """The estimator's name for readers, from its record."""
    return ESTIMATORS[name].label


def _direct_label(ax: Axes, name: str, point: tuple[float, float]) -> None:
    """Write the estimator's name beside a point of its line, in its colour."""
    color = line_style(name)["color"]
    ax.annotate(
        _label(name),
        point,
        xytext=(5, 3),
        textcoords="offset points",
        color=color,
        fontsize="small",
        annotation_clip=False,
    )
