"""How large and how wordy each chapter is.

python tests/chapter_statistics.py            from the stored notebooks
python tests/chapter_statistics.py --seconds  also runs them, without saving
"""

import argparse
import statistics
import time
from pathlib import Path

import nbformat

BOOK = Path(__file__).resolve().parent.parent / "book"
CHAPTERS = sorted(BOOK.glob("[0-9][0-9]_*.ipynb"))


def read(path):
    """A notebook as nbformat 4."""
    return nbformat.read(path, as_version=4)


def tags(cell):
    """The tags of a cell, as a list."""
    return cell.metadata.get("tags", [])


def code_cells(notebook):
    """The code cells, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def code_lines(cell):
    """Lines of code in a cell that are not blank."""
    return [line for line in cell.source.splitlines() if line.strip()]


def has_picture(cell):
    """Whether the cell's stored outputs hold a PNG."""
    return any("image/png" in output.get("data", {}) for output in cell.outputs)


def measure(notebook):
    """The counts of one chapter, as a dictionary."""
    cells = code_cells(notebook)
    sizes = [len(code_lines(cell)) for cell in cells]
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    return {
        "code cells": len(cells),
        "median lines": statistics.median(sizes),
        "largest": max(sizes),
        "words per code line": sum(len(s.split()) for s in prose) / sum(sizes),
        "figures": sum(has_picture(cell) for cell in cells),
        "exercises": sum("exercise" in tags(cell) for cell in notebook.cells),
    }


def seconds_to_run(path):
    """Wall time of a fresh kernel running the chapter."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(BOOK)}}
    start = time.perf_counter()
    NotebookClient(read(path), timeout=120, resources=resources).execute()
    return time.perf_counter() - start


def main():
    """Print one row per chapter."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", action="store_true", help="also run them")
    run = parser.parse_args().seconds
    print(f"{'chapter':24} cells median largest words/line figures exercises seconds")
    for path in CHAPTERS:
        row = measure(read(path))
        seconds = f"{seconds_to_run(path):7.1f}" if run else "      -"
        print(
            f"{path.stem:24} {row['code cells']:5} {row['median lines']:6} "
            f"{row['largest']:7} {row['words per code line']:10.1f} "
            f"{row['figures']:7} {row['exercises']:9} {seconds}"
        )


if __name__ == "__main__":
    main()
