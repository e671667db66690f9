"""From runs to a committed table, and from a table to numbers with intervals."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reinmax_tutorial.experiments.config import FIELDS, TrainConfig
from reinmax_tutorial.experiments.storage import (
    ROWS,
    RunFolder,
    table_bytes,
    write_atomically,
)

COLUMNS = ("run_id", *FIELDS, *ROWS)
SHAPE = ("num_categories", "num_latents")
RESULTS = resources.files("reinmax_tutorial") / "results"


def collected_rows(configs: Sequence[TrainConfig], folder: RunFolder) -> list[list]:
    """The tidy rows of the finished runs, in the order of the sweep."""
    rows = []
    for config in configs:
        if folder.is_finished(config):
            fields = [plain(value) for value in dataclasses.astuple(config)]
            head = [config.run_id, *fields]
            rows += [[*head, *row] for row in folder.rows(config)]
    return rows


def plain(value: Any) -> str:
    """A field as text, the same on every machine."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else str(value)


def collect(
    configs: Sequence[TrainConfig],
    folder: RunFolder,
    output: Path,
    *,
    command: str,
    commit: str,
) -> dict[str, Any]:
    """Write the table of a sweep, and its provenance beside it.

    The table's bytes depend on the numbers alone; time, date and device stand in
    the provenance.

    Args:
        configs: the runs of the sweep.
        folder: where they were run.
        output: the table, ….csv; the provenance is the same name with .json.
        command: how the runs were made.
        commit: of the code that made them.

    Returns:
        The provenance.

    Raises:
        ValueError: no run is finished.
    """
    rows = collected_rows(configs, folder)
    if not rows:
        raise ValueError(f"no finished run of this sweep in {folder.path}")
    done = [config for config in configs if folder.is_finished(config)]
    timings = [folder.timing(config) for config in done]
    provenance = {
        "command": command,
        "commit": commit,
        "members": len(configs),
        "finished": len(done),
        "missing": [c.run_id for c in configs if not folder.is_finished(c)],
        "not_finite": [
            config.run_id
            for config, timing in zip(done, timings, strict=True)
            if timing["failed_at_step"] is not None
        ],
        "device": sorted({timing["device"] for timing in timings}),
        "threads": sorted({timing["threads"] for timing in timings}),
        "torch": sorted({timing["torch"] for timing in timings}),
        "first_finished": min(timing["finished"] for timing in timings),
        "last_finished": max(timing["finished"] for timing in timings),
        "training_seconds": round(sum(timing["seconds"] for timing in timings), 1),
    }
    write_atomically(output, table_bytes(COLUMNS, rows))
    text = json.dumps(provenance, indent=1) + "\n"
    write_atomically(output.with_suffix(".json"), text.encode())
    return provenance


def load_results(sweep: str) -> pd.DataFrame:
    """The committed table of a sweep, one row per run, epoch, split and metric.

    Columns: run_id, the fields of TrainConfig, then epoch, split, metric and value
    (nats per image). Who made it, when and on what stands in `.attrs["provenance"]`.

    Args:
        sweep: its name, for example "short".

    Raises:
        ValueError: no such table; the message lists those that exist.
    """
    path = RESULTS / f"{sweep}.csv"
    if not path.is_file():
        known = sorted(
            p.name[:-4] for p in RESULTS.iterdir() if p.name.endswith(".csv")
        )
        raise ValueError(
            f"no table of sweep {sweep!r}; there are: {', '.join(known) or 'none'}"
        )
    with path.open() as lines:
        table = pd.read_csv(lines)
    beside = RESULTS / f"{sweep}.json"
    if beside.is_file():
        table.attrs["provenance"] = json.loads(beside.read_text())
    return table


def varying(table: pd.DataFrame) -> list[str]:
    """The columns that tell the settings of a table apart, seeds aside.

    The estimator first, then each field that splits the settings further: where each
    estimator has one setting, its name is enough.
    """
    fields = [name for name in FIELDS if name in table and name != "seed"]
    settings = table[fields].drop_duplicates()
    chosen, groups = [], 0
    for name in ["estimator", *fields]:
        count = len(settings.drop_duplicates([*chosen, name]))
        if count > groups:
            chosen, groups = [*chosen, name], count
    return chosen if groups > 1 else ["estimator"]


def at_end(
    table: pd.DataFrame, *, split: str = "test", metric: str = "negative_elbo"
) -> pd.DataFrame:
    """The rows of the last epoch for one split and metric."""
    chosen = (
        (table["epoch"] == table["epochs"])
        & (table["split"] == split)
        & (table["metric"] == metric)
    )
    return table[chosen]


def summary(
    table: pd.DataFrame,
    *,
    split: str = "test",
    metric: str = "negative_elbo",
    by: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Mean and standard error over seeds at the last epoch.

    Args:
        table: as from load_results.
        split: "train", "validation" or "test".
        metric: "negative_elbo", "reconstruction", "kl" or "bound".
        by: the columns that tell settings apart; those that vary by default.

    Returns:
        One row per setting: mean, std_error, seeds.
    """
    by = list(by or varying(table))
    last = at_end(table, split=split, metric=metric)
    groups = last.groupby(by, sort=False)["value"]
    rows = groups.agg(mean="mean", std_error="sem", seeds="count")
    return rows.reset_index()


def compare(
    table: pd.DataFrame,
    *,
    split: str = "test",
    metric: str = "negative_elbo",
    by: Sequence[str] | None = None,
    within: Sequence[str] = SHAPE,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Pairs of settings, compared seed by seed.

    Runs of one seed start from the same weights and see the same images in the same
    order, so their difference is less noisy than either. The interval is Student's
    for the mean difference; the p-values are Holm's, corrected for the number of
    pairs in this call.

    Args:
        table: as from load_results.
        split: "train", "validation" or "test".
        metric: what is compared.
        by: the columns that tell settings apart; those that vary by default.
        within: columns in which the two settings of a pair must agree.
        confidence: of each interval, uncorrected.

    Returns:
        One row per pair: first, second, difference (first - second, in nats), low,
        high, p_holm, seeds.

    Source: Holm (1979).
    """
    by = list(by or varying(table))
    last = at_end(table, split=split, metric=metric)
    labels = last[by].apply(lambda column: column.map(shown)).agg(" ".join, axis=1)
    blocks = last.assign(setting=labels).groupby(list(within), sort=False)
    rows = []
    for _, block in blocks:
        wide = block.pivot(index="seed", columns="setting", values="value")
        names = block["setting"].unique()
        for first, second in itertools.combinations(names, 2):
            difference = (wide[first] - wide[second]).dropna()
            rows.append((first, second, *paired(difference.to_numpy(), confidence)))
    names = ["first", "second", "difference", "low", "high", "p", "seeds"]
    result = pd.DataFrame(rows, columns=names)
    result.insert(5, "p_holm", holm(result.pop("p").to_numpy()))
    return result


def paired(difference: np.ndarray, confidence: float) -> tuple[float, ...]:
    """Mean, interval, two-sided p-value and number of paired differences."""
    from scipy import stats  # slow to import

    n = len(difference)
    mean = float(np.mean(difference)) if n else math.nan
    if n < 2:
        return mean, math.nan, math.nan, math.nan, n
    error = float(np.std(difference, ddof=1)) / math.sqrt(n)
    reach = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * error
    if error == 0:
        p = 1.0 if mean == 0 else 0.0
    else:
        p = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return mean, mean - reach, mean + reach, p, n


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction; NaN stays NaN and does not count."""
    p = np.asarray(p, dtype=float)
    corrected = np.full_like(p, np.nan)
    valid = np.flatnonzero(~np.isnan(p))
    order = valid[np.argsort(p[valid], kind="stable")]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def format_table(
    table: pd.DataFrame,
    *,
    metric: str = "negative_elbo",
    splits: Sequence[str] = ("train", "test"),
    by: Sequence[str] | None = None,
    digits: int = 2,
) -> str:
    """Mean ± standard error over seeds at the last epoch, as a Markdown table.

    Args:
        table: as from load_results.
        metric: what is shown.
        splits: one column each.
        by: the columns that tell settings apart; those that vary by default.
        digits: after the point.
    """
    by = list(by or varying(table))
    present = [s for s in splits if len(at_end(table, split=s, metric=metric))]
    columns, seeds = {}, {}
    for split in present:
        for row in summary(table, split=split, metric=metric, by=by).to_dict("records"):
            key = tuple(shown(row[name]) for name in by)
            error = "" if row["seeds"] < 2 else f" ± {row['std_error']:.{digits}f}"
            columns.setdefault(key, {})[split] = f"{row['mean']:.{digits}f}{error}"
            seeds[key] = row["seeds"]
    rows = [
        [*key, *(cells.get(s, "") for s in present), str(seeds[key])]
        for key, cells in columns.items()
    ]
    return markdown([*by, *present, "seeds"], rows)


def format_differences(pairs: pd.DataFrame, *, digits: int = 2) -> str:
    """The rows of `compare` as a Markdown table; the interval is at 95 %.

    Args:
        pairs: as from compare.
        digits: after the point.
    """
    head = ["first", "second", "first - second", "95 % interval", "p, Holm", "seeds"]
    rows = [
        [
            row["first"],
            row["second"],
            f"{row['difference']:.{digits}f}",
            f"{row['low']:.{digits}f} to {row['high']:.{digits}f}",
            f"{row['p_holm']:.{digits}f}",
            str(row["seeds"]),
        ]
        for row in pairs.to_dict("records")
    ]
    return markdown(head, rows)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of cells that are text already."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: Any) -> str:
    """A setting as a reader writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value)
