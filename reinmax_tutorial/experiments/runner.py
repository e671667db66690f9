"""Training a list of runs: in stacks, from checkpoint to checkpoint, within a limit."""

from __future__ import annotations

import datetime
import hashlib
import platform
import sys
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from reinmax_tutorial.data import ImageData
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.ensemble import (
    Ensemble,
    member_order,
    stack_key,
)
from reinmax_tutorial.experiments.storage import RunFolder, number, save_atomically

HELD_OUT_SPLITS = ("validation", "test")
GRAPH_STEPS = 25
"""Most steps in one CUDA graph."""


class Progress(NamedTuple):
    """What a run in progress tells: see `train_members`."""

    done: int
    total: int
    loss: float


def stacks(configs: Sequence[TrainConfig], most: int) -> list[list[TrainConfig]]:
    """Runs grouped into ensembles of at most `most` members, in order."""
    groups: dict[tuple, list[TrainConfig]] = {}
    for config in configs:
        groups.setdefault(stack_key(config), []).append(config)
    pieces = []
    for members in groups.values():
        if most > 1:  # equal settings side by side
            members = sorted(members, key=member_order)
        pieces += [members[i : i + most] for i in range(0, len(members), most)]
    return pieces


def stack_name(members: Sequence[TrainConfig]) -> str:
    """Name of an ensemble's checkpoint, from the ids of its members."""
    ids = " ".join(sorted(config.run_id for config in members))
    return hashlib.sha256(ids.encode()).hexdigest()[:16]


def steps_of(config: TrainConfig, train_images: int) -> int:
    """Steps of one run."""
    return config.epochs * (train_images // config.batch_size)


class Stepper:
    """Runs training steps: one by one, or many to a CUDA graph.

    Args:
        ensemble: what to train.
        notify: receives a message when capturing fails and steps run one by one.
    """

    def __init__(self, ensemble: Ensemble, notify: Callable[[str], None] = print):
        self.ensemble, self.graph, self.block = ensemble, None, 1
        if ensemble.device.type == "cuda":
            self.block = largest_divisor(ensemble.steps_per_epoch, GRAPH_STEPS)
            try:
                self.graph = self._capture()
            except Exception as error:  # any failure to capture: train anyway
                notify(f"no CUDA graph ({error}); the steps run one by one, slower")
                ensemble.without_compiling()

    def _capture(self):
        """Warm up on a side stream, restore the state, record a block of steps."""
        before = cloned(self.ensemble.state_dict())
        sums = self.ensemble.sums.clone()
        try:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.ensemble.train_step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for _ in range(self.block):
                    self.ensemble.train_step()
        finally:  # whatever happened, training starts from where it was
            self.ensemble.load_state_dict(before)
            self.ensemble.sums.copy_(sums)
            self.ensemble.forget_gradients()
        return graph

    def epoch(self) -> None:
        """All steps of one epoch."""
        steps = self.ensemble.steps_per_epoch
        if self.graph is None:
            for _ in range(steps):
                self.ensemble.train_step()
        else:
            for _ in range(steps // self.block):
                self.graph.replay()


def largest_divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    return max(d for d in range(1, most + 1) if number % d == 0)


def cloned(state: Any) -> Any:
    """A copy of a nested state that shares no memory with it."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(cloned(value) for value in state)
    return state


def train_members(
    configs: Sequence[TrainConfig],
    data: ImageData,
    folder: RunFolder,
    *,
    device: str = "cpu",
    checkpoint_seconds: float = 30.0,
    deadline: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    notify: Callable[[str], None] = print,
) -> bool:
    """Train one ensemble to its end, or until the deadline.

    Args:
        configs: its members.
        data: the images.
        folder: where runs and checkpoints go.
        device: "cpu", "cuda", ...
        checkpoint_seconds: least time between two checkpoints, taken after an epoch.
        deadline: on the clock of time.monotonic; checked after every epoch.
        progress: called after every epoch.
        notify: receives messages.

    Returns:
        Whether it is finished; otherwise a checkpoint holds the rest.
    """
    first = configs[0]
    torch.backends.cuda.matmul.allow_tf32 = first.precision == "tf32"
    ensemble = Ensemble(configs, data, device=device, compiled=device != "cpu")
    path = folder.checkpoint(stack_name(configs))
    epoch, rows, seconds = 0, [[] for _ in configs], 0.0
    if path.is_file():
        saved = read_checkpoint(path)
        ensemble.load_state_dict(saved["ensemble"])
        epoch, rows, seconds = saved["epoch"], saved["rows"], saved["seconds"]
    stepper = Stepper(ensemble, notify)
    started = last_saved = time.monotonic()

    def save() -> None:
        state = {
            "ensemble": ensemble.state_dict(),
            "epoch": epoch,
            "rows": rows,
            "seconds": seconds + time.monotonic() - started,
        }
        save_atomically(path, state)

    while epoch < first.epochs:
        epoch += 1
        ensemble.begin_epoch(epoch)
        stepper.epoch()
        if first.evaluates(epoch):
            record(ensemble, epoch, rows)
        if first.takes_snapshot(epoch):
            snapshot(ensemble, epoch, folder)
        if progress:
            loss = ensemble.training_metrics()["negative_elbo"].nanmean().item()
            progress(Progress(epoch, first.epochs, loss))
        now = time.monotonic()
        stop = deadline is not None and now >= deadline
        if epoch < first.epochs and (stop or now - last_saved >= checkpoint_seconds):
            save()
            last_saved = time.monotonic()
            if stop:
                return False
    seconds += time.monotonic() - started
    for member, (config, table) in enumerate(zip(ensemble.configs, rows, strict=True)):
        failed = int(ensemble.failed_at[member])
        if failed >= 0:
            notify(f"{config.run_id}: not finite at step {failed}, frozen there")
        timing = {
            "seconds": round(seconds / len(configs), 3),
            "ensemble_of": len(configs),
            "device": device_name(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(
                timespec="seconds"
            ),
            "failed_at_step": failed if failed >= 0 else None,
        }
        folder.write(config, table, timing)
    path.unlink(missing_ok=True)
    return True


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A saved state (ValueError, with what to do, where it cannot be read)."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"the checkpoint {path} cannot be read ({type(error).__name__}); delete it "
            "to start its runs again"
        ) from error


def record(ensemble: Ensemble, epoch: int, rows: list[list]) -> None:
    """Append this epoch's metrics to the tables of the members."""
    config = ensemble.config
    tables = {"train": ensemble.training_metrics()}
    for which, split in enumerate(HELD_OUT_SPLITS):
        images = getattr(ensemble.data, split)
        if len(images):
            final = epoch == config.epochs
            tables[split] = ensemble.held_out_metrics(
                images,
                epoch=epoch,
                which=which,
                bound_samples=config.bound_samples if final else 0,
            )
    for split, metrics in tables.items():
        for metric, values in metrics.items():
            for table, value in zip(rows, values.tolist(), strict=True):
                table.append([epoch, split, metric, number(value)])


def snapshot(ensemble: Ensemble, epoch: int, folder: RunFolder) -> None:
    """Save every member's model as it is after this epoch."""
    state = ensemble.vae.state_dict()
    for member, config in enumerate(ensemble.configs):
        alone = {name: p[member : member + 1].cpu() for name, p in state.items()}
        save_atomically(folder.of(config) / f"snapshot_{epoch:03d}.pt", alone)


def device_name(device: str) -> str:
    """What a device is called by its maker."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def estimated_seconds(
    pieces: Sequence[Sequence[TrainConfig]],
    load: Callable[[TrainConfig], ImageData],
    device: str,
    steps: int = 8,
) -> float:
    """Time a few steps of every kind of ensemble, and extrapolate."""
    costs: dict[tuple, float] = {}
    total = 0.0
    for members in pieces:
        kinds = sorted(
            (m.estimator, m.temperature == 1, m.baseline, m.optimizer) for m in members
        )
        key = (stack_key(members[0]), *[(k, len(list(g))) for k, g in groupby(kinds)])
        data = load(members[0])
        if key not in costs:
            ensemble = Ensemble(members, data, device=device)
            ensemble.begin_epoch(1)
            times = []
            for _ in range(steps):
                start = time.perf_counter()
                ensemble.train_step()
                if device != "cpu":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            costs[key] = sorted(times[2:])[(steps - 2) // 2]
        total += costs[key] * steps_of(members[0], len(data.train))
    return total


class Reporter:
    """Progress for people: a bar on a terminal, a line a minute elsewhere.

    Args:
        total: epochs of all ensembles together.
        done: epochs done in earlier sittings.
    """

    def __init__(self, total: int, *, stream=None):
        self.stream = stream or sys.stderr
        self.on_terminal = self.stream.isatty()
        self.bar = tqdm(
            total=total, unit="epoch", file=self.stream, disable=not self.on_terminal
        )
        self.total, self.count = total, 0
        self.started = self.told = time.monotonic()

    def advance(self, what: str, progress: Progress) -> None:
        """One more epoch is done."""
        self.count += 1
        text = f"{what}, epoch {progress.done}/{progress.total}: {progress.loss:.2f}"
        self.bar.set_description(text)
        self.bar.update(1)
        now = time.monotonic()
        if not self.on_terminal and now - self.told >= 60:
            self.told = now
            left = (now - self.started) / self.count * (self.total - self.count)
            self.say(f"{text} nats, {left / 60:.0f} minutes left")

    def say(self, text: str) -> None:
        """A line that does not tear the bar."""
        if self.on_terminal:
            self.bar.write(text, file=self.stream)
        else:
            print(text, file=self.stream, flush=True)

    def close(self) -> None:
        """Leave the terminal in order."""
        self.bar.close()
