"""The trainer: optimisers, ensembles, resuming, sweeps, the command line."""

import dataclasses
import functools
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from reinmax_tutorial.data import ImageData, Split, load_images
from reinmax_tutorial.estimators import ESTIMATORS
from reinmax_tutorial.experiments import command_line, runner
from reinmax_tutorial.experiments.command_line import main, parser, plan
from reinmax_tutorial.experiments.config import FIELDS, TrainConfig, parse_setting
from reinmax_tutorial.experiments.ensemble import Ensemble, stack_key, stream_keys
from reinmax_tutorial.experiments.optimisers import DeviceOptimiser, FusedOptimiser
from reinmax_tutorial.experiments.runner import (
    largest_divisor,
    stack_name,
    stacks,
    train_members,
)
from reinmax_tutorial.experiments.storage import RunFolder
from reinmax_tutorial.experiments.sweeps import SWEEPS, fair_search, stored_setting


def tiny_data(images=40, pixels=9, seed=0):
    g = torch.Generator().manual_seed(seed)

    def split(n):
        return Split(
            torch.randint(17, (n, pixels), generator=g, dtype=torch.uint8),
            torch.zeros(n, dtype=torch.int64),
            16,
        )

    return ImageData("digits", split(images), split(0), split(20))


NARROW = (16, 8)  # widths of the hidden layers

TINY = TrainConfig(
    dataset="digits",
    num_categories=3,
    num_latents=2,
    batch_size=10,
    epochs=50,
    inner_samples=3,
    precision="float64",
    learning_rate=1e-3,
)


def trained(configs, epochs=50, data=None, spoil=None):
    ensemble = Ensemble(configs, data or tiny_data(), hidden=NARROW)
    if spoil is not None:
        with torch.no_grad():
            ensemble.vae.decoder[0].weight[spoil] = torch.nan
    for epoch in range(1, epochs + 1):
        ensemble.begin_epoch(epoch)
        for _ in range(ensemble.steps_per_epoch):
            ensemble.train_step()
    return ensemble


def variants():
    change = dataclasses.replace
    return [
        change(TINY, estimator="reinmax", seed=3),
        change(TINY, estimator="reinmax_rao", seed=3, temperature=0.7),
        change(TINY, estimator="gumbel_softmax", seed=1, optimizer="radam"),
        change(TINY, estimator="reinmax_cv", seed=1, coupling="released"),
        change(TINY, estimator="reinmax", seed=4, baseline="learned"),
        change(TINY, estimator="reinmax", seed=5, baseline="constant"),
        change(TINY, estimator="reinmax", seed=6, learning_rate=3e-4),
    ]


@pytest.mark.slow
def test_a_member_equals_the_model_trained_alone():
    configs = [variants()[i] for i in (1, 2, 4, 5)]
    together = trained(configs)
    for config in configs:
        member = together.configs.index(config)
        alone = trained([config])
        assert int(alone.step) == 200
        for a, b in zip(together.vae.parameters(), alone.vae.parameters(), strict=True):
            assert (a[member] - b[0]).abs().max() <= 1e-12, config.run_id


def test_a_nan_in_one_member_leaves_the_others_bit_identical():
    clean, spoilt = trained(variants(), 5), trained(variants(), 5, spoil=2)
    assert spoilt.alive.tolist() == [m != 2 for m in range(7)]
    assert int(spoilt.failed_at[2]) == 0 and (clean.failed_at == -1).all()
    for a, b in zip(clean.vae.parameters(), spoilt.vae.parameters(), strict=True):
        others = [m for m in range(7) if m != 2]
        assert torch.equal(a[others], b[others])
    assert spoilt.training_metrics()["kl"][2].isnan()
    # frozen: what was finite in the failed member is as it started
    start = Ensemble(variants(), tiny_data(), hidden=NARROW)
    assert torch.equal(start.vae.encoder[0].weight[2], spoilt.vae.encoder[0].weight[2])


def test_score_function_members_train_too():
    config = dataclasses.replace(TINY, estimator="rloo", num_samples=2)
    pair = [config, dataclasses.replace(config, seed=1)]
    together, alone = trained(pair, 3), trained(pair[1:], 3)
    for a, b in zip(together.vae.parameters(), alone.vae.parameters(), strict=True):
        assert (a[1] - b[0]).abs().max() <= 1e-12
    with pytest.raises(ValueError, match="members of an ensemble must agree"):
        Ensemble([TINY, config], tiny_data())


def test_the_update_for_gpus_trains_the_same_models(monkeypatch):
    def on_device(self, parameters, kinds, rates, compiled, **options):
        return DeviceOptimiser(parameters, kinds, rates, **options)

    fused = trained(variants(), 5)
    monkeypatch.setattr(Ensemble, "_optimiser", on_device)
    elementwise = trained(variants(), 5)
    elementwise.without_compiling()
    for a, b in zip(fused.vae.parameters(), elementwise.vae.parameters(), strict=True):
        assert (a - b).abs().max() <= 1e-12
    saved = elementwise.state_dict()
    continued = Ensemble(variants(), tiny_data(), hidden=NARROW)
    continued.load_state_dict(runner.cloned(saved))
    for ensemble in (elementwise, continued):
        ensemble.begin_epoch(6)
        ensemble.train_step()
    for a, b in zip(
        elementwise.vae.parameters(), continued.vae.parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_where_no_graph_can_be_captured_the_steps_run_one_by_one():
    if torch.cuda.is_available():
        pytest.skip("here a graph can be captured")
    plain, said = trained(variants(), 1), []
    ensemble = Ensemble(variants(), tiny_data(), hidden=NARROW)
    ensemble.device = torch.device("cuda")  # a promise that this machine breaks
    stepper = runner.Stepper(ensemble, said.append)
    assert len(said) == 1 and "no CUDA graph" in said[0] and "slower" in said[0]
    assert stepper.block == 4
    ensemble.begin_epoch(1)
    stepper.epoch()
    for a, b in zip(plain.vae.parameters(), ensemble.vae.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["adam", "radam"])
def test_both_optimisers_equal_torchs(kind):
    g = torch.Generator().manual_seed(0)

    def fresh():
        return torch.nn.Parameter(start.clone())

    start = torch.randn(2, 3, 4, dtype=torch.float64, generator=g)
    mine, other, whole = fresh(), fresh(), fresh()
    kinds, rates = [kind, "adam"], [3e-3, 1e-2]
    fused, device = (
        o([p], kinds, rates)
        for o, p in ((FusedOptimiser, mine), (DeviceOptimiser, other))
    )
    torchs = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam}
    references = []
    for m in range(2):
        part = torch.nn.Parameter(start[m].clone())
        references.append((part, torchs[kinds[m]]([part], lr=rates[m])))
    for _ in range(20):
        gradient = torch.randn(whole.shape, dtype=torch.float64, generator=g)
        for p, optimiser in ((mine, fused), (other, device)):
            p.grad = gradient.clone()
            optimiser.step()
        for m, (part, reference) in enumerate(references):
            part.grad = gradient[m].clone()
            reference.step()
        expected = torch.stack([part.detach() for part, _ in references])
        torch.testing.assert_close(mine.detach(), expected, atol=1e-12, rtol=0)
        torch.testing.assert_close(other.detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("optimiser", [FusedOptimiser, DeviceOptimiser])
def test_a_dead_member_keeps_its_parameters(optimiser):
    p = torch.nn.Parameter(torch.ones(2, 1, 2))
    stepper = optimiser([p], ["adam", "radam"], [0.1, 0.1])
    for _ in range(8):
        p.grad = torch.tensor([[[1.0, 1.0]], [[torch.nan, 1.0]]])
        stepper.step(torch.tensor([True, False]))
    assert (p[1] == 1).all() and (p[0] < 1).all()


@pytest.mark.parametrize("optimiser", [FusedOptimiser, DeviceOptimiser])
def test_a_known_scale_of_the_gradients_changes_nothing(optimiser):
    """Adam and RAdam, also where eps counts, past the first steps of RAdam."""
    gradients = torch.randn(9, 2, 1, 6, generator=torch.Generator().manual_seed(0))
    gradients = gradients.double() * torch.logspace(-9, 0, 6, dtype=torch.float64)
    ends = []
    for scale in (1.0, 100.0):
        p = torch.nn.Parameter(torch.ones(2, 1, 6, dtype=torch.float64))
        kinds, rates = ["adam", "radam"], [0.1, 0.2]
        stepper = optimiser([p], kinds, rates, gradient_scale=scale)
        for g in gradients:
            p.grad = scale * g
            stepper.step()
        ends.append(p.detach())
    assert (ends[0] - ends[1]).abs().max() <= 1e-12


def test_gradients_are_those_of_the_mean_loss():
    """.grad, divided by the scale that the optimiser is told, is the mean's."""
    config = dataclasses.replace(TINY, estimator="reinmax")
    seen = {}

    class Spy(FusedOptimiser):
        def step(self, alive=None):
            seen["grad"] = [p.grad.clone() for p in self.parameters]

    ensemble = Ensemble([config], tiny_data(), hidden=NARROW)
    scale = ensemble.optimiser.scale
    ensemble.optimiser = Spy(list(ensemble.vae.parameters()), ["adam"], [1.0])
    ensemble.begin_epoch(1)
    images, _ = ensemble.next_batch()
    ensemble.train_step()
    from reinmax_tutorial.categorical import CounterGenerator
    from reinmax_tutorial.estimators import sample
    from reinmax_tutorial.vae import kl_to_uniform

    keys = stream_keys(ensemble.seeds, 0, 0)
    vae = ensemble.vae
    logits, _ = vae.encode(images)
    z = sample(logits, "reinmax", generator=CounterGenerator(keys))
    loss = (vae.reconstruction(z, images) + kl_to_uniform(logits)).mean()
    expected = torch.autograd.grad(loss, list(vae.parameters()))
    for a, b in zip(seen["grad"], expected, strict=True):
        torch.testing.assert_close(a / scale, b, atol=1e-12, rtol=0)


def test_the_constant_baseline_is_the_regression_of_past_draws():
    """Running sums of ⟨u, r⟩, corrected for E|u|², and of E|u|²; κ is their ratio."""
    from reinmax_tutorial.categorical import CounterGenerator, draw
    from reinmax_tutorial.estimators import sample

    config = dataclasses.replace(TINY, estimator="reinmax", baseline="constant")
    ensemble = Ensemble([config], tiny_data(), hidden=NARROW)
    ensemble.begin_epoch(1)
    expected = torch.zeros(2, dtype=torch.float64)
    for _ in range(3):
        images, _ = ensemble.next_batch()
        keys = stream_keys(ensemble.seeds, 0, ensemble.step)
        logits = ensemble.vae.encode(images)[0].detach().requires_grad_()
        z = sample(logits, "reinmax", generator=CounterGenerator(keys))
        loss = ensemble.vae.reconstruction(z, images).sum()
        (r,) = torch.autograd.grad(loss, logits)
        u = z.detach() - logits.detach().softmax(-1)
        same = draw(logits, generator=CounterGenerator(keys)).one_hot
        assert torch.equal(same, z.detach())
        pi = logits.detach().softmax(-1)
        square = (pi * (1 - pi)).sum()
        constant = ensemble.groups[0].constant
        kappa = constant.kappa.detach().clone().flatten()[0]
        product = (u * r).sum() + kappa * (square - (u * u).sum())
        expected = 0.99 * expected + 0.01 * torch.stack([product, square])
        ensemble.train_step()
        sums = torch.cat([constant.numerator, constant.denominator]).flatten()
        torch.testing.assert_close(sums, expected, atol=1e-12, rtol=1e-12)
        ratio = (expected[0] / expected[1]).reshape(constant.kappa.shape)
        torch.testing.assert_close(constant.kappa.detach(), ratio)


def test_order_covers_every_image_once_and_depends_on_seed_and_epoch():
    pair = [TINY, dataclasses.replace(TINY, seed=1)]
    ensemble = Ensemble(pair, tiny_data())
    orders = []
    for epoch in (1, 2):
        ensemble.begin_epoch(epoch)
        orders += [row.clone() for row in ensemble.order]
    assert all(sorted(row.tolist()) == list(range(40)) for row in orders)
    assert len({tuple(row.tolist()) for row in orders}) == 4
    same = [TINY, dataclasses.replace(TINY, estimator="straight_through")]
    ensemble = Ensemble(same, tiny_data())
    ensemble.begin_epoch(1)
    assert torch.equal(ensemble.order[0], ensemble.order[1])


def test_streams_do_not_collide():
    seeds = torch.arange(20)
    keys = [stream_keys(seeds, p, s) for p in range(4) for s in range(50)]
    assert len(set(torch.cat(keys).tolist())) == 20 * 4 * 50
    step = torch.tensor(7)
    assert torch.equal(stream_keys(seeds, 1, 7), stream_keys(seeds, 1, step))


# --- settings and sweeps


def test_run_ids_are_stable_and_tell_settings_apart():
    assert TINY.run_id == dataclasses.replace(TINY).run_id
    ids = {dataclasses.replace(TINY, seed=s).run_id for s in range(50)}
    assert len(ids) == 50 and all(i.startswith("reinmax-") for i in ids)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"estimator": "reinmx"}, "estimator must be one of"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"inner_samples": 0}, "inner_samples must be at least 1, got 0"),
        ({"num_categories": 1}, "num_categories must be at least 2, got 1"),
        ({"coupling": "loose"}, "coupling must be one of conditional, forward"),
        ({"baseline": "best"}, "baseline must be one of none, constant, learned"),
        ({"estimator": "rloo"}, "num_samples of rloo must be at least 2"),
        ({"num_samples": 2}, "and 1 in training, got 2"),
        (
            {"estimator": "rloo", "num_samples": 2, "baseline": "learned"},
            "is for pathwise estimators",
        ),
        ({"seed": -1}, "seed must be in 0"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_settings_from_the_command_line():
    assert parse_setting("learning_rate=3e-4") == ("learning_rate", 3e-4)
    assert parse_setting("binarised=true") == ("binarised", True)
    assert parse_setting("epochs=3") == ("epochs", 3)
    for text in ("epochs", "epoch=3", "epochs=three", "binarised=1"):
        with pytest.raises(ValueError):
            parse_setting(text)


def test_sweeps_are_those_announced():
    sizes = {n: len(s.configs()) for n, s in SWEEPS.items() if not s.search}
    assert sizes == {
        "smoke": 4 * 2,
        "short": 7 * 3,
        "baseline_short": 4 * 3 * 3,
        "paper": (6 * 8 + 1) * 10,
        "paper_beta": 2 * 29 * 3 * 5,
        "paper_checkpoints": 10,
        "fair_search": 2 * 10 * 12,
        "coupling": 3 * 5 * 3 * 5,
        "baseline": 4 * 3 * 3 * 10,
    }
    for sweep in SWEEPS.values():
        if not sweep.search:
            ids = [config.run_id for config in sweep.configs()]
            assert len(set(ids)) == len(ids)


def test_stored_settings_are_those_of_the_page():
    cv = stored_setting("reinmax_cv", "4x24")
    assert (cv.learning_rate, cv.temperature, cv.eta) == (5e-4, 1.3, 1.5)
    assert (cv.optimizer, cv.coupling) == ("adam", "released")
    rao = stored_setting("gumbel_rao", "64x8")
    assert (rao.learning_rate, rao.temperature, rao.optimizer) == (7e-4, 2.0, "adam")
    assert (rao.num_categories, rao.num_latents) == (64, 8)
    betas = {config.beta for config in SWEEPS["paper_beta"].configs()}
    assert len(betas) == 29 and min(betas) == -0.2 and max(betas) == 1.2


def test_fair_takes_the_best_setting_of_each_method():
    import pandas as pd

    rows = [
        {
            "run_id": c.run_id,
            "epochs": 50,
            "epoch": 50,
            "split": "validation",
            "metric": "negative_elbo",
            "value": abs(c.learning_rate - 7e-4) + abs(c.temperature - 1.0),
        }
        for c in fair_search()
    ]
    finals = SWEEPS["fair"].configs(searched=pd.DataFrame(rows))
    assert len(finals) == 2 * 10 * 20
    assert {c.learning_rate for c in finals} == {7e-4}
    assert {c.bound_samples for c in finals} == {100}
    with pytest.raises(ValueError, match="the table of fair_search lacks"):
        SWEEPS["fair"].configs(searched=pd.DataFrame(rows[1:]))


def test_stacks_group_what_can_train_together():
    configs = [
        dataclasses.replace(TINY, seed=s, estimator=name, num_samples=n)
        for s in range(3)
        for name, n in (("reinmax", 1), ("straight_through", 1), ("rloo", 2))
    ]
    pieces = stacks(configs, 80)
    assert sorted(map(len, pieces)) == [3, 6]
    assert all(len({stack_key(c) for c in piece}) == 1 for piece in pieces)
    assert [len(piece) for piece in stacks(configs, 1)] == [1] * 9
    assert stack_name(configs) == stack_name(configs[::-1])
    assert largest_divisor(600, 50) == 50 and largest_divisor(500, 50) == 50


def test_every_estimator_of_the_table_can_train():
    for name, record in ESTIMATORS.items():
        M = record.fewest_samples
        config = dataclasses.replace(TINY, estimator=name, num_samples=M, epochs=1)
        ensemble = trained([config], 1)
        assert ensemble.alive.all(), name


# --- runs on disk and the command line

QUICK = ["--seeds", "1", "--set", "epochs=3", "--set", "inner_samples=2"]


@pytest.mark.slow
def test_run_status_collect(tmp_path, capsys):
    runs, table = str(tmp_path / "runs"), tmp_path / "table.csv"
    where = [*QUICK, "--runs", runs]
    assert main(["status", "smoke", *where]) == 0
    assert "smoke: 0 of 4 runs finished" in capsys.readouterr().out
    assert main(["run", "smoke", *where]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 runs to train" in out and "model-steps" in out and "about" in out
    assert "epoch 1  last epoch" in out and "reinmax_cv" in out
    assert main(["run", "smoke", *where]) == 0
    assert "all 4 runs are finished; nothing to do" in capsys.readouterr().out
    assert main(["collect", "smoke", *where, "--output", str(table)]) == 0
    first = table.read_bytes()
    header = first.split(b"\n")[0].decode().split(",")
    assert header == ["run_id", *FIELDS, "epoch", "split", "metric", "value"]
    assert b"nan" not in first
    # a changed sweep does not take the place of the committed table
    assert main(["collect", "smoke", *where]) == 0
    assert (tmp_path / "runs" / "smoke.csv").read_bytes() == first
    # one run less, and it says so
    victim = next((tmp_path / "runs").glob("reinmax_rao-*"))
    (victim / "metrics.csv").unlink()
    capsys.readouterr()
    assert main(["status", "smoke", *where]) == 0
    assert f"missing {victim.name} (seed 0)" in capsys.readouterr().out
    assert main(["run", "smoke", *where]) == 0
    assert "1 of 4 runs to train" in capsys.readouterr().out
    assert main(["collect", "smoke", *where, "--output", str(table)]) == 0
    assert table.read_bytes() == first


@pytest.fixture
def narrow(monkeypatch):
    """The runner trains narrow models."""
    made = functools.partial(Ensemble, hidden=NARROW)
    monkeypatch.setattr(runner, "Ensemble", made)


def test_an_ensemble_run_gives_the_table_of_single_runs(tmp_path, narrow):
    data = tiny_data()
    configs = [dataclasses.replace(c, epochs=4, evaluate_every=2) for c in variants()]
    tables = []
    for most in (1, 80):
        folder = RunFolder(tmp_path / str(most))
        for piece in stacks(configs, most):
            assert train_members(piece, data, folder)
        tables.append([folder.rows(config) for config in configs])
    assert tables[0] == tables[1]
    assert len(tables[0][0]) == 3 * 2 * 3  # epochs 1, 2, 4; two splits; 3 metrics


def test_a_failed_member_is_reported_and_its_numbers_are_missing(tmp_path, narrow):
    configs = [dataclasses.replace(TINY, epochs=2, learning_rate=1e300), TINY]
    configs[1] = dataclasses.replace(TINY, epochs=2)
    folder, said = RunFolder(tmp_path), []
    assert train_members(configs, tiny_data(), folder, notify=said.append)
    (message,) = said
    assert configs[0].run_id in message and "not finite at step" in message
    assert folder.rows(configs[0])[-1][-1] == "nan"
    assert folder.rows(configs[1])[-1][-1] != "nan"
    assert folder.timing(configs[0])["failed_at_step"] is not None


def test_a_limit_stops_after_a_checkpoint_and_the_rest_follows(tmp_path, narrow):
    data, config = tiny_data(), dataclasses.replace(TINY, epochs=6, evaluate_every=2)
    whole, pieces = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "pieces")
    assert train_members([config], data, whole)
    sittings = 0
    while not train_members([config], data, pieces, deadline=time.monotonic()):
        sittings += 1
        assert pieces.checkpoint(stack_name([config])).is_file()
    assert sittings == 5
    assert whole.rows(config) == pieces.rows(config)
    assert not pieces.checkpoint(stack_name([config])).exists()


def test_snapshots_are_models_of_one_member(tmp_path, narrow):
    change = dataclasses.replace
    configs = [change(TINY, epochs=5, snapshot_every=2, seed=seed) for seed in range(2)]
    folder = RunFolder(tmp_path)
    assert train_members(configs, tiny_data(), folder)
    for config in configs:
        names = sorted(p.name for p in folder.of(config).glob("*.pt"))
        assert names == ["snapshot_001.pt", "snapshot_002.pt", "snapshot_004.pt"]
    weights = torch.load(folder.of(configs[1]) / names[-1], weights_only=True)
    assert weights["encoder.0.weight"].shape == (1, 9, 16)


def killed_at_a_random_moment(words, checkpoint, moments):
    """Start the command, let it save a state, and kill it within half a second."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-m", "reinmax_tutorial", *words],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
            break
        time.sleep(0.01)
    time.sleep(moments.uniform(0, 0.5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_three_times_it_ends_with_the_same_bytes(tmp_path):
    words = ["smoke", "--seeds", "1"]
    for change in (
        "estimator=reinmax_rao",
        "epochs=12",
        "inner_samples=5",
        "batch_size=100",
    ):
        words += ["--set", change]
    tables = []
    for name in ("whole", "killed"):
        where = ["--runs", str(tmp_path / name)]
        run = ["run", *words, *where, "--checkpoint", "0"]
        if name == "killed":
            todo = plan(parser().parse_args(run))
            checkpoint = todo.folder.checkpoint(stack_name(todo.configs))
            moments = random.Random(0)
            for _ in range(3):
                killed_at_a_random_moment(run, checkpoint, moments)
        assert main(run) == 0
        output = tmp_path / f"{name}.csv"
        assert main(["collect", *words, *where, "--output", str(output)]) == 0
        tables.append(output.read_bytes())
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["run", "smok"], "unknown sweep 'smok'; known: smoke, short"),
        (["run", "smoke", "--set", "tau=1"], "expected field=value, got 'tau=1'"),
        (["run", "smoke", "--set", "temperature=-1"], "temperature must be above 0"),
        (["run", "smoke", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["run", "smoke", "--limit", "0"], "--limit must be above 0 minutes, got 0"),
        (["run", "smoke", "--data", "/nowhere"], "--data /nowhere is neither a folder"),
    ],
)
def test_bad_words_are_refused(words, message, tmp_path, capsys):
    assert main([*words, "--runs", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_to(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["run", "smoke", "--runs", str(tmp_path / "file" / "runs")]) == 2
    err = capsys.readouterr().err
    assert "cannot be written to" in err and "choose another one with --runs" in err


def test_a_sweep_that_is_not_finished_cannot_be_collected_from_nothing(
    tmp_path, capsys
):
    assert main(["collect", "smoke", "--runs", str(tmp_path)]) == 2
    assert "no finished run of this sweep" in capsys.readouterr().err


def test_list_names_every_sweep(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SWEEPS)


def test_digits_are_the_default_of_smoke_and_folders_can_replace_them():
    assert {c.dataset for c in SWEEPS["smoke"].configs()} == {"digits"}
    assert len(load_images().train) == 1497


def test_smoke_is_shorter_on_large_data_unless_told_otherwise():
    words = ["run", "smoke", "--data", "mnist", "--set", "epochs=3"]
    todo = plan(parser().parse_args(words))
    assert todo.changed
    fields = {(c.dataset, c.batch_size, c.epochs) for c in todo.configs}
    assert fields == {("mnist", 400, 3)}


def test_measure_at_saved_models(tmp_path, capsys, monkeypatch):
    few = functools.partial(
        command_line.measured_snapshot, estimators=("reinmax",), num_images=5
    )
    monkeypatch.setattr(command_line, "measured_snapshot", few)
    words = ["smoke", "--seeds", "1", "--runs", str(tmp_path)]
    for change in ("estimator=reinmax", "epochs=1", "num_latents=2", "batch_size=300"):
        words += ["--set", change]
    assert main(["measure", *words]) == 2
    assert "saves no models" in capsys.readouterr().err
    words += ["--set", "snapshot_every=1"]
    assert main(["measure", *words]) == 2
    assert "no finished run" in capsys.readouterr().err
    assert main(["run", *words]) == 0
    assert main(["measure", *words]) == 0
    lines = (tmp_path / "smoke_measured.csv").read_text().splitlines()
    assert lines[0].startswith("run_id,seed,epoch,estimator,num_samples,temperature")
    assert len(lines) > 5 and "nan" not in lines[1]


def test_a_spoilt_checkpoint_is_named(tmp_path, narrow):
    folder = RunFolder(tmp_path)
    path = folder.checkpoint(stack_name([TINY]))
    path.parent.mkdir()
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="cannot be read .* delete it to start"):
        train_members([TINY], tiny_data(), folder)
    assert path.read_bytes() == b"not a checkpoint"


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setitem(command_line.COMMANDS, "list", interrupted)
    assert main(["list"]) == 130
    assert "the same command continues" in capsys.readouterr().err
