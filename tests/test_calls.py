"""The calls of a user: axes, masks, draws, dtypes, transforms, refusals, memory."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import reinmax_tutorial as rt
from reinmax_tutorial.categorical import CounterGenerator
from reinmax_tutorial.objectives import random_decoder

PATHWISE = [name for name, record in rt.ESTIMATORS.items() if record.vjp]
NOISY = [name for name in PATHWISE if rt.ESTIMATORS[name].random]
PACKAGE = Path(rt.__file__).parent
every_pathwise = pytest.mark.parametrize("name", PATHWISE)
quiet_compiler = pytest.mark.filterwarnings("ignore:.*should not be instantiated")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


def options_of(name):
    return (
        {"inner_samples": 3} if "inner_samples" in rt.ESTIMATORS[name].options else {}
    )


def sampled(name, logits, weights, **arguments):
    """The sample, and the gradient of ⟨sample, weights⟩ in the logits."""
    x = logits.detach().clone().requires_grad_()
    arguments = {"generator": generator(3), **options_of(name), **arguments}
    z = rt.sample(x, name, **arguments)
    (z * weights).sum().backward()
    return z.detach(), x.grad


# Axes and shapes


@every_pathwise
@pytest.mark.parametrize("dim", [0, 1, -2])
def test_dim(name, dim):
    logits, weights = normal(3, 4, 5), normal(3, 4, 5, seed=2)
    last = [x.movedim(dim, -1) for x in (logits, weights)]
    z, grad = sampled(name, logits, weights, dim=dim)
    expected_z, expected = sampled(name, *last)
    assert (z.sum(dim) == 1).all()
    assert torch.equal(z.movedim(dim, -1), expected_z)
    torch.testing.assert_close(grad.movedim(dim, -1), expected)


@every_pathwise
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 3, 5), (2, 1, 3, 2, 5), (0, 5)])
def test_any_leading_shape(name, shape):
    logits, weights = normal(*shape), normal(*shape, seed=2)
    z, grad = sampled(name, logits, weights)
    flat_z, flat = sampled(name, logits.reshape(-1, 5), weights.reshape(-1, 5))
    assert z.shape == grad.shape == shape
    assert torch.equal(z.reshape(-1, 5), flat_z)
    torch.testing.assert_close(grad.reshape(-1, 5), flat)


@every_pathwise
@pytest.mark.parametrize("layout", ["channels last", "transposed", "expanded"])
def test_memory_layout_is_free(name, layout):
    plain = normal(2, 4, 3, 3)
    weights = normal(2, 4, 3, 3, seed=2)
    if layout == "channels last":
        odd = plain.contiguous(memory_format=torch.channels_last)
    elif layout == "transposed":
        odd = plain.transpose(2, 3).contiguous().transpose(2, 3)
    else:
        odd = plain[:1].expand(2, 4, 3, 3)
        plain = odd.contiguous()
    x = odd.requires_grad_() if odd.is_leaf else odd.detach().requires_grad_()
    z = rt.sample(x, name, dim=1, generator=generator(3), **options_of(name))
    (z * weights).sum().backward()
    expected_z, expected = sampled(name, plain, weights, dim=1)
    assert torch.equal(z, expected_z)
    torch.testing.assert_close(x.grad, expected)


# Masks


@every_pathwise
def test_mask_is_a_smaller_problem(name):
    """A masked category never occurs and gets no gradient; the others do not notice."""
    logits, weights = normal(200, 5), normal(200, 5, seed=2)
    mask = torch.tensor([True, True, False, True, False])
    z, grad = sampled(name, logits, weights, mask=mask)
    assert (z[:, ~mask] == 0).all() and (z.sum(-1) == 1).all()
    assert (grad[:, ~mask] == 0).all() and grad.isfinite().all()
    assert (grad[:, mask] != 0).any(0).all()
    lowered = logits.masked_fill(~mask, -math.inf)
    same_z, same = sampled(name, lowered, weights)
    assert torch.equal(z, same_z)
    torch.testing.assert_close(grad, same)
    if not rt.ESTIMATORS[name].random:
        draw = rt.Draw(z[:, mask])
        _, smaller = sampled(name, logits[:, mask], weights[:, mask], draw=draw)
        torch.testing.assert_close(grad[:, mask], smaller)


def test_mask_in_expected_loss_and_exact_gradient():
    f = random_decoder(2, 4, generator=generator(), dtype=torch.float64)
    mask = torch.tensor([True, False, True, True])
    logits = normal(2, 4)
    exact = rt.exact_gradient(f, logits, mask=mask)
    small = rt.exact_gradient(lambda z: f(widened(z, mask)), logits[:, mask])
    torch.testing.assert_close(exact[:, mask], small)
    assert (exact[:, ~mask] == 0).all()
    lowered = logits.masked_fill(~mask, -math.inf)
    torch.testing.assert_close(rt.exact_gradient(f, lowered), exact)
    for name in rt.ESTIMATORS:
        x = lowered.clone().requires_grad_()
        rt.expected_loss(
            f, x, name, generator=generator(), **options_of(name)
        ).backward()
        assert x.grad.isfinite().all() and (x.grad[:, ~mask] == 0).all(), name


def widened(z, mask):
    wide = z.new_zeros(*z.shape[:-1], len(mask))
    wide[..., mask] = z
    return wide


# Randomness


def test_every_estimator_sees_the_same_draw():
    logits, weights = normal(50, 5), normal(50, 5, seed=2)
    draws = [sampled(name, logits, weights)[0] for name in PATHWISE]
    assert all(torch.equal(z, draws[0]) for z in draws)


@every_pathwise
def test_generator_is_all_that_matters(name):
    logits, weights = normal(50, 5), normal(50, 5, seed=2)
    before = torch.get_rng_state()
    first = sampled(name, logits, weights)
    torch.rand(3)
    second = sampled(name, logits, weights)
    other_z, _ = sampled(name, logits, weights, generator=generator(4))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], other_z)
    torch.set_rng_state(before)
    sampled(name, logits, weights)
    assert torch.equal(torch.get_rng_state(), before)


@every_pathwise
def test_default_generator(name):
    logits, weights = normal(50, 5), normal(50, 5, seed=2)
    results = []
    with torch.random.fork_rng():
        for _ in range(2):
            torch.manual_seed(0)
            results.append(sampled(name, logits, weights, generator=None))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@every_pathwise
def test_two_backward_passes_agree_and_advance_nothing(name):
    x = normal(20, 5).requires_grad_()
    g = generator(3)
    loss = (rt.sample(x, name, generator=g, **options_of(name)) * normal(20, 5)).sum()
    state, default = g.get_state(), torch.get_rng_state()
    first, second = (
        torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(g.get_state(), state)
    assert torch.equal(torch.get_rng_state(), default)


@every_pathwise
def test_draw_from_outside(name):
    """Teacher forcing: the given sample comes back, with the formula's gradient."""
    logits, weights = normal(20, 5), normal(20, 5, seed=2)
    d = rt.draw(logits, generator=generator(8), gumbel=True)
    z, grad = sampled(name, logits, weights, draw=d)
    assert torch.equal(z, d.one_hot)
    if name not in NOISY or name == "gumbel_softmax":  # no noise beside the draw
        torch.testing.assert_close(grad, rt.ESTIMATORS[name].vjp(logits, d, weights))
    z, grad = sampled(name, logits, weights, draw=rt.Draw(d.one_hot))
    assert torch.equal(z, d.one_hot) and grad.isfinite().all()
    as_float = rt.Draw(*(x.float() for x in d))
    z, again = sampled(name, logits, weights, draw=as_float)
    assert z.dtype == torch.float64 and again.dtype == torch.float64


def test_draw_along_dim():
    logits, weights = normal(3, 5, 2), normal(3, 5, 2, seed=2)
    d = rt.draw(logits.movedim(1, -1), generator=generator(), gumbel=True)
    d = rt.Draw(*(x.movedim(-1, 1) for x in d))
    z, _ = sampled("gumbel_softmax", logits, weights, dim=1, draw=d)
    assert torch.equal(z, d.one_hot)


def test_importing_leaves_every_random_state_alone():
    code = """
import random, numpy, torch, importlib, pkgutil
random.seed(1); numpy.random.seed(1); torch.manual_seed(1)
def states():
    noise = numpy.random.get_state()[1].tolist()
    return random.getstate(), noise, torch.get_rng_state()
before = states()
threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
import reinmax_tutorial
for module in pkgutil.walk_packages(reinmax_tutorial.__path__, "reinmax_tutorial."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
after = states()
assert before[:2] == after[:2] and torch.equal(before[2], after[2])
assert (threads, dtype) == (torch.get_num_threads(), torch.get_default_dtype())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


# Precision


@every_pathwise
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, dtype):
    logits = normal(40, 6, dtype=torch.float32).to(dtype)
    weights = normal(40, 6, seed=2, dtype=torch.float32).to(dtype)
    z, grad = sampled(name, logits, weights)
    assert z.dtype == grad.dtype == dtype
    assert (z.sum(-1) == 1).all()
    full_z, full = sampled(name, logits.float(), weights.float())
    assert torch.equal(z.float(), full_z)
    torch.testing.assert_close(grad, full.to(dtype), rtol=0, atol=0)


@every_pathwise
def test_autocast(name):
    """A linear layer in bfloat16 before and after; the formula itself in float32."""
    first, second = torch.nn.Linear(6, 10), torch.nn.Linear(10, 1)
    x = normal(7, 6, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = first(x).unflatten(-1, (2, 5))
        z = rt.sample(logits, name, generator=generator(), **options_of(name))
        loss = second(z.flatten(-2)).sum()
    loss.backward()
    assert logits.dtype == z.dtype == torch.bfloat16
    assert first.weight.grad.dtype == torch.float32
    assert first.weight.grad.isfinite().all() and first.weight.grad.abs().sum() > 0


def test_vjp_under_autocast_is_that_of_float32():
    logits, weights = (normal(7, 5, seed=s, dtype=torch.float32) for s in (1, 2))
    _, plain = sampled("reinmax_rao", logits, weights)
    x = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        z = rt.sample(x, "reinmax_rao", generator=generator(3), inner_samples=3)
        (z * weights).sum().backward()
    torch.testing.assert_close(x.grad, plain, rtol=0, atol=0)


# Transforms


@quiet_compiler
@every_pathwise
def test_compile(name):
    """One graph, no break; at a given draw the compiled gradient is the eager one."""
    logits, weights = normal(6, 5), normal(6, 5, seed=2)
    d = rt.draw(logits, generator=generator(8), gumbel=True)
    arguments = options_of(name)

    def loss(x, one_hot, gumbel):
        z = rt.sample(x, name, draw=rt.Draw(one_hot, gumbel), **arguments)
        return (z * weights).sum()

    torch.compiler.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    gradients = []
    with torch.random.fork_rng():
        for function in (loss, compiled):
            torch.manual_seed(0)
            x = logits.clone().requires_grad_()
            function(x, *d).backward()
            gradients.append(x.grad)
    assert gradients[1].isfinite().all()
    if name not in NOISY or name == "gumbel_softmax":
        torch.testing.assert_close(gradients[1], gradients[0])


@quiet_compiler
def test_compiled_draws():
    """Without draw= a compiled function draws from torch's default generator."""
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(x):
        z = rt.sample(x, "gumbel_rao", inner_samples=3, dim=0, temperature=0.5)
        return z, (z * torch.arange(4.0)[:, None]).sum()

    x = torch.zeros(4, 3000, requires_grad=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z, value = loss(x)
        value.backward()
    assert (z.sum(0) == 1).all() and x.grad.isfinite().all()
    spread = (0.25 * 0.75 / 3000) ** 0.5
    assert ((z.detach().mean(1) - 0.25).abs() < 6 * spread).all()


@every_pathwise
def test_vmap_and_grad(name):
    """Mapping torch.func.grad over a batch equals the batch."""
    logits, weights = normal(6, 2, 5), normal(6, 2, 5, seed=2)
    d = rt.draw(logits, generator=generator(8), gumbel=True)
    arguments = options_of(name)

    def loss(x, one_hot, gumbel, w):
        z = rt.sample(x, name, draw=rt.Draw(one_hot, gumbel), **arguments)
        return (z * w).sum()

    mapped = torch.func.vmap(torch.func.grad(loss), randomness="different")
    gradients = mapped(logits, *d, weights)
    assert gradients.shape == logits.shape and gradients.isfinite().all()
    if name not in NOISY or name == "gumbel_softmax":
        _, expected = sampled(name, logits, weights, draw=d)
        torch.testing.assert_close(gradients, expected)


def test_vmap_draws_for_itself():
    logits = torch.zeros(3000, 4)
    sample = torch.func.vmap(lambda x: rt.sample(x, "reinmax"), randomness="different")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        z = sample(logits)
    assert (z.sum(-1) == 1).all()
    assert ((z.mean(0) - 0.25).abs() < 6 * (0.25 * 0.75 / 3000) ** 0.5).all()


@every_pathwise
def test_member_of_an_ensemble_is_the_member_alone(name):
    """With one key a member, a member's draw and gradient depend on its key alone."""
    logits, weights = normal(3, 8, 2, 5), normal(3, 8, 2, 5, seed=2)
    keys = torch.tensor([11, 22, 33])
    z, grad = sampled(name, logits, weights, generator=CounterGenerator(keys))
    for m in range(3):
        source = CounterGenerator(keys[m])
        alone_z, alone = sampled(name, logits[m], weights[m], generator=source)
        assert torch.equal(z[m], alone_z)
        torch.testing.assert_close(grad[m], alone, rtol=1e-12, atol=1e-12)


# The call of the original package


def test_reinmax_returns_sample_and_probabilities():
    logits, weights = normal(9, 5), normal(9, 5, seed=2)
    z, p = rt.reinmax(logits, tau=1.3, generator=generator(3))
    expected_z, expected = sampled("reinmax", logits, weights, temperature=1.3)
    assert torch.equal(z, expected_z)
    torch.testing.assert_close(p, logits.softmax(-1))
    v = normal(9, 5, seed=4)
    x = logits.clone().requires_grad_()
    z, p = rt.reinmax(x, 1.3, generator=generator(3))
    ((z * weights).sum() + (p * v).sum()).backward()
    through_p = p.detach() * (v - (p.detach() * v).sum(-1, keepdim=True))
    torch.testing.assert_close(x.grad, expected + through_p)


def test_reinmax_soft():
    x = normal(9, 5).requires_grad_()
    z, p = rt.reinmax(x, 1.1, hard=False)
    assert torch.equal(z, p)
    v = normal(9, 5, seed=4)
    (z * v).sum().backward()
    pi = x.detach().softmax(-1)
    torch.testing.assert_close(x.grad, pi * (v - (pi * v).sum(-1, keepdim=True)))


def test_reinmax_below_one_is_allowed():
    z, _ = rt.reinmax(normal(9, 5), 0.5)
    assert (z.sum(-1) == 1).all()
    for hard in (True, False):
        with pytest.raises(ValueError, match="temperature must be .* got 0"):
            rt.reinmax(normal(9, 5), 0, hard=hard)


# Losses


@pytest.mark.parametrize("name", list(rt.ESTIMATORS))
def test_value_and_parameters_of_f(name):
    """The value is f(D); the parameters of f get that value's gradient."""
    layer = torch.nn.Linear(10, 3).double()
    seen = []

    def f(codes):
        seen.append(codes.detach())
        return layer(codes.flatten(-2)).exp().sum(-1)

    logits = normal(4, 2, 5)
    loss = rt.expected_loss(f, logits, name, generator=generator(3), **options_of(name))
    assert loss.shape == (4,)
    loss.sum().backward()
    received = layer.weight.grad.clone()
    layer.zero_grad()
    M = rt.ESTIMATORS[name].fewest_samples
    if name == "exact":
        pi = logits.softmax(-1)
        index = torch.cartesian_prod(torch.arange(5), torch.arange(5))
        codes = torch.nn.functional.one_hot(index, 5).double().unsqueeze(1)
        p = (codes * pi).sum(-1).prod(-1)
        value = (p * f(codes.expand(25, 4, 2, 5))).sum(0)
    elif name == "flip":
        value = f(rt.draw(logits, generator=generator(3)).one_hot)
    else:
        draws = rt.draw(logits.expand(M, 4, 2, 5), generator=generator(3))
        value = f(draws.one_hot).mean(0)
    value.sum().backward()
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(received, layer.weight.grad)


# Refusals

LOGITS = torch.zeros(3, 4)
NAN = torch.tensor([[0.0, math.nan]])
MASKED = torch.full((2, 3), -math.inf)
SAMPLE = [
    ({"estimator": "reimax"}, r"unknown estimator 'reimax'; known: .*reinmax"),
    ({"estimator": "rloo"}, r"rloo .*expected_loss"),
    ({"estimator": "exact"}, r"exact .*expected_loss"),
    ({"temperature": 0}, r"temperature must be a finite number > 0, got 0"),
    ({"temperature": -1.0}, r"> 0, got -1\.0"),
    ({"temperature": math.nan}, r"> 0, got nan"),
    ({"temperature": math.inf}, r"> 0, got inf"),
    ({"temperature": "1"}, r"> 0, got '1'"),
    ({"tau": 1.0}, r"reinmax has no option 'tau'; it has: temperature"),
    ({"estimator": "darn", "tau": 1.0}, r"darn has no option 'tau'; it has: none"),
    ({"estimator": "gumbel_rao", "inner_samples": 0}, r"integer >= 1, got 0"),
    ({"estimator": "gumbel_rao", "inner_samples": 2.5}, r"integer >= 1, got 2\.5"),
    ({"estimator": "gumbel_rao", "inner_samples": True}, r"integer >= 1, got True"),
    (
        {"estimator": "reinmax_cv", "coupling": "tied"},
        r"one of conditional, forward, released, got 'tied'",
    ),
    ({"estimator": "reinmax_cv", "eta": math.inf}, r"eta must be .*got inf"),
    ({"estimator": "gapped_straight_through", "gap": 0.0}, r"gap must be .*got 0\.0"),
    ({"estimator": "weighted_endpoints", "beta": math.nan}, r"beta must be .*got nan"),
    ({"logits": LOGITS[:, :1]}, r"at least 2 categories .*got shape \(3, 1\)"),
    ({"logits": torch.tensor(0.0)}, r"tensor with an axis"),
    ({"logits": LOGITS.long()}, r"floating-point tensor, got torch.int64"),
    ({"logits": [0.0, 1.0]}, r"got \[0\.0, 1\.0\]"),
    ({"logits": NAN}, r"NaN .* got a row whose largest logit is nan"),
    ({"logits": MASKED}, r"masked .* got a row whose largest logit is -inf"),
    ({"logits": -MASKED}, r"got a row whose largest logit is inf"),
    ({"mask": torch.zeros(3, 4, dtype=torch.bool)}, r"masked .*-inf"),
    ({"mask": torch.ones(3, 4)}, r"torch.bool, got torch.float32"),
    ({"mask": torch.ones(5, dtype=torch.bool)}, r"\(3, 4\), got \(5,\)"),
    ({"dim": 2}, r"axis of logits of shape \(3, 4\), got 2"),
    ({"baseline": torch.zeros(5)}, r"broadcast to \(3, 1\), got \(5,\)"),
    ({"baseline": torch.zeros(3, 4)}, r"broadcast to \(3, 1\), got \(3, 4\)"),
    ({"baseline": "mean"}, r"number or a tensor, got 'mean'"),
    ({"draw": rt.Draw(LOGITS[:2])}, r"\(3, 4\), got \(2, 4\)"),
    ({"draw": rt.Draw(LOGITS + 0.25)}, r"exactly one 1"),
    ({"draw": rt.Draw(torch.eye(4)[:3], LOGITS[0])}, r"draw.gumbel .*got \(4,\)"),
]


@pytest.mark.parametrize(("arguments", "message"), SAMPLE, ids=[m for _, m in SAMPLE])
def test_sample_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        rt.sample(**{"logits": LOGITS, "estimator": "reinmax", **arguments})


def linear(codes):
    return codes[..., 0].sum(-1)


LOSS = [
    ({"estimator": "nope"}, r"unknown estimator 'nope'"),
    ({"estimator": "rloo", "num_samples": 1}, r"rloo must be .*>= 2, got 1"),
    ({"estimator": "flip", "num_samples": 3}, r"flip must be 2, got 3"),
    ({"num_samples": 0}, r">= 1, got 0"),
    ({"num_samples": 1.5}, r">= 1, got 1\.5"),
    ({"estimator": "rloo", "baseline": 1.0}, r"rloo takes no baseline"),
    ({"estimator": "runge_kutta", "beta": 1}, r"other than 1, got 1"),
    ({"estimator": "rebar", "temperature": 0.0}, r"> 0, got 0\.0"),
    (
        {"estimator": "exact", "logits": torch.zeros(20, 10)},
        r"10\*\*20 = 1\d{20} .*20000",
    ),
    ({"estimator": "exact", "limit": 0}, r"limit must be .*>= 1, got 0"),
    ({"logits": torch.zeros(4)}, r"\[\*batch, L, C\], got shape \(4,\)"),
    ({"logits": NAN}, r"largest logit is nan"),
    (
        {"f": lambda z: z},
        r"f must map codes \(1, 3, 4\) to values \(1,\), got \(1, 3, 4\)",
    ),
    ({"f": lambda z: 1.0}, r"got <class 'float'>"),
    ({"draw": rt.Draw(LOGITS + 0.25)}, r"exactly one 1"),
]


@pytest.mark.parametrize(("arguments", "message"), LOSS, ids=[m for _, m in LOSS])
def test_expected_loss_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        rt.expected_loss(
            **{"f": linear, "logits": LOGITS, "estimator": "reinmax", **arguments}
        )


def test_exact_gradient_refuses():
    with pytest.raises(ValueError, match=r"4\*\*3 = 64 .*limit of 10"):
        rt.exact_gradient(linear, LOGITS, limit=10)
    with pytest.raises(ValueError, match="largest logit is nan"):
        rt.exact_gradient(linear, NAN)
    with pytest.raises(ValueError, match=r"got \(4,\)"):
        rt.exact_gradient(linear, torch.zeros(4))


def test_validate_false_looks_at_no_value():
    z = rt.sample(NAN, "reinmax", validate=False)
    assert z.shape == NAN.shape
    with pytest.raises(ValueError, match="got 0"):
        rt.sample(NAN, "reinmax", validate=False, temperature=0)


# Memory


class Shapes(TorchDispatchMode):
    """The shape of every tensor that any operation makes."""

    def __init__(self):
        super().__init__()
        self.made = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.made.add(tuple(x.shape))
        return result


def shapes_of(name, logits, **arguments):
    """Every shape made by one forward and one backward pass."""
    x = logits.clone().requires_grad_()
    with Shapes() as seen:
        z = rt.sample(x, name, generator=generator(), **arguments)
        z.backward(torch.ones_like(z))
    return seen.made


@every_pathwise
def test_no_jacobian_is_ever_built(name):
    """C = 37 occurs twice in no shape."""
    made = shapes_of(name, normal(5, 37), **options_of(name))
    assert not [shape for shape in made if shape.count(37) > 1]


@pytest.mark.parametrize("name", ["gumbel_rao", "reinmax_rao", "reinmax_cv"])
def test_memory_is_flat_in_the_number_of_inner_samples(name, monkeypatch):
    monkeypatch.setattr(
        "reinmax_tutorial.estimators.rao_blackwell.TILE", {"cpu": 2**10}
    )
    logits = normal(4, 2, 8)

    def largest(K):
        made = shapes_of(name, logits, inner_samples=K)
        return max(math.prod(shape) for shape in made)

    assert largest(16) == largest(160) == largest(1600) <= 2**10


@pytest.mark.parametrize("name", NOISY)
def test_nothing_of_size_k_is_saved_for_the_backward_pass(name):
    saved = []

    def keep(x):
        saved.append(x.numel())
        return x

    logits = normal(4, 2, 8).requires_grad_()
    K = {"inner_samples": 500} if options_of(name) else {}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        rt.sample(logits, name, generator=generator(), **K)
    assert max(saved) == logits.numel()


# Rooms: who may import whom

ROOMS = {
    "categorical": set(),
    "objectives": set(),
    "data": set(),
    "estimators": {"categorical"},
    "distributions": {"categorical", "estimators"},
    "measurement": {"categorical", "estimators"},
    "vae": {"categorical", "estimators"},
    "plotting": {"estimators"},
    "experiments": {
        *("categorical", "data", "objectives", "estimators"),
        *("distributions", "measurement", "vae"),
    },
}
ROOMS["course"] = {*ROOMS, ""}  # the whole package, as a reader would
ROOMS[""] = {*ROOMS} - {"course"}  # the public names
ROOMS["__main__"] = {"experiments"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(parts):
    """The room of a dotted path below the package; "" is the package itself."""
    return parts[0] if parts and (parts[0] in ROOMS or len(parts) > 1) else ""


def imported_rooms(path):
    """Rooms of ours that a file imports, at any depth of the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            head, *parts = name.split(".")
            if head == "reinmax_tutorial":
                yield room_of(parts)


@pytest.mark.parametrize(
    "path", FILES, ids=[str(p.relative_to(PACKAGE)) for p in FILES]
)
def test_imports_follow_the_arrows(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    room = "" if parts == ("__init__",) else parts[0]
    assert room in ROOMS, f"{room} is not a room of the design"
    allowed = ROOMS[room] | {room}
    assert set(imported_rooms(path)) <= allowed


def test_no_module_bears_the_name_of_what_is_exported():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()}
    assert not (modules | folders) & set(rt.__all__)
    assert "utils" not in {path.stem for path in FILES}
    for path in FILES:
        tree = ast.parse(path.read_text())
        assert path.stem not in {x.name for x in tree.body if hasattr(x, "name")}


def test_nothing_imports_the_book():
    for path in FILES:
        assert "import book" not in path.read_text()
