"""The README: its example prints what stands beside it, and it stays short."""

import re
import subprocess
import sys
from pathlib import Path

import reinmax_tutorial as rt

README = (Path(__file__).resolve().parent.parent / "README.md").read_text("utf-8")


def test_example_prints_what_the_readme_shows():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (shown,) = re.findall(r"```text\n(.*?)```", README, re.S)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == shown


def test_it_is_at_most_sixty_lines():
    assert len(README.splitlines()) <= 60


def test_the_estimators_that_it_lists_exist_in_those_chapters():
    rows = re.findall(r"\| (\d+) \| `(\w+)` \|", README)
    assert rows
    for chapter, name in rows:
        assert rt.ESTIMATORS[name].chapter == int(chapter)
