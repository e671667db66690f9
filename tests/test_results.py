"""Tables: byte-stable, with provenance beside; intervals and corrections."""

import dataclasses
import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

import reinmax_tutorial as rt
from reinmax_tutorial.experiments import results
from reinmax_tutorial.experiments.config import FIELDS, TrainConfig
from reinmax_tutorial.experiments.results import (
    COLUMNS,
    RESULTS,
    collect,
    compare,
    format_differences,
    format_table,
    holm,
    paired,
    summary,
    varying,
)
from reinmax_tutorial.experiments.storage import RunFolder, number
from reinmax_tutorial.experiments.sweeps import SWEEPS

FILES = [p.name for p in RESULTS.iterdir()] if RESULTS.is_dir() else []
COMMITTED = sorted(name[:-4] for name in FILES if name.endswith(".csv"))


def made_up(values):
    """A table with one final row per (estimator, seed)."""
    rows = []
    for (name, numbers), split in itertools.product(values.items(), ("train", "test")):
        for seed, value in enumerate(numbers):
            config = TrainConfig(estimator=name, epochs=3, seed=seed)
            head = {"run_id": config.run_id, **dataclasses.asdict(config)}
            for epoch in (1, 3):
                rows.append(
                    {
                        **head,
                        "epoch": epoch,
                        "split": split,
                        "metric": "negative_elbo",
                        "value": value if epoch == 3 else 1000.0,
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


VALUES = {
    "reinmax": [100.0, 102.0, 104.0],
    "straight_through": [101.0, 104.0, 107.0],
    "reinmax_rao": [100.0, 102.0, 104.0],
}


def test_summary_is_mean_and_standard_error_at_the_last_epoch():
    table = made_up(VALUES)
    assert varying(table) == ["estimator"]
    rows = summary(table).set_index("estimator")
    assert rows.loc["reinmax", "mean"] == 102
    # standard deviation 2 over three seeds
    assert rows.loc["reinmax", "std_error"] == pytest.approx(2 / math.sqrt(3))
    assert (rows["seeds"] == 3).all()


def test_settings_are_told_apart_by_as_few_columns_as_needed():
    def table(*configs):
        return pd.DataFrame([dataclasses.asdict(config) for config in configs])

    a = TrainConfig(estimator="reinmax", temperature=1.3, learning_rate=5e-4)
    b = TrainConfig(estimator="straight_through", learning_rate=1e-3)
    c = dataclasses.replace(a, baseline="learned", seed=1)
    assert varying(table(a, b)) == ["estimator"]
    assert varying(table(a, b, c)) == ["estimator", "baseline"]
    assert varying(table(a, c)) == ["estimator", "baseline"]
    assert varying(table(a, dataclasses.replace(a, seed=1))) == ["estimator"]


def test_paired_differences_by_hand():
    # differences 1, 2, 3: mean 2, deviation 1, error 1/√3; t.975 with 2 degrees 4.3027
    mean, low, high, p, n = paired(np.array([1.0, 2.0, 3.0]), 0.95)
    assert (mean, n) == (2.0, 3)
    assert high - mean == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert mean - low == pytest.approx(high - mean)
    # two degrees of freedom have a closed form: p = 1 - t/√(2 + t²), t = 2√3
    assert p == pytest.approx(1 - math.sqrt(12 / 14))
    assert paired(np.array([1.0]), 0.95)[0] == 1 and math.isnan(
        paired(np.array([1.0]), 0.95)[1]
    )
    assert paired(np.zeros(3), 0.95)[3] == 1.0
    assert paired(np.ones(3), 0.95)[3] == 0.0


def test_holm_by_hand():
    corrected = holm(np.array([0.01, 0.04, 0.03, math.nan]))
    # sorted .01 .03 .04 times 3, 2, 1, and never falling
    assert corrected[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert math.isnan(corrected[3])
    assert holm(np.array([0.9, 0.8])).max() == 1.0


def test_compare_pairs_seeds_and_corrects():
    rows = compare(made_up(VALUES)).set_index(["first", "second"])
    assert len(rows) == 3
    row = rows.loc[("reinmax", "straight_through")]
    assert row["difference"] == -2 and row["seeds"] == 3
    assert row["high"] == pytest.approx(-2 + 4.302653 / math.sqrt(3), abs=1e-6)
    p = 1 - math.sqrt(12 / 14)
    assert row["p_holm"] == pytest.approx(3 * p)
    assert rows.loc[("reinmax", "reinmax_rao"), "p_holm"] == 1.0
    assert list(rows.reset_index().columns) == [
        "first",
        "second",
        "difference",
        "low",
        "high",
        "p_holm",
        "seeds",
    ]


def test_compare_uses_the_seeds_that_both_have():
    table = made_up({"reinmax": [1.0, 2.0, 3.0], "straight_through": [3.0, 5.0]})
    (row,) = compare(table).to_dict("records")
    assert row["difference"] == -2.5 and row["seeds"] == 2


def test_compare_stays_within_a_shape_or_what_it_is_told():
    parts = []
    for categories in (8, 16):
        part = made_up(VALUES)
        part["num_categories"] = categories
        parts.append(part)
    table = pd.concat(parts, ignore_index=True)
    assert len(compare(table)) == 2 * 3
    inside = compare(table, within=["estimator"])
    assert len(inside) == 3 and (inside["difference"] == 0).all()
    assert inside.loc[0, "first"] == "reinmax 8"
    assert inside.loc[0, "second"] == "reinmax 16"


def test_format_differences():
    lines = format_differences(compare(made_up(VALUES)), digits=1).splitlines()
    assert lines[0].count("|") == lines[2].count("|") == 7
    low, high = -2 - 4.302653 / math.sqrt(3), -2 + 4.302653 / math.sqrt(3)
    p = 3 * (1 - math.sqrt(12 / 14))
    assert lines[2] == (
        f"| reinmax | straight_through | -2.0 | {low:.1f} to {high:.1f} | {p:.1f} | 3 |"
    )


def test_format_table():
    lines = format_table(made_up(VALUES), digits=1).splitlines()
    assert lines[0] == "| estimator | train | test | seeds |"
    assert lines[2] == "| reinmax | 102.0 ± 1.2 | 102.0 ± 1.2 | 3 |"
    one = made_up({"reinmax": [100.0]})
    assert format_table(one).splitlines()[-1] == "| reinmax | 100.00 | 100.00 | 1 |"


def finished(tmp_path, seconds):
    folder = RunFolder(tmp_path)
    configs = [TrainConfig(epochs=1, seed=seed) for seed in range(3)]
    for config in configs[:2]:
        timing = {
            "seconds": seconds,
            "device": f"device {seconds}",
            "threads": 1,
            "torch": "2",
            "finished": "2026-01-01T00:00:00+00:00",
            "failed_at_step": None,
        }
        rows = [[1, "test", "kl", number(config.seed / 3)]]
        folder.write(config, rows, timing)
    return folder, configs


def test_tables_do_not_know_the_clock_and_provenance_does(tmp_path):
    tables = []
    for seconds in (1.5, 2.5):
        folder, configs = finished(tmp_path / str(seconds), seconds)
        output = tmp_path / f"{seconds}.csv"
        said = collect(configs, folder, output, command="run it", commit="abc")
        tables.append(output.read_bytes())
        assert said == json.loads(output.with_suffix(".json").read_text())
        assert said["training_seconds"] == 2 * seconds
        assert said["device"] == [f"device {seconds}"]
        assert (said["members"], said["finished"]) == (3, 2)
        assert said["missing"] == [configs[2].run_id]
        assert (said["command"], said["commit"]) == ("run it", "abc")
    assert tables[0] == tables[1]
    lines = tables[0].decode().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert lines[2].endswith(",1,test,kl,0.333333")


def test_load_results_reads_a_table_and_its_provenance(tmp_path, monkeypatch):
    folder, configs = finished(tmp_path / "runs", 1.0)
    collect(configs, folder, tmp_path / "mine.csv", command="run", commit="abc")
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    table = rt.load_results("mine")
    assert list(table.columns) == list(COLUMNS) and len(table) == 2
    assert table["binarised"].dtype == bool
    assert table.attrs["provenance"]["commit"] == "abc"
    with pytest.raises(ValueError, match="no table of sweep 'paper'; there are: mine"):
        rt.load_results("paper")


@pytest.mark.parametrize("sweep", [n for n in COMMITTED if n in SWEEPS])
def test_committed_tables_are_of_committed_sweeps(sweep):
    """Every run of the table is a run of the sweep, and what misses is named."""
    table = rt.load_results(sweep)
    provenance = table.attrs["provenance"]
    assert list(table.columns) == list(COLUMNS)
    runs = set(table["run_id"])
    if not SWEEPS[sweep].search:
        wanted = {config.run_id for config in SWEEPS[sweep].configs()}
        assert runs <= wanted
        assert wanted - runs == set(provenance["missing"])
    assert len(runs) == provenance["finished"]
    for field in FIELDS:
        assert table[field].notna().all()
    assert not table.duplicated(["run_id", "epoch", "split", "metric"]).any()
