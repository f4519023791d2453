"""patch_nce_loss where inputs are empty, infinite, left out or undefined: what the float64 formula makes of them, by
every implementation but triton, whose cases are test_triton_edges.py."""

import pytest
import torch
import torch.nn.functional as F
from support.nce_edges import BATCHES, CASES, FORMS, NAMES, hold, hold_empty
from support.nce_numerics import problem

import kernels
from kernels.nce.spec import Layer, Needs, Spec, new_gradients

INF = float("inf")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])

pytestmark = pytest.mark.usefixtures("poisoned")  # memory nobody wrote is NaN


@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_hard_numbers(isa, form, case, dtype):
    hold("cpu", form, case, dtype)


@DTYPES
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", FORMS)
def test_hard_numbers_in_the_reference(form, case, dtype):
    hold("reference", form, case, dtype)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_negative_left_is_what_cross_entropy_has(impl, normalize):
    """Loss 0 and gradient 0, of first and of second order."""
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 2])  # negatives are patches of the same class: the last has none
    log_weight = torch.where(labels[:, None] == labels, 0.0, -INF)
    given = {name: t.float() for name, t in problem(1, 8, 4).items()}

    def ours(q, k):
        return kernels.patch_nce_loss(
            q, k, temperature=1.0, log_weight=log_weight, normalize=normalize, reduction="none", impl=impl
        )[0]

    def entropy(q, k):
        if normalize:
            q, k = (t / (t.norm(dim=-1, keepdim=True) + 1e-7) for t in (q, k))
        z = (q @ k.mT)[0]
        negatives = (z + log_weight).masked_fill(torch.eye(8, dtype=torch.bool), -INF)
        all_ = torch.cat([z.diagonal()[:, None], negatives], 1)
        return F.cross_entropy(all_, torch.zeros(8, dtype=torch.long), reduction="none")

    found = []
    for f in (ours, entropy):
        q = given["q"].clone().requires_grad_()
        losses = f(q, given["k"])
        (first,) = torch.autograd.grad(losses.sum(), q, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), q)
        found.append((losses, first, second))
    assert found[0][0][7] == 0 and not found[0][1][0, 7].any()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("batches", BATCHES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_layers_without_images(impl, form, batches, rows):
    if form == "image" and rows == 1:
        return  # refused: no negatives
    hold_empty(impl, form, batches, rows)


@pytest.mark.parametrize("form", FORMS)
def test_the_registered_ops_write_everything(form):
    """Every output, for every choice of gradients, with and without images: what torch.compile calls."""
    for batches in BATCHES:
        layers = [problem(b, 4, 5, weights=True, **FORMS[form]) for b in batches]
        layers = [Layer(*(None if n not in t else t[n].float() for n in (*NAMES, "similarity_weight"))) for t in layers]
        lists, options = [list(t) for t in zip(*layers)], (*Spec(0.5, True, False), "cpu")
        loss, stats, *dq_unscaled = torch.ops.fused_i2i.nce_forward(*lists, [True] * len(layers), *options)
        assert all(t.isfinite().all() for t in (loss, stats, *dq_unscaled))
        for need in ((True, True, form != "image", True), (True, False, False, False), (False, True, False, False)):
            needs = list(need) * len(layers)
            grads = torch.ops.fused_i2i.nce_backward(torch.ones_like(loss), *lists, stats, dq_unscaled, needs, *options)
            assert all(t.isfinite().all() for t in grads)
            for layer, found in zip(layers, zip(*[iter(grads)] * 4)):
                new = new_gradients(layer, Needs(*need))
                assert [t.shape for t, n in zip(found, need) if n] == [t.shape for t in new if t is not None]


def test_compiled_with_an_empty_layer():
    torch._dynamo.reset()

    def op(q0, q1, negatives):
        return kernels.patch_nce_loss(
            [q0, q1], [q0, q1], negatives=[negatives, negatives], reduction="sum", normalize=True
        )

    inputs = [torch.randn(b, 4, 5).requires_grad_() for b in (0, 2)] + [torch.randn(9, 5).requires_grad_()]
    results = []
    for f in (op, torch.compile(op, fullgraph=True, backend="aot_eager")):
        loss = f(*inputs)
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    torch.testing.assert_close(*results)


GUARDED = """
import ctypes, mmap
import torch, kernels
from kernels import _native

kept = []

def at_the_end(t):
    size, page = t.numel() * t.element_size(), mmap.PAGESIZE
    pages = -(-size // page) * page
    memory = mmap.mmap(-1, pages + page)
    kept.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages
    assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), page, 0)  # PROT_NONE
    t = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages - size).view(t.shape).copy_(t)
    return t.requires_grad_()

for level in (*_native.load().supported(), *_native.load().emulated()):
    _native.select_isa(level)
    for b, s, c, m in ((1, 33, 32, None), (2, 17, 37, None), (1, 5, 64, 135), (1, 40, 6, 50)):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            shapes = [(b, s, c), (b, s, c), *([(m, c)] if m else [])]
            given = [at_the_end(torch.randn(shape).to(dtype)) for shape in shapes]
            for normalize in (False, True):
                loss = kernels.patch_nce_loss(
                    *given[:2], negatives=given[2] if m else None, normalize=normalize, detach_keys=False
                )
                torch.autograd.grad(loss, given)
print("read", len(kept))
"""


def test_nothing_beyond_a_tensor_is_read(forked):
    """Each tensor ends where memory ends: a vector or a tile of rows that are not there would end the process."""
    done = forked(GUARDED)
    assert done.returncode == 0 and "read" in done.stdout, (done.returncode, done.stderr)
