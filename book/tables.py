"""Rewrite the tables of notation.md and api.md from the records.

    python book/tables.py

Each table stands between a pair of marked comments, so that it can be
read in the source as well; a test compares them with the records.
"""

from pathlib import Path

from reinmax_tutorial.estimators import ESTIMATORS
from reinmax_tutorial.estimators.record import OPTIONS

BOOK = Path(__file__).resolve().parent


def promise_in_words(promise):
    """`degree 2`, `unbiased` or `biased`, and at which options."""
    if promise.exact == "unbiased":
        words = "unbiased"
    elif promise.exact == "none":
        words = "biased for linear $f$"
    else:
        words = f"exact to degree {promise.exact}"
    at = ", ".join(f"`{k}={v!r}`" for k, v in promise.options.items())
    return f"{words} at {at}" if at else words


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
    head = (
        "key",
        "promise",
        "evaluations of $f$",
        "options",
        "source",
        "chapter",
    )
    lines = [row(*head), row(*["---"] * len(head))]
    for name, record in ESTIMATORS.items():
        options = ", ".join(
            f"`{key}={default!r}`"
            for key, default in record.options.items()
        )
        lines.append(
            row(
                f"`{name}`",
                "; ".join(map(promise_in_words, record.promises)),
                f"${record.cost.label}$",
                options or "none",
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


TABLES = {
    "notation.md": {"formulas": formula_table},
    "api.md": {"promises": promise_table, "options": option_table},
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
