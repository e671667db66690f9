"""House rules of the chapters: what can be checked without running them."""

import re
import sys
from collections import Counter

import pytest
import yaml
from chapter_statistics import (
    BOOK,
    CHAPTERS,
    code_cells,
    code_lines,
    has_picture,
    measure,
    read,
    tags,
)

import reinmax_tutorial as rt
from reinmax_tutorial.plotting import STYLES

ROOT = BOOK.parent
SET_UP = """\
import torch
import matplotlib.pyplot as plt

import reinmax_tutorial as rt
from reinmax_tutorial.plotting import use_style

use_style()
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
generator = torch.Generator().manual_seed(0)"""
METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
TAGS = {
    "hide-input",
    "hide-output",
    "hide-cell",
    "remove-cell",
    "exercise",
    "check",
    "solution",
    "nbval-check-output",
    "nbval-ignore-output",
}
EXERCISE = re.compile(r"```\{exercise\}.*\n:label: ex-([a-z0-9-]+)\n")
MACRO = re.compile(r"\\(newcommand|renewcommand|def|DeclareMathOperator)\b")
PLACE = re.compile(r"/(home|root|tmp|Users|work)/|[A-Z]:\\\\")
LONG_NUMBER = re.compile(r"\d\.\d{5,}")

chapters = pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)


def texts(cell):
    """Everything that a cell stores as text output."""
    for output in cell.get("outputs", []):
        yield output.get("text", "")
        for kind, data in output.get("data", {}).items():
            if kind.startswith("text/"):
                yield data


def test_there_are_chapters():
    assert CHAPTERS


def test_every_chapter_is_in_the_table_of_contents():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    assert [f for f in listed if f[5:7].isdigit()] == [
        f"book/{p.stem}" for p in CHAPTERS
    ]
    assert all(
        (ROOT / f"{f}.md").exists() or (ROOT / f"{f}.ipynb").exists() for f in listed
    )
    assert {p.stem for p in BOOK.glob("*.ipynb")} == {p.stem for p in CHAPTERS}


@chapters
def test_executed_in_order_and_stored_with_outputs(path):
    cells = code_cells(read(path))
    counts = [cell.execution_count for cell in cells]
    assert counts == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) >= len(cells) // 3
    for cell in cells:
        assert cell.source.strip(), f"cell {cell.id!r} is empty"
        for output in cell.outputs:
            assert output.output_type != "error", f"cell {cell.id!r} raised"
            assert output.get("name") != "stderr", f"cell {cell.id!r} wrote to stderr"
            kinds = set(output.get("data", {}))
            assert kinds <= {"text/plain", "text/html", "image/png"}, cell.id


@chapters
def test_outputs_do_not_name_places_or_print_long_numbers(path):
    for cell in read(path).cells:
        assert not PLACE.search(cell.source), f"a path in cell {cell.id!r}"
        for text in texts(cell):
            assert not PLACE.search(text), f"a path in the output of {cell.id!r}"
            if "nbval-ignore-output" not in tags(cell):
                assert not LONG_NUMBER.search(text), f"many digits in {cell.id!r}"


@chapters
def test_metadata_are_stable(path):
    notebook = read(path)
    assert notebook.metadata == METADATA
    ids = [cell.id for cell in notebook.cells]
    assert not [i for i, n in Counter(ids).items() if n > 1]
    for cell in notebook.cells:
        assert set(cell.metadata) <= {"tags", "mystnb"}, cell.id
        assert not re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", cell.id), (
            f"{cell.id!r} looks generated; give the cell a name"
        )
        for output in cell.get("outputs", []):
            assert output.get("metadata", {}) == {}, cell.id


@chapters
def test_tags_are_known(path):
    for cell in read(path).cells:
        unknown = [t for t in tags(cell) if t not in TAGS and not t.startswith("ex:")]
        assert not unknown, f"cell {cell.id!r} has {unknown}"


@chapters
def test_size_and_rhythm(path):
    row = measure(read(path))
    assert 15 <= row["code cells"] <= 40
    assert row["median lines"] <= 5
    assert row["largest"] <= 25
    assert row["words per code line"] >= 8
    assert 2 <= row["figures"] <= 6
    assert row["exercises"] >= 3


@chapters
def test_code_fits_on_a_phone(path):
    for cell in code_cells(read(path)):
        for line in code_lines(cell):
            assert len(line) <= 72, f"{cell.id}: {line}"


@chapters
def test_no_semicolon_silences_a_cell(path):
    # nbval runs cells without history, and IPython then ignores the semicolon
    for cell in code_cells(read(path)):
        last = cell.source.rstrip().splitlines()[-1]
        assert not last.endswith(";"), f"{cell.id}: write `_ = ...` instead"


@chapters
def test_first_code_cell_is_the_common_set_up(path):
    first = code_cells(read(path))[0]
    assert first.source == SET_UP
    assert tags(first) == ["hide-input"]


@chapters
def test_one_title_and_no_macros(path):
    prose = [c.source for c in read(path).cells if c.cell_type == "markdown"]
    titles = [line for text in prose for line in text.splitlines() if line[:2] == "# "]
    assert len(titles) == 1
    assert prose[0].startswith("# ")
    assert not any(MACRO.search(text) for text in prose)


@chapters
def test_figures_have_caption_name_and_alt_text(path):
    for cell in code_cells(read(path)):
        pictures = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        described = cell.metadata.get("mystnb", {})
        if has_picture(cell):
            assert len(pictures) == 1, f"{cell.id}: one figure a cell"
            assert len(described["image"]["alt"].split()) >= 5, cell.id
            assert len(described["figure"]["caption"].split()) >= 5, cell.id
            assert described["figure"]["name"].startswith("fig-"), cell.id
        else:
            assert not described, f"{cell.id} describes a figure that it lacks"


@chapters
def test_exercises_are_followed_by_folded_solutions(path):
    cells = read(path).cells
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown":
            found = EXERCISE.findall(cell.source)
            assert ("exercise" in tags(cell)) == bool(found), cell.id
            assert [f"ex:{x}" for x in found] == [
                t for t in tags(cell) if t.startswith("ex:")
            ]
            if found:
                check_solution(found[0], cells[i + 1 :])
            if "{solution" in cell.source:
                assert "solution" in tags(cell), cell.id


def check_solution(name, following):
    """The cells after an exercise solve it, folded, and code ends in an assertion."""
    solution = []
    for cell in following:
        if "solution" not in tags(cell):
            break
        solution.append(cell)
    assert solution, f"exercise {name} has no solution"
    start = solution[0].source
    assert re.match(rf"```{{solution(-start)?}} ex-{name}\n", start), name
    assert ":class: dropdown" in start, f"the solution of {name} is not folded"
    if start.startswith("```{solution-start}"):
        assert solution[-1].source.startswith("```{solution-end}"), name
        code = [cell for cell in solution if cell.cell_type == "code"]
        assert any("assert " in line for line in code_lines(code[-1])), name


def test_exercise_and_figure_names_are_unique():
    names = Counter()
    for path in CHAPTERS:
        for cell in read(path).cells:
            names.update(t for t in tags(cell) if t.startswith("ex:"))
            figure = cell.metadata.get("mystnb", {}).get("figure", {})
            names.update([figure["name"]] if "name" in figure else [])
    assert not [name for name, n in names.items() if n > 1]


def test_every_estimator_has_a_style_and_a_row_in_the_notation():
    assert set(STYLES) == set(rt.ESTIMATORS)
    assert len(set(STYLES.values())) == len(STYLES)
    notation = (BOOK / "notation.md").read_text(encoding="utf-8")
    missing = [key for key in rt.ESTIMATORS if f"| `{key}` |" not in notation]
    assert not missing


def test_every_estimator_has_promises_a_source_and_a_chapter_that_names_it():
    for name, record in rt.ESTIMATORS.items():
        assert record.label and record.source and record.promises
        (chapter,) = [
            p for p in CHAPTERS if p.name.startswith(f"{record.chapter:02d}_")
        ]
        text = chapter.read_text(encoding="utf-8")
        assert name in text or name == "exact" and "exact_gradient" in text, name


@pytest.mark.parametrize("page", ["notation.md", "api.md", "results.md"])
def test_tables_are_those_of_the_records(page, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(BOOK), *sys.path])
    import tables

    text = (BOOK / page).read_text(encoding="utf-8")
    assert tables.rewritten(page) == text, "run: python book/tables.py"


def test_every_public_name_is_on_the_api_page():
    api = (BOOK / "api.md").read_text(encoding="utf-8")
    missing = [n for n in rt.__all__ if not re.search(rf":: (\S+\.)?{n}\b", api)]
    assert not missing
