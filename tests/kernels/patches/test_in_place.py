"""tap_patches and changes in place of its map under either name: the gradient of the same code with `index_select`, or
torch's refusal. Never a wrong gradient, never a leaf changed behind autograd's back."""

import ctypes

import pytest
import torch
from support.patches_cases import randn
from torch import nn

import kernels
from kernels.patches import op

IDS = torch.tensor([3, 60, 3, 0, 17])


def plain(x, ids):
    return x, x.flatten(2)[:, :, ids].transpose(1, 2).contiguous()


def tap(impl):
    return lambda x, ids: kernels.tap_patches(x, ids, impl=impl)


def relu_on_the_map(f, h):
    t, rows = f(h, IDS)
    return h + torch.relu_(t), rows


def relu_module_after_the_tap(f, h):
    t, rows = f(h, IDS)
    block = nn.Sequential(nn.ReLU(True), nn.AvgPool2d(2))
    return t, block(t), rows


def relu_on_what_was_given(f, h):
    t, rows = f(h, IDS)
    h.relu_()
    return t * 3.0, h, rows


def both(f, h):
    t, rows = f(h, IDS)
    t.mul_(2.0)
    h[:, 1].clamp_(min=0.0)
    t.add_(h.detach())
    return t * t, rows


def a_part(f, h):
    t, rows = f(h, IDS)
    t[:, 1:, 2:].neg_()
    return h * t, rows


def only_patches_used(f, h):
    t, rows = f(h, IDS)
    t.sigmoid_()
    return (rows,)


def tap_of_a_tap(f, h):
    t, rows = f(h, IDS)
    t, more = f(t, IDS[:2])
    t.relu_()
    t, after = f(t, IDS[2:])
    return t * h, rows, more, after


def two_taps(f, h):
    a, rows = f(h, IDS)
    b, more = f(h, IDS[:2])
    a.relu_()
    return a, b * 2.0, rows, more


def inside_of_a_map(f, h):
    inside = h[..., :7, :7]
    t, rows = f(inside, IDS % 49)
    t.relu_()
    return h, inside * 2.0, rows


def leaf_written_by_no_grad(f, h):
    t, rows = f(h, IDS)
    with torch.no_grad():
        t.zero_()
    return t + h, rows


def chunk(f, h):
    t, rows = f(h.chunk(2)[0], IDS)
    t.relu_()
    return t, rows


def saved_before(f, h):
    y = h * h
    t, rows = f(h, IDS)
    t.relu_()
    return y, rows


def saved_after(f, h):
    t, rows = f(h, IDS)
    y = t * t
    h.relu_()
    return y, rows


def positions_changed(f, h):
    ids = IDS.clone()
    t, rows = f(h, ids)
    ids.zero_()
    return t, rows


CASES = [
    relu_on_the_map,
    relu_module_after_the_tap,
    relu_on_what_was_given,
    both,
    a_part,
    only_patches_used,
    tap_of_a_tap,
    two_taps,
    inside_of_a_map,
    leaf_written_by_no_grad,
    chunk,
    saved_before,
    saved_after,
    positions_changed,
]
REFUSED = {"chunk", "saved_before", "saved_after", "positions_changed"}  # by torch itself


def outcome(build, f, twice):
    """Values and gradients, with `twice` those of a penalty on the gradient; or torch's refusal."""
    x = randn(2, 4, 8, 8).requires_grad_()
    h = x * 1.25
    try:
        results = build(f, h)
        total = sum((r * randn(*r.shape, seed=3 + i)).sum() for i, r in enumerate(results))
        (found,) = torch.autograd.grad(total, x, create_graph=twice)
        if twice:
            (more,) = torch.autograd.grad((found * found).sum() + total, x)
            found = torch.stack([found.detach(), more])
    except RuntimeError as error:
        return str(error)
    return [r.detach() for r in results] + [found]


def check(build, f, twice, may_refuse):
    want, got = outcome(build, plain, twice), outcome(build, f, twice)
    assert (build.__name__ in REFUSED) == isinstance(want, str), want
    if isinstance(got, str):
        assert (may_refuse or isinstance(want, str)) and ("in-place" in got or "inplace" in got), got
    elif not isinstance(want, str):
        for a, b in zip(got, want):
            torch.testing.assert_close(a, b)
    else:
        pytest.fail(f"torch refuses ({want}), the tap does not")


@pytest.mark.parametrize("twice", [False, True], ids=["gradient", "penalty"])
@pytest.mark.parametrize("impl", ["cpu", "reference"])
@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_equals_torch_or_refuses_as_torch(build, impl, twice):
    check(build, tap(impl), twice, may_refuse=False)


@pytest.mark.parametrize("build", CASES, ids=lambda build: build.__name__)
def test_refuses_where_torch_lost_its_private_functions(build, monkeypatch):
    monkeypatch.setattr(op, "_set_meta", None)
    check(build, tap("cpu"), False, may_refuse=True)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_a_leaf_is_protected(impl):
    leaf = randn(2, 4, 8, 8).requires_grad_()
    before = leaf.detach().clone()
    t, _ = kernels.tap_patches(leaf, IDS, impl=impl)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        t.relu_()
    assert torch.equal(leaf.detach(), before)


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_without_gradients_it_is_the_map_itself(impl):
    x = randn(2, 4, 8, 8)
    assert kernels.tap_patches(x, IDS, impl=impl)[0] is x
    with torch.no_grad():
        y = x.clone().requires_grad_()
        assert kernels.tap_patches(y, IDS, impl=impl)[0] is y


@pytest.mark.parametrize("impl", ["cpu", "reference"])
def test_the_map_is_not_copied(impl):
    x = randn(2, 4, 8, 8).requires_grad_()
    t, _ = kernels.tap_patches(x, IDS, impl=impl)
    assert t.data_ptr() == x.data_ptr() and t._base is x and t._version == x._version


COMPILED = """
import sys, torch
sys.path[:0] = ["tests", "tests/kernels/patches"]
import test_in_place as cases
for build in (cases.relu_on_the_map, cases.relu_on_what_was_given, cases.a_part):
    torch._dynamo.reset()
    run = torch.compile(lambda h: build(cases.tap("cpu"), h * 1.0), backend="aot_eager", fullgraph=True)
    x = cases.randn(2, 4, 8, 8).requires_grad_()
    try:
        results, want = run(x), build(cases.plain, x * 1.0)
    except RuntimeError as error:
        assert "inplace" in str(error), error
    else:
        of = [torch.autograd.grad(sum(r.square().sum() for r in f), x)[0] for f in (results, want)]
        torch.testing.assert_close(*of)
"""


def test_compiled_code_refuses_or_is_right(forked):
    """In a process of its own: after a refusal torch calls Python differently, and gradients count as shared."""
    done = forked(COMPILED)
    assert done.returncode == 0, done.stderr


# ---- holders of a gradient's memory that the in-place sum must not write to -----------------------------------------

HOLDERS = {
    "tensor": lambda g: g,
    "alias": lambda g: g.detach(),
    "slice": lambda g: g[0, 0],
    "storage": lambda g: g.untyped_storage(),
    "typed storage": lambda g: g.storage(),
    "array": lambda g: g.numpy(),
    "array of a part": lambda g: g.numpy()[0, 0],
    "dlpack": lambda g: torch.utils.dlpack.to_dlpack(g),
    "buffer": lambda g: memoryview(g.numpy()),
    "tensor on the storage": lambda g: torch.empty(0).set_(g.untyped_storage()),
}


@pytest.mark.filterwarnings("ignore:TypedStorage")
@pytest.mark.parametrize("holder", HOLDERS)
def test_nobody_who_holds_the_memory_sees_it_change(holder):
    x = randn(1, 2, 8, 8).requires_grad_()
    t, rows = kernels.tap_patches(x * 1.0, IDS, impl="cpu")
    kept = []

    def keep(g):
        kept[:] = HOLDERS[holder](g), g.data_ptr()

    t.register_hook(keep)
    ((t * 2.0).sum() + rows.sum()).backward()
    want = torch.full((1, 2, 8, 8), 2.0).flatten(2).index_add(2, IDS, torch.ones(1, 2, 5)).view_as(x)
    torch.testing.assert_close(x.grad, want)
    assert set((ctypes.c_float * x.numel()).from_address(kept[1])) == {2.0}
