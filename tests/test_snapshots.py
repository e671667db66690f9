"""Bias and variance at saved models: the table of f, and the rows."""

import torch
from torch.nn import functional as F

from reinmax_tutorial.data import ImageData, Split
from reinmax_tutorial.estimators import exact_gradient
from reinmax_tutorial.experiments.config import TrainConfig
from reinmax_tutorial.experiments.snapshots import (
    TabulatedLoss,
    exact_from_table,
    measured_snapshot,
)
from reinmax_tutorial.experiments.storage import RunFolder, save_atomically
from reinmax_tutorial.vae import VAE


def test_the_table_is_the_loss_and_its_gradient():
    vae = VAE(6, 3, 2, hidden=(8, 5)).double()
    g = torch.Generator().manual_seed(0)
    x = torch.rand(4, 6, dtype=torch.float64, generator=g)
    index = torch.randint(3, (5, 4, 2), generator=g)
    codes = F.one_hot(index, 3).double().requires_grad_()

    def f(z):
        return vae.reconstruction(z.unsqueeze(1), x.unsqueeze(0)).squeeze(1)

    table = TabulatedLoss(vae, x)
    a, b = f(codes), table(codes)
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    (slope,) = torch.autograd.grad(a.sum(), codes)
    (looked_up,) = torch.autograd.grad(b.sum(), codes)
    torch.testing.assert_close(slope, looked_up, atol=1e-12, rtol=0)
    logits = torch.randn(4, 2, 3, dtype=torch.float64, generator=g)
    mine = exact_from_table(table, logits, logits.softmax(-1))
    torch.testing.assert_close(mine, exact_gradient(f, logits), atol=1e-12, rtol=0)


def test_rows_of_a_saved_model(tmp_path):
    folder = RunFolder(tmp_path)
    config = TrainConfig(num_categories=2, num_latents=2, snapshot_every=1)
    vae = VAE(6, 2, 2)
    save_atomically(folder.of(config) / "snapshot_001.pt", vae.state_dict())
    pixels = torch.arange(60, dtype=torch.uint8).reshape(10, 6)
    split = Split(pixels, torch.zeros(10, dtype=torch.int64), 255)
    data = ImageData("mnist", split, split, split)
    names = ("straight_through", "reinmax", "gumbel_softmax")
    rows = measured_snapshot(
        config, 1, folder, data, estimators=names, num_images=5, num_estimates=50
    )
    assert set(rows["estimator"]) == set(names)
    assert set(rows["run_id"]) == {config.run_id} and set(rows["epoch"]) == {1}
    exact = rows[(rows["metric"] == "variance") & (rows["estimator"] == "reinmax")]
    assert (exact["std_error"] == 0).all()
    assert rows["value"].notna().all()
