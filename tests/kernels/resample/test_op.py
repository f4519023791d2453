"""blur_downsample, blur_upsample, reflection_pad2d and their modules: arguments, derivatives, torch.compile."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.patches_cases import in_layout
from support.resample_cases import CASES, PADS, UP, down, planes
from torch import nn

import kernels
from kernels.resample import spec, taps

X = torch.zeros(2, 4, 6, 5)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("plane", [(1, 1), (5, 9), (8, 12)], ids=str)
def test_reference_is_the_published_form(case, plane):
    x = planes(case, 2, 3, *plane, torch.float64)
    torch.testing.assert_close(case.ours(x), case.published(x), rtol=1e-13, atol=1e-13)
    # numeric derivatives cost the square of the size: two planes, of the largest one
    x = x[1:, : 1 if plane[0] > 5 else 2].clone().requires_grad_()
    assert torch.autograd.gradcheck(case.ours, x)
    assert torch.autograd.gradgradcheck(case.ours, x)


@pytest.mark.parametrize("case", [down(3), down(4), UP, PADS[2]], ids=lambda case: case.name)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_derivatives_of_every_order_are_fused(case, layout, monkeypatch):
    """Of sum(y^4), second derivative along a direction; the reference must not be asked."""
    results = []
    for f, dtype in ((case.ours, torch.float32), (case.published, torch.float64)):
        x = in_layout(planes(case, 1, 17, 7, 6, torch.float32) / 4, layout).to(dtype).requires_grad_()
        (first,) = torch.autograd.grad(f(x).pow(4).sum(), x, create_graph=True)
        results += [first, *torch.autograd.grad(first.sin().sum(), x)]
        monkeypatch.setattr("kernels.resample.reference.resample", None)
    torch.testing.assert_close(results[0].double(), results[2], rtol=1e-5, atol=1e-5 * results[2].abs().max().item())
    torch.testing.assert_close(results[1].double(), results[3], rtol=1e-4, atol=1e-4 * results[3].abs().max().item())


def test_transposed_is_the_transposed_matrix():
    """<A x, y> = <x, A^T y>, with small whole numbers, so that both are exact."""
    for case in CASES:
        x = torch.randint(-4, 5, planes(case, 1, 2, 8, 9, torch.float32).shape).float().requires_grad_()
        y = case.ours(x)
        other = torch.randint(-4, 5, y.shape).float()
        (back,) = torch.autograd.grad(y, x, other)
        assert (y.double() * other).sum() == (x.double() * back).sum()


def test_one_place_writes_the_tables():
    """Every output's taps sum to 1, borders included; the transposed table holds the same entries."""
    for kind, parameters in ((spec.PAD, (2, 3)), (spec.DOWN, (5, 0)), (spec.UP, (0, 0))):
        plain, transposed = (taps.table(kind, parameters, 11, t) for t in (False, True))
        for j in range(plain.outputs):
            assert plain.weight[plain.first[j] : plain.first[j + 1]].sum() == 1
        matrix, other = (dense(t, n) for t, n in ((plain, 11), (transposed, plain.outputs)))
        assert torch.equal(matrix, other.T)
        assert plain.groups > 0 and transposed.groups > 0


def dense(taps, inputs):
    matrix = torch.zeros(taps.outputs, inputs)
    for j in range(taps.outputs):
        for t in range(taps.first[j], taps.first[j + 1]):
            matrix[j, taps.index[t]] += float(taps.weight[t])
    return matrix


def test_nothing_to_pad_is_a_copy():
    """As torch's: x itself would be overwritten by an in-place activation behind the padding."""
    x = torch.randn(1, 2, 3, 4).contiguous(memory_format=torch.channels_last)
    for padding in (0, (0, 0, 0, 0)):
        y = kernels.reflection_pad2d(x, padding)
        assert torch.equal(y, x) and y.data_ptr() != x.data_ptr() and y.stride() == x.stride()
    with pytest.raises(ValueError, match="impl"):
        kernels.reflection_pad2d(x, 0, impl="nothing")


def test_padding_as_torch_takes_it():
    x = torch.randn(2, 3, 8, 9)
    numpys = np.int64(2), tuple(np.array([1, 2, 3, 4]))
    for padding in (2, (2, 2, 2, 2), [1, 2, 3, 4], torch.Size((1, 0, 0, 2)), *numpys):
        sides = (2,) * 4 if padding == 2 else tuple(int(side) for side in padding)
        assert torch.equal(kernels.reflection_pad2d(x, padding), F.pad(x, sides, mode="reflect"))


def test_keeps_the_dtype_under_autocast():
    x = torch.randn(1, 4, 8, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for f in (kernels.blur_downsample, kernels.blur_upsample, lambda x: kernels.reflection_pad2d(x, 1)):
            assert f(x).dtype == torch.bfloat16 and f(x.float()).dtype == torch.float32


# ---- arguments -------------------------------------------------------------------------------------------------------

BAD = [
    (TypeError, "x: got list", lambda: kernels.blur_downsample([X])),
    (TypeError, "x: got torch.int64", lambda: kernels.blur_upsample(X.long())),
    (TypeError, "x: got layout torch.sparse_coo", lambda: kernels.blur_upsample(X.to_sparse())),
    (ValueError, r"x: got shape \(4, 6, 5\)", lambda: kernels.reflection_pad2d(X[0], 1)),
    (ValueError, r"x: got shape \(2, 4, 0, 5\)", lambda: kernels.blur_upsample(X[:, :, :0])),
    (TypeError, "filter_size: got float", lambda: kernels.blur_downsample(X, filter_size=3.0)),
    (TypeError, "filter_size: got bool", lambda: kernels.blur_downsample(X, filter_size=True)),
    (ValueError, "filter_size: got 8, want an int from 2 to 7", lambda: kernels.blur_downsample(X, filter_size=8)),
    (ValueError, "filter_size: got 1", lambda: kernels.blur_downsample(X, filter_size=1)),
    (
        ValueError,
        "filter_size: got 7 for planes of 6 x 3, want rows > 3 and columns > 3",
        lambda: kernels.blur_downsample(X[..., :3], filter_size=7),
    ),
    (TypeError, "padding: got 1.0", lambda: kernels.reflection_pad2d(X, 1.0)),
    (TypeError, "padding: got 'reflect'", lambda: kernels.reflection_pad2d(X, "reflect")),
    (TypeError, "padding: got True", lambda: kernels.reflection_pad2d(X, True)),
    (ValueError, "padding: got 2 numbers", lambda: kernels.reflection_pad2d(X, (1, 1))),
    (ValueError, "padding: got -1", lambda: kernels.reflection_pad2d(X, -1)),
    (
        ValueError,
        r"padding: got \(1, 5, 1, 1\) for planes of 6 x 5, want rows > 1 and columns > 5",
        lambda: kernels.reflection_pad2d(X, (1, 5, 1, 1)),
    ),
    (ValueError, "impl: got 'fast'", lambda: kernels.blur_upsample(X, impl="fast")),
    (kernels.BackendUnavailable, "not torch.float64", lambda: kernels.blur_upsample(X.double(), impl="cpu")),
    (ValueError, "channels: got 0", lambda: kernels.BlurUpsample(0)),
    (TypeError, "channels: got float", lambda: kernels.BlurDownsample(4.0)),
    (ValueError, "filter_size: got 9", lambda: kernels.BlurDownsample(4, 9)),
    (ValueError, "x: got 4 channels .*, want 8", lambda: kernels.BlurDownsample(8)(X)),
    (ValueError, "impl: got 'fast'", lambda: kernels.ReflectionPad2d(1, impl="fast")),
    (TypeError, "padding: got None", lambda: kernels.ReflectionPad2d(None)),
]


@pytest.mark.parametrize("kind, text, call", BAD, ids=[text for _, text, _ in BAD])
def test_errors_name_the_argument(kind, text, call):
    with pytest.raises(kind, match=text):
        call()


# ---- modules ---------------------------------------------------------------------------------------------------------


class Published(nn.Module):
    """The buffers of CUT's Downsample or Upsample."""

    def __init__(self, channels, row):
        super().__init__()
        row = torch.tensor(row)
        self.register_buffer("filt", torch.outer(row, row)[None, None].repeat(channels, 1, 1, 1))


@pytest.mark.parametrize(
    "module, row",
    [
        (kernels.BlurDownsample(5), [0.25, 0.5, 0.25]),
        (kernels.BlurDownsample(5, 4), [0.125, 0.375, 0.375, 0.125]),
        (kernels.BlurUpsample(5), [0.25, 0.75, 0.75, 0.25]),
    ],
    ids=str,
)
def test_modules_load_the_published_buffers(module, row):
    state = Published(5, row).state_dict()
    assert list(module.state_dict()) == list(state) and torch.equal(module.filt, state["filt"])
    module.load_state_dict(state)
    module.load_state_dict({"filt": state["filt"].half()})
    with pytest.raises(RuntimeError, match="filt: got other numbers than the published filter's"):
        module.load_state_dict({"filt": state["filt"] * 2})
    with pytest.raises(RuntimeError, match="size mismatch for filt"):
        module.load_state_dict({"filt": state["filt"][:2]})
    x = torch.randn(1, 5, 8, 9)
    op = kernels.blur_upsample if "Up" in type(module).__name__ else kernels.blur_downsample
    options = {"filter_size": module.filter_size} if hasattr(module, "filter_size") else {}
    assert torch.equal(module(x), op(x, **options))


def test_reflection_pad_module_is_torchs():
    module = kernels.ReflectionPad2d((1, 2, 3, 0), impl="cpu")
    plain = nn.ReflectionPad2d((1, 2, 3, 0))
    assert isinstance(module, nn.ReflectionPad2d) and not module.state_dict()
    for x in (torch.randn(2, 3, 6, 7), torch.randn(3, 6, 7)):
        assert torch.equal(module(x), plain(x))
    assert "(1, 2, 3, 0)" in repr(module) and "impl=cpu" in repr(module)


# ---- torch.compile, opcheck ------------------------------------------------------------------------------------------


def chain(x):
    x = kernels.blur_downsample(kernels.reflection_pad2d(x, 2).sin())
    return kernels.blur_upsample(x * 2.0).cos()


# one run of inductor, slow: what it makes of operators, opaque to it, depends on no format, and norm and nce show it
@pytest.mark.parametrize(
    "layout, backend",
    [
        *(("contiguous", "aot_eager"), ("channels_last", "aot_eager")),
        pytest.param("contiguous", "inductor", marks=pytest.mark.slow),
    ],
)
def test_compiles_in_one_graph(layout, backend):
    torch._dynamo.reset()
    x = in_layout(torch.randn(1, 3, 9, 7), layout).requires_grad_()
    results = []
    for f in (chain, torch.compile(chain, fullgraph=True, backend=backend)):
        y = f(x)
        results.append([y, torch.autograd.grad(y.square().sum(), x)[0]])
    torch.testing.assert_close(*results)
    assert results[0][1].stride() == results[1][1].stride()


def test_compiles_for_sizes_that_change():
    torch._dynamo.reset()
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((9, 7), (12, 31), (5, 5)):
        x = torch.randn(1, 3, *size)
        torch.testing.assert_close(compiled(x), chain(x))


def test_opcheck():
    """All of opcheck's utilities on the registered op (autograd lives outside it, so tensors come detached)."""
    for layout in ("contiguous", "channels_last"):
        x = in_layout(torch.randn(2, 4, 6, 5), layout)
        for transposed in (False, True):
            given = torch.randn(2, 4, 3, 3) if transposed else x
            last = layout == "channels_last"
            args = (in_layout(given, layout), spec.DOWN, [3, 0], [3, 0], 6, 5, transposed, last, "cpu")
            torch.library.opcheck(torch.ops.fused_i2i.resample.default, args)
