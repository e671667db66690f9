"""The command line: run, status, collect, measure, list."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import json
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from reinmax_tutorial.data import NAMES, ImageData, identify_folder, load_images
from reinmax_tutorial.experiments import results
from reinmax_tutorial.experiments.config import TrainConfig, parse_setting
from reinmax_tutorial.experiments.runner import (
    Progress,
    Reporter,
    device_name,
    estimated_seconds,
    stacks,
    steps_of,
    train_members,
)
from reinmax_tutorial.experiments.snapshots import measured_snapshot
from reinmax_tutorial.experiments.storage import (
    RunFolder,
    table_bytes,
    write_atomically,
)
from reinmax_tutorial.experiments.sweeps import SWEEPS, find_sweep

MOST_PAIRS = 40
"""Most differences that are printed after a run."""


class Plan(NamedTuple):
    """What a command line asks for."""

    configs: list[TrainConfig]
    folder: RunFolder
    changed: bool
    data_folder: str | None


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m reinmax_tutorial",
        description="Train, continue and collect the committed sweeps.",
    )
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the committed sweeps")
    texts = {
        "run": "train what is missing of a sweep; finished runs are skipped",
        "status": "say what is finished",
        "collect": "write the table of a sweep and its provenance",
        "measure": "bias and variance of every estimator at a sweep's saved models",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("sweep", help="a name that `list` prints")
        command.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="FIELD=VALUE",
            help="change a field of every run; may be given often",
        )
        command.add_argument("--seeds", type=int, help="members per setting")
        command.add_argument(
            "--data",
            metavar="NAME|PATH",
            help=f"{', '.join(NAMES)}, or a folder of idx files",
        )
        command.add_argument("--runs", default="runs", help="folder of the runs")
        if name == "run":
            command.add_argument("--device", default="cpu", help="cpu, cuda, ...")
            command.add_argument(
                "--limit",
                type=float,
                metavar="MINUTES",
                help="stop cleanly after a checkpoint",
            )
            command.add_argument(
                "--members",
                type=int,
                help="most members to train as one (1 on a CPU, else 80)",
            )
            command.add_argument(
                "--checkpoint",
                type=float,
                default=30.0,
                metavar="SECONDS",
                help="least time between two checkpoints",
            )
        if name == "measure":
            command.add_argument("--device", default="cpu", help="cpu, cuda, ...")
            command.add_argument(
                "--estimates", type=int, default=1024, help="for each estimator"
            )
        if name in ("collect", "measure"):
            command.add_argument(
                "--output",
                type=Path,
                help="the table; default: among the committed results",
            )
    return top


def plan(arguments: argparse.Namespace) -> Plan:
    """The runs that a command is about."""
    sweep = find_sweep(arguments.sweep)
    folder = RunFolder(Path(arguments.runs))
    settings, data_folder = {}, None
    if arguments.data in NAMES:
        settings["dataset"] = arguments.data
    elif arguments.data is not None:
        if not Path(arguments.data).is_dir():
            raise FileNotFoundError(
                f"--data {arguments.data} is neither a folder nor one of "
                f"{', '.join(NAMES)}"
            )
        data_folder = arguments.data
        settings["dataset"] = identify_folder(data_folder)
    if settings.get("dataset", "digits") != "digits":
        settings.update(sweep.on_large)
    settings.update(parse_setting(text) for text in arguments.set)

    def altered(configs: list[TrainConfig]) -> list[TrainConfig]:
        configs = [dataclasses.replace(config, **settings) for config in configs]
        return list(dict.fromkeys(configs))

    searched = None
    if sweep.search:
        search = altered(find_sweep(sweep.search).configs())
        rows = results.collected_rows(search, folder)
        text = table_bytes(results.COLUMNS, rows).decode()
        searched = pd.read_csv(io.StringIO(text))
    original = sweep.configs(seeds=arguments.seeds, searched=searched)
    configs = altered(original)
    changed = configs != original or arguments.seeds is not None
    return Plan(configs, folder, changed, data_folder)


def run(arguments: argparse.Namespace) -> int:
    """Train what is missing."""
    if arguments.limit is not None and not arguments.limit > 0:
        raise ValueError(f"--limit must be above 0 minutes, got {arguments.limit}")
    sweep = find_sweep(arguments.sweep)
    if sweep.search:
        first = argparse.Namespace(**{**vars(arguments), "sweep": sweep.search})
        first.seeds = None
        if (status := run(first)) != 0:
            return status
    started = time.monotonic()
    todo = plan(arguments)
    todo.folder.prepare()
    missing = [c for c in todo.configs if not todo.folder.is_finished(c)]
    if not missing:
        print(f"{sweep.name}: all {len(todo.configs)} runs are finished; nothing to do")
        return 0
    device = arguments.device
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: no such device here; use cpu")

    @functools.cache
    def images(name: str, protocol: str, binarised: bool) -> ImageData:
        where = todo.data_folder
        return load_images(name, folder=where, protocol=protocol, binarised=binarised)

    def load(config: TrainConfig) -> ImageData:
        return images(config.dataset, config.protocol, config.binarised)

    most = arguments.members or (1 if device == "cpu" else 80)
    pieces = stacks(missing, most)
    steps = sum(steps_of(c, len(load(c).train)) for c in missing)
    seconds = estimated_seconds(pieces, load, device)
    print(
        f"{sweep.name}: {len(missing)} of {len(todo.configs)} runs to train, "
        f"{steps:,} model-steps in {len(pieces)} stacks, "
        f"{'about' if device == 'cpu' else 'at most about'} "
        f"{duration(seconds)} on {device_name(device)} "
        f"({torch.get_num_threads()} threads)",
        flush=True,
    )
    deadline = None if arguments.limit is None else started + 60 * arguments.limit
    reporter = Reporter(sum(piece[0].epochs for piece in pieces))
    try:
        for index, piece in enumerate(pieces):
            what = piece[0].run_id if len(piece) == 1 else f"{len(piece)} members"

            def tell(progress: Progress, what: str = what, index: int = index) -> None:
                reporter.advance(f"[{index + 1}/{len(pieces)}] {what}", progress)

            finished = train_members(
                piece,
                load(piece[0]),
                todo.folder,
                device=device,
                checkpoint_seconds=arguments.checkpoint,
                deadline=deadline,
                progress=tell,
                notify=reporter.say,
            )
            if not finished or (deadline and time.monotonic() >= deadline):
                left = [c for c in missing if not todo.folder.is_finished(c)]
                if left:
                    reporter.close()
                    print(
                        f"stopped after {arguments.limit:g} minutes with {len(left)} "
                        "runs to go; the same command continues"
                    )
                    return 3
    finally:
        reporter.close()
    table = pd.read_csv(
        io.StringIO(
            table_bytes(
                results.COLUMNS, results.collected_rows(todo.configs, todo.folder)
            ).decode()
        )
    )
    print(progress_table(table))
    print(differences(table, sweep.within))
    spent = sum(todo.folder.timing(config)["seconds"] for config in todo.configs)
    sitting = time.monotonic() - started
    print(f"{duration(spent)} of training in all, {duration(sitting)} in this sitting")
    return 0


def differences(table: pd.DataFrame, within: Sequence[str]) -> str:
    """Paired differences of −ELBO on the last split that the table has."""
    split = table["split"].iloc[-1]
    pairs = results.compare(table, split=split, within=within)
    if pairs.empty or pairs["seeds"].max() < 2:
        return "no differences: they need two settings and two seeds"
    if len(pairs) > MOST_PAIRS:
        return f"{len(pairs)} pairs of settings: {results.__name__}.compare lists them"
    return f"paired over seeds, {split}:\n{results.format_differences(pairs)}"


def progress_table(table: pd.DataFrame) -> str:
    """−ELBO in the first and in the last epoch, mean over seeds."""
    by = results.varying(table)
    nats = table[table["metric"] == "negative_elbo"]
    lines = [[*by, "split", "epoch 1", "last epoch", "std error", "seeds"]]
    for key, rows in nats.groupby([*by, "split"], sort=False):
        ends = [
            rows[rows["epoch"] == e]["value"] for e in (1, int(rows["epochs"].iloc[0]))
        ]
        error = ends[1].sem() if len(ends[1]) > 1 else math.nan
        lines.append(
            [
                *map(results.shown, key),
                *(f"{values.mean():.2f}" for values in ends),
                f"{error:.2f}",
                str(len(ends[1])),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def status(arguments: argparse.Namespace) -> int:
    """Say what is finished and what is missing."""
    todo = plan(arguments)
    missing = [c for c in todo.configs if not todo.folder.is_finished(c)]
    done = len(todo.configs) - len(missing)
    print(f"{arguments.sweep}: {done} of {len(todo.configs)} runs finished")
    for config in missing:
        print(f"  missing {config.run_id} (seed {config.seed})")
    return 0


def collect(arguments: argparse.Namespace) -> int:
    """Write the table of a sweep."""
    todo = plan(arguments)
    output = arguments.output
    if output is None:
        name = f"{arguments.sweep}.csv"
        # a changed sweep must not take the place of the committed table
        place = todo.folder.path if todo.changed else Path(str(results.RESULTS))
        output = place / name
    provenance = results.collect(
        todo.configs,
        todo.folder,
        output,
        command=command_of(arguments),
        commit=current_commit(),
    )
    print(
        f"{output}: {provenance['finished']} of {provenance['members']} runs, "
        f"{duration(provenance['training_seconds'])} of training"
    )
    if provenance["missing"]:
        print(f"missing: {', '.join(provenance['missing'])}")
    return 0


def measure(arguments: argparse.Namespace) -> int:
    """Measure every estimator at the saved models of a sweep."""
    todo = plan(arguments)
    tables, missing = [], []
    for config in todo.configs:
        epochs = [e for e in range(1, config.epochs + 1) if config.takes_snapshot(e)]
        if not epochs:
            raise ValueError(f"{arguments.sweep} saves no models (snapshot_every = 0)")
        if not todo.folder.is_finished(config):
            missing.append(config.run_id)
            continue
        data = load_images(config.dataset, folder=todo.data_folder)
        for epoch in epochs:
            print(f"{config.run_id}, epoch {epoch}", file=sys.stderr, flush=True)
            tables.append(
                measured_snapshot(
                    config,
                    epoch,
                    todo.folder,
                    data,
                    num_estimates=arguments.estimates,
                    device=arguments.device,
                )
            )
    if not tables:
        raise ValueError(f"no finished run of this sweep in {todo.folder.path}")
    place = todo.folder.path if todo.changed else Path(str(results.RESULTS))
    output = arguments.output or place / f"{arguments.sweep}_measured.csv"
    text = pd.concat(tables, ignore_index=True).to_csv(
        index=False, float_format="%.8g", lineterminator="\n"
    )
    write_atomically(output, text.encode())
    provenance = {
        "command": command_of(arguments).replace(" run ", " measure "),
        "commit": current_commit(),
        "missing": missing,
        "num_estimates": arguments.estimates,
        "device": [device_name(arguments.device)],
        "torch": [torch.__version__],
    }
    said = json.dumps(provenance, indent=1) + "\n"
    write_atomically(output.with_suffix(".json"), said.encode())
    print(f"{output}: {len(tables)} models measured")
    return 0


def command_of(arguments: argparse.Namespace) -> str:
    """The command that makes the runs, without the paths of this machine."""
    words = ["python", "-m", "reinmax_tutorial", "run", arguments.sweep]
    for text in arguments.set:
        words += ["--set", text]
    if arguments.seeds is not None:
        words += ["--seeds", str(arguments.seeds)]
    if arguments.data in NAMES:
        words += ["--data", arguments.data]
    return shlex.join(words)


def current_commit() -> str:
    """The commit of the code, or "unknown" outside a git checkout."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def list_sweeps(arguments: argparse.Namespace) -> int:
    """Print the committed sweeps."""
    for sweep in SWEEPS.values():
        print(f"{sweep.name:18} {sweep.size:18} {sweep.purpose}")
    return 0


COMMANDS = {
    "run": run,
    "status": status,
    "collect": collect,
    "measure": measure,
    "list": list_sweeps,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; 0 when all is done, 2 for bad input, 3 when work is left.

    An interrupt gives 130, as in a shell.
    """
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command](arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
