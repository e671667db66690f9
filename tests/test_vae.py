"""The model: closed forms against enumeration, members against each other."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from reinmax_tutorial.categorical import CounterGenerator
from reinmax_tutorial.vae import VAE, cross_entropy, kl_to_uniform


def small_vae(C=3, L=2, seeds=(0, 1), pixels=6, hidden=(8, 5)):
    return VAE(pixels, C, L, seeds=seeds, hidden=hidden).double()


def images_for(vae, batch=4, seed=0):
    members = len(vae.encoder[0].weight)
    g = torch.Generator().manual_seed(seed)
    pixels = vae.encoder[0].weight.shape[1]
    return torch.rand(members, batch, pixels, dtype=torch.float64, generator=g)


def test_stacked_members_equal_ordinary_networks():
    vae = small_vae()
    x = images_for(vae)
    logits, _ = vae.encode(x)
    codes = F.one_hot(logits.argmax(-1), 3).double()
    pixels = vae.decode(codes)
    for m in range(2):
        h = x[m]
        for i, layer in enumerate(vae.encoder):
            h = F.linear(h if i == 0 else h.relu(), layer.weight[m].T, layer.bias[m, 0])
        torch.testing.assert_close(h.reshape(4, 2, 3), logits[m])
        h = codes[m].flatten(-2)
        for i, layer in enumerate(vae.decoder):
            h = F.linear(h if i == 0 else h.relu(), layer.weight[m].T, layer.bias[m, 0])
        torch.testing.assert_close(h, pixels[m])


def test_logits_have_no_relu():
    logits, _ = small_vae().encode(images_for(small_vae(), batch=50))
    assert (logits < 0).any()


def test_start_depends_on_the_seed_alone_and_keeps_torchs_bounds():
    both, alone = small_vae(seeds=(3, 7)), small_vae(seeds=(7,))
    for a, b in zip(both.parameters(), alone.parameters(), strict=True):
        assert torch.equal(a[1:], b)
    weight = VAE(100, 4, 2).encoder[0].weight
    assert weight.abs().max() <= 0.1 and weight.abs().max() > 0.0999


def test_kl_by_enumeration():
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 2, 3, dtype=torch.float64, generator=g)
    log_pi = logits.log_softmax(-1)
    expected = torch.zeros(5, dtype=torch.float64)
    for code in itertools.product(range(3), repeat=2):
        log_q = sum(log_pi[:, latent, c] for latent, c in enumerate(code))
        expected += log_q.exp() * (log_q + 2 * math.log(3))
    torch.testing.assert_close(kl_to_uniform(logits), expected, atol=1e-12, rtol=0)
    uniform = torch.zeros(2, 3, dtype=torch.float64)
    assert kl_to_uniform(uniform).abs() < 1e-15


def test_kl_gradient_is_the_untempered_softmax_jacobian():
    g = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, dtype=torch.float64, generator=g, requires_grad=True)
    (gradient,) = torch.autograd.grad(kl_to_uniform(logits), logits)
    pi = logits.detach().softmax(-1)
    cotangent = pi.log() + math.log(3) + 1
    jacobian = torch.diag_embed(pi) - pi.unsqueeze(-1) * pi.unsqueeze(-2)
    expected = (jacobian @ cotangent.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)


def test_cross_entropy_is_the_formula_and_survives_large_logits():
    l = torch.tensor([[-900.0, 0.5, 900.0]], dtype=torch.float64)
    x = torch.tensor([[0.0, 0.25, 1.0]], dtype=torch.float64)
    expected = math.log1p(math.exp(0.5)) - 0.25 * 0.5
    assert abs(cross_entropy(l, x).item() - expected) < 1e-12


def test_reconstruction_treats_leading_axes_independently():
    vae = small_vae()
    x = images_for(vae)
    g = torch.Generator().manual_seed(3)
    index = torch.randint(3, (5, 2, 4, 2), generator=g)
    codes = F.one_hot(index, 3).double()
    together = vae.reconstruction(codes, x)
    assert together.shape == (5, 2, 4)
    for s in range(5):
        torch.testing.assert_close(vae.reconstruction(codes[s], x), together[s])
    by_hand = cross_entropy(vae.decode(codes[0]), x)
    torch.testing.assert_close(together[0], by_hand)


def test_exact_negative_elbo_is_the_sum_over_codes():
    vae = small_vae()
    x = images_for(vae)
    exact = vae.exact_negative_elbo(x)
    log_pi = vae.encode(x)[0].log_softmax(-1)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for code in itertools.product(range(3), repeat=2):
        one_hot = F.one_hot(torch.tensor(code), 3).double().expand(2, 4, 2, 3)
        log_q = (log_pi * one_hot).sum((-2, -1))
        expected = expected + log_q.exp() * vae.reconstruction(one_hot, x)
    torch.testing.assert_close(exact.reconstruction, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(exact.loss, exact.reconstruction + exact.kl)


def test_sampled_negative_elbo_agrees_with_the_exact_one():
    vae = VAE(64, 8, 4, seeds=(0,)).double()
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(3)  # codes that matter
        x = images_for(vae, batch=20)
        exact = vae.exact_negative_elbo(x).loss
        many = x.repeat(1, 500, 1)
        noise = CounterGenerator(torch.tensor([5]))
        sampled = vae.negative_elbo(many, generator=noise).loss
    sampled = sampled.reshape(1, 500, 20)
    error = sampled.std(1) / math.sqrt(500)
    assert error.max() > 0
    # 20 images, two-sided, one false alarm in 10**6 calls
    assert ((sampled.mean(1) - exact).abs() <= 5.45 * error).all()


def test_enumeration_refuses_too_many_codes():
    vae = small_vae()
    with pytest.raises(ValueError, match=r"3\*\*2 = 9 codes, above limit=8"):
        vae.exact_negative_elbo(images_for(vae), limit=8)


def test_bound_lies_between_the_likelihood_and_the_elbo():
    vae = small_vae(C=2, L=2)
    x = (images_for(vae) > 0.5).double()
    log_p = torch.full((2, 4, 4), -2 * math.log(2), dtype=torch.float64)
    for i, code in enumerate(itertools.product(range(2), repeat=2)):
        one_hot = F.one_hot(torch.tensor(code), 2).double().expand(2, 4, 2, 2)
        log_p[..., i] -= vae.reconstruction(one_hot, x)
    exact = -log_p.logsumexp(-1)
    with torch.no_grad():
        wide = x.repeat(1, 400, 1)
        noise = CounterGenerator(torch.tensor([1, 2]))
        bounds = [
            vae.importance_weighted_bound(wide, num_samples=s, generator=noise)
            .reshape(2, 400, 4)
            .mean(1)
            for s in (1, 2, 200)
        ]
    elbo = vae.exact_negative_elbo(x).loss
    assert (bounds[0] - elbo).abs().max() < 0.05
    assert (bounds[2] - exact).abs().max() < 0.005
    assert (bounds[2] < bounds[0]).all() and (exact <= elbo).all()


def test_bound_needs_a_sample():
    vae = small_vae()
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        vae.importance_weighted_bound(images_for(vae), num_samples=0)


def test_member_noise_does_not_depend_on_neighbours():
    both, alone = small_vae(seeds=(3, 7)), small_vae(seeds=(7,))
    x = images_for(both)
    keys = torch.tensor([11, 13])
    a = both.negative_elbo(x, generator=CounterGenerator(keys)).loss[1]
    b = alone.negative_elbo(x[1:], generator=CounterGenerator(keys[1:])).loss[0]
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    a = both.importance_weighted_bound(
        x, num_samples=7, generator=CounterGenerator(keys)
    )
    b = alone.importance_weighted_bound(
        x[1:], num_samples=7, generator=CounterGenerator(keys[1:])
    )
    torch.testing.assert_close(a[1], b[0], atol=1e-12, rtol=0)
