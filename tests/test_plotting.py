"""The figures: importing changes nothing, every estimator can be drawn."""

import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

import reinmax_tutorial as rt
from reinmax_tutorial import plotting

matplotlib.use("agg")


@pytest.fixture
def ax():
    with plt.rc_context():
        plotting.use_style()
        fig, ax = plt.subplots()
        yield ax
        plt.close(fig)


def test_importing_changes_no_parameter():
    code = (
        "import matplotlib as m; before = dict(m.rcParams)\n"
        "import reinmax_tutorial.plotting\n"
        "assert before == dict(m.rcParams)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


def test_style_is_the_declared_one(ax):
    assert tuple(ax.figure.get_size_inches()) == (6.0, 3.4)
    assert ax.figure.dpi == 120
    assert ax.figure.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_unknown_name_is_refused_by_name():
    with pytest.raises(ValueError, match="'reinmux'"):
        plotting.line_style("reinmux")


@pytest.mark.parametrize("count", [3, len(rt.ESTIMATORS)])
def test_bias_variance_names_every_estimator(ax, count):
    names = list(rt.ESTIMATORS)[:count]
    table = pd.DataFrame({"estimator": names, "bias": 0.1, "variance": 2.0})
    assert plotting.plot_bias_variance(ax, table) is ax
    ax.figure.canvas.draw()
    written = {line.get_label() for line in ax.get_lines()}
    assert written == {rt.ESTIMATORS[name].label for name in names}
    assert (ax.get_legend() is None) == (count <= 5)


def test_against_draws_the_error_band(ax):
    table = pd.DataFrame(
        {
            "estimator": ["reinmax"] * 2,
            "temperature": [2.0, 1.0],
            "bias": [0.3, 0.0],
            "std_error": [0.1, 0.1],
        }
    )
    plotting.plot_against(ax, table, "temperature", "bias", error="std_error")
    ax.figure.canvas.draw()
    assert list(ax.get_lines()[0].get_xdata()) == [1.0, 2.0]
    assert len(ax.collections) == 1


def test_learning_curves_draw_the_interval(ax):
    table = pd.DataFrame(
        {
            "estimator": ["reinmax"] * 2 + ["exact"] * 2,
            "step": [0, 1] * 2,
            "value": [3.0, 2.0, 3.0, 1.0],
        }
    )
    table["low"], table["high"] = table["value"] - 0.1, table["value"] + 0.1
    plotting.plot_learning_curves(ax, table)
    ax.figure.canvas.draw()
    assert len(ax.get_lines()) == len(ax.collections) == 2


def test_matrix_prints_every_entry(ax):
    pi = torch.tensor([0.2, 0.3, 0.5])
    plotting.plot_matrix(ax, pi.diag() - pi.outer(pi))
    ax.figure.canvas.draw()
    printed = [text.get_text() for text in ax.texts]
    assert len(printed) == 9
    assert printed[0] == "0.16"
