"""Noise as a function of key and position: its law, its streams, and compilation."""

import shutil

import pytest
import torch
from oracles import assert_mean

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import CounterGenerator


def uniform(key, *shape, dtype=torch.float32):
    return CounterGenerator(torch.tensor(key)).uniform(shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_law(dtype):
    """Mean, variance, and the covariance with the next number and the next key."""
    n = 200_000
    u = uniform(1, n, dtype=dtype).double()
    assert 0 < u.min() and u.max() < 1
    assert_mean(u[:, None], torch.tensor([0.5]).double(), resolution=0.01)
    centred = u - 0.5
    assert_mean(centred[:, None] ** 2, torch.tensor([1 / 12]).double(), resolution=0.01)
    for other in (centred.roll(1), uniform(2, n, dtype=dtype).double() - 0.5):
        product = (centred * other)[:, None]
        assert_mean(product, torch.zeros(1).double(), resolution=0.01)


def test_bits_are_fair():
    """Each of the 23 bits of a float32 number is one half of the time."""
    words = (uniform(3, 100_000).double() * 2**23).long()
    bits = (words[:, None] >> torch.arange(23)) & 1
    assert_mean(bits.double(), torch.full((23,), 0.5).double(), resolution=0.03)


def test_neighbouring_keys_do_not_overlap():
    """A stream is not its neighbour's, shifted."""
    first = set(uniform(10, 1000, dtype=torch.float64).tolist())
    second = set(uniform(11, 1000, dtype=torch.float64).tolist())
    assert len(first) == len(second) == 1000 and not first & second


def test_position_moves_on_and_repeats_with_the_key():
    one, other = (CounterGenerator(torch.tensor(4)) for _ in range(2))
    pieces = [one.uniform((50,), torch.float64), one.uniform((50,), torch.float64)]
    assert torch.equal(torch.cat(pieces), other.uniform((100,), torch.float64))
    assert one.spawn() != one.spawn()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_member_does_not_depend_on_its_neighbours(dtype):
    together = CounterGenerator(torch.tensor([7, 8, 9])).uniform((3, 5, 7), dtype)
    alone = CounterGenerator(torch.tensor([8])).uniform((1, 5, 7), dtype)
    assert torch.equal(together[1:2], alone)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_to_machine_code_the_numbers_are_the_same():
    """Odd sizes, several shapes: a compiler once dropped the bounds of this loop."""

    def numbers(key, x):
        return CounterGenerator(key).uniform(x.shape, torch.float32)

    compiled = torch.compile(numbers, fullgraph=True)
    key = torch.tensor(12345)
    for shape in [(4, 3, 5), (7, 3), (33, 7)]:
        x = torch.empty(shape)
        assert torch.equal(compiled(key, x), numbers(key, x))


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_to_machine_code_the_estimates_are_the_same():
    """A given draw, no inner noise: compiled and eager agree; with noise, finite."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    draw = rt.draw(logits, generator=torch.Generator().manual_seed(1), gumbel=True)

    def gradient(sample, name):
        theta = logits.clone().requires_grad_()
        z = sample(theta, name)
        (z * torch.arange(5.0)).pow(2).sum().backward()
        return theta.grad

    def eager(theta, name):
        return rt.sample(theta, name, draw=draw)

    compiled = torch.compile(eager, fullgraph=True)
    difference = gradient(compiled, "reinmax") - gradient(eager, "reinmax")
    assert difference.abs().max() < 1e-5
    noisy = gradient(compiled, "reinmax_rao")
    assert noisy.isfinite().all() and noisy.sum(-1).abs().max() < 1e-4
