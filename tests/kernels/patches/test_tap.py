"""tap_patches in graphs that share, keep, replace or lack the gradient it would like to add its rows to."""

import gc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.patches_cases import in_layout, randn

import kernels
from kernels.patches import ownership, reference

pytestmark = pytest.mark.usefixtures("poisoned")
IDS = torch.tensor([3, 60, 3, 0, 17])
WEIGHT = randn(2, 5, 4, seed=7)


def plain(x, ids):
    return x.view_as(x), reference.sample(x, ids)


def tap(x, ids):
    return kernels.tap_patches(x, ids, impl="cpu")


class KeepsWhatItReturns(torch.autograd.Function):
    """Its gradient is a tensor it saved, and goes on being used."""

    @staticmethod
    def forward(ctx, t):
        ctx.save_for_backward(torch.full_like(t, 3.0))
        return t * 3.0

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0]


def from_numpy(g, memory=[]):  # noqa: B006
    """A gradient in memory of NumPy's, which its owner expects unchanged: the first call's values are given again."""
    if not memory:
        memory.append(np.full(tuple(g.shape), 2.0, dtype=np.float32))
    return torch.from_numpy(memory[0])


def hooked(t, hook):
    t.register_hook(hook)
    return t


def residual(f, x, again):
    t, rows = f(x, IDS)
    return t + F.leaky_relu(t * 1.5), rows


def twice_tapped(f, x, again):
    t, rows = f(x, IDS)
    t, more = f(t, IDS.flip(0)[:3])
    return t * 2.0, rows, more


def into_concat(f, x, again):
    t, rows = f(x, IDS)
    return torch.cat([t, again, t], 1), rows


def swallow(hook_target):
    def build(f, x, again):
        t, rows = f(x, IDS)
        return hook_target(t), rows

    return build


# how the map is used after the tap: f(x, IDS) -> (map, patches); `again` is a map made before it
GRAPHS = {
    "product": lambda f, x, again: (lambda t, r: (t * 2.0, r))(*f(x, IDS)),
    "nothing after": lambda f, x, again: f(x, IDS),
    "patches only": lambda f, x, again: f(x, IDS)[1:],
    "map only": lambda f, x, again: f(x, IDS)[:1],
    "sum with an older map": lambda f, x, again: (lambda t, r: (t + again, r))(*f(x, IDS)),
    "sum with a younger map": lambda f, x, again: (lambda t, r: (t + again * 1.0, r))(*f(x, IDS)),
    "sum with a younger leaf view": lambda f, x, again: (lambda t, r: ((t + again.view_as(again)) * 2.0, r))(
        *f(x, IDS)
    ),
    "two taps of one map": lambda f, x, again: (lambda a, b: (a[0] + b[0] * 2.0, a[1], b[1]))(f(x, IDS), f(x, IDS[:2])),
    "sum of two taps": lambda f, x, again: (lambda a, b: (a[0] + b[0], a[1], b[1]))(f(x, IDS), f(x, IDS[:2])),
    "residual": residual,
    "tap of a tap": twice_tapped,
    "concat": into_concat,
    "expanded gradient": lambda f, x, again: (lambda t, r: (t.sum((2, 3)), r))(*f(x, IDS)),
    "view": lambda f, x, again: (lambda t, r: (t.flatten(1).view(-1), r))(*f(x, IDS)),
    "inside of the map": lambda f, x, again: (lambda t, r: (t[..., 1:-1, 1:-1] * 2.0, r))(*f(x, IDS)),
    "saved and returned": lambda f, x, again: (lambda t, r: (KeepsWhatItReturns.apply(t), r))(*f(x, IDS)),
    "in NumPy's memory": lambda f, x, again: (lambda t, r: (hooked(t, from_numpy) * 1.0, r))(*f(x, IDS)),
    "changed in place": lambda f, x, again: (lambda t, r: (F.leaky_relu_(t * 1.0, 0.3), r))(*f(x, IDS)),
    "convolution": lambda f, x, again: (lambda t, r: (F.conv2d(t, torch.ones(2, 4, 3, 3)), r))(*f(x, IDS)),
}


def outcome(build, f, layout="contiguous", retain=False):
    """Gradients of two leaves, of the maps between, and what a second pass over the same graph adds."""
    leaf, other = (in_layout(randn(2, 4, 8, 8, seed=s), layout).requires_grad_() for s in (0, 1))
    x, again = leaf * 1.25, other * 0.75
    results = build(f, x, again)
    weights = [randn(*r.shape, seed=11 + i) for i, r in enumerate(results)]
    total = sum((r * w).sum() for r, w in zip(results, weights))
    found = []
    for _ in range(2 if retain else 1):
        found += torch.autograd.grad(total, [leaf, other, x], allow_unused=True, retain_graph=retain)
    return found


def same(got, want):
    assert len(got) == len(want)
    for a, b in zip(got, want):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("retain", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_reference(name, retain, layout):
    same(outcome(GRAPHS[name], tap, layout, retain), outcome(GRAPHS[name], plain, layout, retain))


@pytest.mark.parametrize("name", GRAPHS)
def test_equals_the_reference_when_every_gradient_counts_as_shared(name, monkeypatch):
    monkeypatch.setattr(ownership, "_alone", None)
    same(outcome(GRAPHS[name], tap), outcome(GRAPHS[name], plain))


def graph(x):
    t, rows = tap(x, IDS)
    return t, (rows * WEIGHT).sum()


@pytest.mark.parametrize("where", ["tapped", "result"])
def test_gradients_a_hook_keeps_are_not_changed(where):
    kept, copies = [], []

    def keep(g):
        kept.append(g)
        copies.append(g.clone())

    x = randn(2, 4, 8, 8).requires_grad_()
    t, loss = graph(x * 1.0)
    y = t * 2.0
    (t if where == "tapped" else y).register_hook(keep)
    ((y * y).sum() + loss).backward()
    assert len(kept) == 1 and torch.equal(kept[0], copies[0])
    want = 8 * x.detach() + reference_gradient(x)
    torch.testing.assert_close(x.grad, want)


def reference_gradient(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad((reference.sample(x, IDS) * WEIGHT).sum(), x)[0]


def test_an_alias_a_hook_keeps_is_not_changed():
    kept = []
    x = randn(2, 4, 8, 8).requires_grad_()
    t, loss = graph(x * 1.0)
    t.register_hook(lambda g: kept.append((g.flatten()[:9], g.flatten()[:9].clone())))
    ((t * t).sum() + loss).backward()
    assert torch.equal(*kept[0])


def test_retained_gradients_are_those_before_the_rows():
    x = randn(2, 4, 8, 8).requires_grad_()
    t, loss = graph(x * 1.0)
    t.retain_grad()
    ((t * 3.0).sum() + loss).backward()
    assert (t.grad == 3).all()


def test_a_given_gradient_is_not_changed():
    for view in (False, True):
        x = randn(2, 4, 8, 8).requires_grad_()
        t, loss = graph(x * 1.0)
        given = randn(2, 4, 8, 8, seed=3)
        before = given.clone()
        ends = (t.flatten() if view else t, loss)
        torch.autograd.backward(ends, (given.view(-1) if view else given, None))
        assert torch.equal(given, before)
        torch.testing.assert_close(x.grad, given + reference_gradient(x))


def test_gradients_asked_for_at_the_tap():
    x = randn(2, 4, 8, 8).requires_grad_()
    t, loss = graph(x * 1.0)
    at_tap, at_x = torch.autograd.grad((t * 3.0).sum() + loss, [t, x])
    assert (at_tap == 3).all()
    torch.testing.assert_close(at_x, 3 + reference_gradient(x))
    t, loss = graph(x * 1.0)
    (only,) = torch.autograd.grad((t * 3.0).sum() + loss, [t])
    assert (only == 3).all()


def test_leaf_gradients_that_accumulate():
    """AccumulateGrad takes a gradient over without a copy where it can."""
    x, z = (randn(2, 4, 8, 8, seed=s).requires_grad_() for s in (0, 1))
    for _ in range(3):
        t, loss = graph(x * 1.0)
        ((t + z) * 1.0 + 0 * t).sum().add(loss).backward()
    assert (z.grad == 3).all()
    torch.testing.assert_close(x.grad, 3 * (1 + reference_gradient(x)))


# ---- and where nobody shares it, nothing of the map's size is made -----------------------------------------------

CONSUMERS = {
    "product": lambda t: t * 2.0,
    "convolution": lambda t: F.conv2d(t, torch.ones(3, 4, 3, 3), padding=1),
    "norm": lambda t: kernels.instance_norm(t, activation="relu"),
    "padding": lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect"),
    "residual": lambda t: t + t.tanh() * 0.5,
}


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CONSUMERS)
def test_in_place_where_the_gradient_is_autograds_own(name, layout):
    x = in_layout(randn(1, 4, 64, 64), layout).requires_grad_()
    seen = {}
    a = x * 1.0
    a.register_hook(lambda g: seen.update(after=g.data_ptr()))
    t, loss = graph1(a)
    # reads the address and keeps nothing: a hook runs before the tap's own backward
    t.register_hook(lambda g: seen.update(before=g.data_ptr()))
    total = CONSUMERS[name](t).square().sum() + loss
    total.backward()
    assert seen["before"] == seen["after"]


def graph1(a):
    t, rows = tap(a, torch.arange(0, 4096, 5))
    return t, rows.square().sum()


def test_nothing_of_the_maps_size_is_allocated():
    x = randn(1, 8, 128, 128).requires_grad_()
    t, rows = tap(x * 1.0, IDS)
    total = (t * 2.0).sum() + rows.sum()
    gc.collect()
    with torch.profiler.profile(profile_memory=True) as profile:
        total.backward()
    (event,) = [e for e in profile.events() if e.name == "_TapBackward"]

    def most(e):
        return max([e.self_cpu_memory_usage, *(most(child) for child in e.cpu_children)])

    assert most(event) < x.numel()


def test_the_counts_were_taken():
    ownership.prepare()
    assert ownership._alone is not None


def test_nothing_is_measured_while_a_mode_looks_on(monkeypatch):
    from torch.overrides import TorchFunctionMode

    class Looks(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(ownership, "_alone", None)
    monkeypatch.setattr(ownership, "_measured", False)
    with Looks():
        ownership.prepare()
    assert ownership._alone is None and not ownership._measured
    ownership.prepare()
    assert ownership._alone is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_sum_repeated_rows_in_float32(dtype):
    x = torch.zeros(1, 3, 4, 4, dtype=dtype, requires_grad=True)
    t, rows = tap(x * 1.0, torch.full((300,), 9))
    weights = torch.full_like(rows, 2.0**-8)
    ((t * 2.0).sum() + (rows * weights).sum()).backward()
    assert (x.grad.flatten(2)[..., 9] == torch.tensor(2 + 300 / 256).to(dtype)).all()
    assert (x.grad.flatten(2)[..., 0] == 2).all()
