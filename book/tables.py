"""Rewrite the tables of notation.md and api.md from the records.

    python book/tables.py

Each table stands between a pair of marked comments, so that it can be
read in the source as well; a test compares them with the records.
"""

from pathlib import Path

from reinmax_tutorial.estimators import ESTIMATORS
from reinmax_tutorial.estimators.record import OPTIONS

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
