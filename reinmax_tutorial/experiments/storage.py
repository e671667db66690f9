"""Runs on disk: a folder each, written under a temporary name and renamed."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from reinmax_tutorial.experiments.config import TrainConfig

ROWS = ("epoch", "split", "metric", "value")


def write_atomically(path: Path, data: bytes) -> None:
    """A file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_atomically(path: Path, state: Any) -> None:
    """torch.save, whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, buffer.getvalue())


class RunFolder:
    """Where the runs of a sweep live.

    Args:
        path: the folder; made if need be.

    Raises:
        OSError: it cannot be written to.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)

    def prepare(self) -> None:
        """Make the folder and see that it can be written to (OSError)."""
        probe = self.path / f".probe-{os.getpid()}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise OSError(
                f"the folder of runs {self.path} cannot be written to ({error}); "
                "choose another one with --runs"
            ) from error

    def of(self, config: TrainConfig) -> Path:
        """The folder of one run."""
        return self.path / config.run_id

    def is_finished(self, config: TrainConfig) -> bool:
        """A run that has its table is finished."""
        return (self.of(config) / "metrics.csv").is_file()

    def write(
        self, config: TrainConfig, rows: Sequence[tuple], timing: dict[str, Any]
    ) -> None:
        """Store a finished run; the table comes last."""
        folder = self.of(config)
        settings = json.dumps(dataclasses.asdict(config), indent=1)
        write_atomically(folder / "config.json", settings.encode())
        write_atomically(folder / "timing.json", json.dumps(timing, indent=1).encode())
        write_atomically(folder / "metrics.csv", table_bytes(ROWS, rows))

    def rows(self, config: TrainConfig) -> list[list[str]]:
        """The rows of a finished run, as text."""
        with open(self.of(config) / "metrics.csv", newline="") as lines:
            return list(csv.reader(lines))[1:]

    def timing(self, config: TrainConfig) -> dict[str, Any]:
        """Seconds, device, date: what is not part of the table."""
        return json.loads((self.of(config) / "timing.json").read_text())

    def checkpoint(self, name: str) -> Path:
        """Where an ensemble in training keeps its state."""
        return self.path / "checkpoints" / f"{name}.pt"


def table_bytes(header: Sequence[str], rows: Sequence[Sequence]) -> bytes:
    """A CSV table whose bytes depend on its values alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def number(value: float) -> str:
    """A metric as text: six decimals, enough for nats."""
    return f"{value:.6f}"
