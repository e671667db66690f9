"""Rewrite the tables of the reference pages from what they are about.

    python book/tables.py

notation.md and api.md are made from the estimators' records, results.md
from the committed tables of training results. Each table stands between
a pair of marked comments, so that it can be read in the source as well;
a test compares them with their sources.
"""

from pathlib import Path

import numpy as np

import reinmax_tutorial as rt
from reinmax_tutorial.estimators import ESTIMATORS
from reinmax_tutorial.estimators.record import OPTIONS
from reinmax_tutorial.experiments.command_line import duration
from reinmax_tutorial.experiments.results import (
    RESULTS,
    at_end,
    compare,
    format_differences,
    format_table,
    markdown,
    shown,
    varying,
)
from reinmax_tutorial.experiments.sweeps import SWEEPS

BOOK = Path(__file__).resolve().parent


def settings(record, options):
    """Options by their symbols: `τ = 1, K = 100`."""
    symbols = {
        key: OPTIONS[record.renamed.get(key, key)].symbol
        for key in options
    }
    return ", ".join(
        f"{symbols[key]} = {value:g}"
        if isinstance(value, float)
        else f"{symbols[key]} = {value}"
        for key, value in options.items()
    )


def promise_in_words(record, promise):
    """`degree 2`, `unbiased` or `biased`, and at which options."""
    words = {"none": "biased", "unbiased": "unbiased"}.get(
        promise.exact, f"degree {promise.exact}"
    )
    at = settings(record, promise.options)
    return f"{words} at {at}" if at else words


def promises_in_words(record):
    """The promise at the defaults, then those that differ from it."""
    first, *others = record.promises
    differ = [case for case in others if case.exact != first.exact]
    return "; ".join(
        promise_in_words(record, case) for case in (first, *differ)
    )


def row(*cells):
    """One row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def formula_table():
    """Name and equation of every estimator, for notation.md."""
    lines = [row("estimator", "key", "estimate"), row(*["---"] * 3)]
    for name, record in ESTIMATORS.items():
        equation = record.equation.replace("|", r"\vert ")
        lines.append(row(record.label, f"`{name}`", f"${equation}$"))
    return "\n".join(lines)


def promise_table():
    """Promise, cost, options and source of all, for api.md."""
    head = ("key", "promise", "cost", "options", "source", "chapter")
    lines = [row(*head), row(*["---"] * len(head))]
    for name, record in ESTIMATORS.items():
        lines.append(
            row(
                f"`{name}`",
                promises_in_words(record),
                f"${record.cost.label}$",
                settings(record, record.options) or "none",
                record.source,
                str(record.chapter),
            )
        )
    return "\n".join(lines)


def option_table():
    """Symbol and range of every option, for api.md."""
    lines = [row("option", "symbol", "allowed"), row(*["---"] * 3)]
    taken = {
        record.renamed.get(key, key)
        for record in ESTIMATORS.values()
        for key in record.options
    }
    for key, option in OPTIONS.items():
        if key in taken:
            lines.append(row(f"`{key}`", option.symbol, option.allowed))
    return "\n".join(lines)


def made_by(provenance):
    """Who made a table, when, on what, and for how long."""
    spent = duration(provenance["training_seconds"])
    devices = ", ".join(provenance["device"])
    versions = ", ".join(provenance["torch"])
    return (
        f"`{provenance['command']}`, commit `{provenance['commit']}`: "
        f"{provenance['finished']} of {provenance['members']} runs, "
        f"last finished {provenance['last_finished'][:10]}, "
        f"{spent} of training on {devices} with torch {versions}."
    )


def committed(name):
    """Whether the results of a sweep are there."""
    return (RESULTS / f"{name}.csv").is_file()


def collapsed(table):
    """A sentence on the runs that no longer learn their code."""
    last = at_end(table, split="train", metric="kl")
    ceiling = last["num_latents"] * np.log(last["num_categories"])
    stuck = last[ceiling - last["value"] < 0.01]
    if stuck.empty:
        return "No run ended collapsed."
    by = varying(table)
    names = []
    for setting, runs in stuck.groupby(by, sort=False):
        seeds = ", ".join(map(str, runs["seed"]))
        names.append(f"{' '.join(map(shown, setting))} (seeds {seeds})")
    return (
        f"{len(stuck)} of {len(last)} runs ended collapsed, "
        f"with KL at its ceiling: {'; '.join(names)}."
    )


def training_tables():
    """Every committed sweep, for results.md."""
    blocks = []
    for name, sweep in SWEEPS.items():
        if committed(name):
            table = rt.load_results(name)
            pairs = compare(table, within=sweep.within)
            blocks += [
                f"## `{name}`: {sweep.purpose}",
                made_by(table.attrs["provenance"]),
                format_table(table),
                collapsed(table),
                "Differences on test images, paired over seeds:",
                format_differences(pairs),
            ]
    return "\n\n".join(blocks)


def missing_sweeps():
    """The sweeps that were never run, for results.md."""
    rows = [
        (f"`{name}`", sweep.size, sweep.purpose)
        for name, sweep in SWEEPS.items()
        if not committed(name)
    ]
    return markdown(("sweep", "size", "purpose"), rows)


TABLES = {
    "notation.md": {"formulas": formula_table},
    "api.md": {"promises": promise_table, "options": option_table},
    "results.md": {
        "trained": training_tables,
        "missing": missing_sweeps,
    },
}


def rewritten(page):
    """The text of a page with its tables made anew."""
    text = (BOOK / page).read_text(encoding="utf-8")
    for mark, table in TABLES[page].items():
        start, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
        before, rest = text.split(start)
        after = rest.split(end)[1]
        text = f"{before}{start}\n\n{table()}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    for page in TABLES:
        new = rewritten(page)
        (BOOK / page).write_text(new, encoding="utf-8")
