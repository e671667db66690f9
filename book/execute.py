"""Execute chapters and save them with their outputs.

    python book/execute.py                          all chapters
    python book/execute.py book/04_reinmax.ipynb    just this one

A chapter runs from top to bottom in a fresh kernel that starts in
`book/`.  The first error, or anything written to standard error, aborts
and leaves the file as it was.  What is saved carries no timings, no
machine and no versions, so that a second run changes nothing.
"""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parent
NOTEBOOK_METADATA = {
    "kernelspec": {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    },
    "language_info": {"name": "python"},
}
CELL_METADATA = ("tags", "mystnb")


def strip(notebook):
    """Remove old outputs and metadata that the book does not use."""
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        kept = {
            key: cell.metadata[key]
            for key in CELL_METADATA
            if key in cell.metadata
        }
        cell.metadata = nbformat.from_dict(kept)
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = []
            cell.execution_count = None


def execute(path):
    """Run one chapter and save it; returns the seconds that it took."""
    notebook = nbformat.read(path, as_version=4)
    strip(notebook)
    start = time.perf_counter()
    NotebookClient(
        notebook,
        timeout=120,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # however the kernel flushed
        extra_arguments=["--IPKernelApp.log_level=40"],  # errors only
        resources={"metadata": {"path": str(BOOK)}},
    ).execute()
    seconds = time.perf_counter() - start
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise RuntimeError(
                    f"{path}, cell {cell.id!r} wrote to standard error:"
                    f"\n{output.text}"
                )
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
    nbformat.validate(notebook)
    unfinished = path.with_suffix(".unfinished")
    nbformat.write(notebook, unfinished)
    os.replace(unfinished, path)
    return seconds


def main(arguments):
    """Execute the named chapters, or all of them."""
    named = [Path(name) for name in arguments]
    for path in named or sorted(BOOK.glob("*.ipynb")):
        print(f"{path.name}: {execute(path):.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
