"""Launches of a step: the rules, what our operators launch, and that a step that computes nothing counts the same."""

import json
from collections import Counter

import pytest
import torch
from torch import nn

import kernels
from benchmarks import launches, zoo
from benchmarks.engine.measure import kernels_of
from benchmarks.systems import launch_count
from benchmarks.systems.launch_count import H100, Counts, Estimate, add, count, our_launches
from benchmarks.systems.launch_rules import (
    ADDITIONS,
    CASTS,
    CHUNK,
    CONVOLUTIONS,
    COPIES,
    MOST_BLOCKS,
    MOST_TENSORS,
    OPTIMISER,
    OTHERS,
    PRODUCTS,
    chunked,
)
from kernels import _cuda, backends
from kernels._build import ROOMS

CPU = torch.device("cpu")
TINY = {"generator": "resnet_6blocks", "ngf": 4, "ndf": 4, "num_patches": 16, "feature_width": 16, "crop_size": 32}


def counted(function, *args) -> dict[str, int]:
    """Launches by kind of a call, in which nothing is computed."""
    counts = Counts()
    with our_launches(counts, stand_in=True), Estimate(counts):
        function(*args)
    return dict(counts.kinds)


# ---- torch's operators -----------------------------------------------------------------------------------------------

X = torch.randn(2, 4, 8, 8)
CALLS = {
    "views": (lambda: X.view(2, -1)[:, 1:].t().detach().expand(3, -1, 2), {}),
    "memory": (lambda: (torch.empty(3), torch.empty_like(X), X.new_empty(4)), {}),
    "elementwise": (lambda: (X * 2 + 1).relu(), {OTHERS: 3}),
    "in place": (lambda: X.clone().mul_(2), {COPIES: 1, OTHERS: 1}),
    "reduction": (lambda: X.sum((2, 3)).mean(), {OTHERS: 2}),
    "fill": (lambda: (torch.zeros(3), torch.ones_like(X)), {OTHERS: 2}),
    "cast": (lambda: X.bfloat16().float(), {CASTS: 2}),
    "cast by a copy": (lambda: torch.empty(2, 4, 8, 8, dtype=torch.bfloat16).copy_(X), {CASTS: 1}),
    "the same dtype": (lambda: X.float(), {}),
    "layout": (lambda: X.contiguous(memory_format=torch.channels_last), {COPIES: 1}),
    "cat": (lambda: torch.cat([X] * 128), {COPIES: 1}),
    "a long cat": (lambda: torch.cat([X] * 129), {COPIES: 2}),
    "products": (lambda: (X[0, 0] @ X[0, 1], torch.bmm(X[0], X[1])), {PRODUCTS: 2}),
    "linear": (lambda: nn.functional.linear(X[0, 0], X[0, 1], X[0, 2, 0]), {PRODUCTS: 1}),
    "batch with bias": (lambda: torch.baddbmm(X[0, :, :1], X[0], X[1]), {PRODUCTS: 2}),
    "batch added to another": (lambda: torch.empty(4, 8, 8).baddbmm_(X[0], X[1]), {PRODUCTS: 1}),
    "drawn by the host": (lambda: torch.randperm(9, generator=torch.Generator()), {}),
    "drawn by the device": (lambda: torch.randn(9), {OTHERS: 1}),
    "foreach": (lambda: torch._foreach_mul([X] * 3, 2.0), {OPTIMISER: 1}),
    "foreach cast": (lambda: torch._foreach_copy_([X.bfloat16()], [X]), {CASTS: 2}),
    "foreach of other strides": (
        lambda: torch._foreach_copy_([torch.empty(8, 8)] * 3, [torch.empty(8, 8).t()] * 3),
        {COPIES: 3},
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_rules(name):
    call, wanted = CALLS[name]
    assert counted(call) == wanted


def convolution(bias: bool, frozen: bool = False, form=torch.contiguous_format):
    x = X.detach().contiguous(memory_format=form).requires_grad_()
    layer = nn.Conv2d(4, 8, 3, bias=bias).to(memory_format=form).requires_grad_(not frozen)
    return lambda: layer(x).backward(torch.empty(2, 8, 6, 6).contiguous(memory_format=form))


def test_convolutions_count_their_bias_and_the_gradients_that_are_wanted():
    assert counted(convolution(bias=False)) == {CONVOLUTIONS: 1 + 2}
    assert counted(convolution(bias=True)) == {CONVOLUTIONS: 2 + 3}
    assert counted(convolution(bias=True, frozen=True)) == {CONVOLUTIONS: 2 + 1}
    last = counted(convolution(bias=True, form=torch.channels_last))
    assert last == {COPIES: 1, CONVOLUTIONS: 2 + 3}  # the copy is the test's own


def test_a_map_of_the_other_format_is_copied_for_a_convolution():
    layer = nn.Conv2d(4, 8, 3, bias=False).to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert counted(layer, X) == {CONVOLUTIONS: 2}


def test_gradients_that_meet_are_told_from_additions():
    w = torch.randn(4, requires_grad=True)

    def twice():
        y = w * 2
        (y + y.detach() + y.exp()).backward(torch.empty(4))  # y has two gradients
        (w * 3).backward(torch.empty(4))  # and w one of each call

    # additions of the loss, three products and exp; the gradients of three products and of exp
    assert counted(twice) == {OTHERS: 2 + 3 + 3, ADDITIONS: 2}


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("sizes", [[], [0], [1] * 300, [CHUNK * 100 + 1] * 7, [CHUNK * MOST_BLOCKS, 5], [CHUNK] * 640])
def test_multi_tensor_launches(sizes, depth):
    """Against launches that take one block after the other."""
    blocks = [place for place, size in enumerate(sizes) for _ in range(-(-size // CHUNK))]
    count = 0
    while blocks:
        count += 1
        known: dict[int, bool] = {}
        while blocks and sum(map(int, known.values())) < MOST_BLOCKS:
            if blocks[0] not in known and len(known) == MOST_TENSORS[depth - 1]:
                break
            place = blocks.pop(0)
            known[place] = known.get(place, 0) + 1
    assert chunked(sizes, depth) == count


# ---- our operators ---------------------------------------------------------------------------------------------------


def norm(x):
    kernels.instance_norm(x, activation="relu").backward(torch.empty_like(x))


def tapped(x):
    passed, rows = kernels.tap_patches(x * 1, torch.arange(5))
    torch.autograd.backward([passed * 1, rows], [torch.empty_like(x), torch.empty_like(rows)])


def sampled(x):
    rows, _ = kernels.sample_patches([x, x.detach()], 5, generator=torch.Generator())
    rows[0].backward(torch.empty_like(rows[0]))


def contrasted(x):
    q = x.flatten(2).transpose(1, 2)
    kernels.patch_nce_loss([q, q * 1], [q.detach()] * 2).backward()


def padded_twice(x):
    """With a gradient of the gradient."""
    y = kernels.reflection_pad2d(x, 1)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    slope.sum().backward()


OURS = {
    norm: {"norm": 2},
    tapped: {"patches": 2},
    sampled: {"patches": 2},
    contrasted: {"nce": 2},
    padded_twice: {"resample": 1 + 1 + 2},
}


@pytest.mark.parametrize("call", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_our_operators_count_what_they_launch(call, dtype):
    x = torch.randn(1, 8, 16, 16, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    found = counted(call, x)
    assert {room: found[room] for room in ROOMS if room in found} == OURS[call]
    assert COPIES not in found or call in (contrasted, padded_twice)  # which are given what is not dense


def test_nothing_stays_behind():
    make, device = _cuda.launch, _cuda.device
    with our_launches(Counts(), stand_in=True):
        assert backends.choose("auto", X) == "cuda" and _cuda.device(0) == H100
    assert _cuda.launch is make and _cuda.device is device
    assert not any(backends.launcher(room, "cuda")._plans for room in ROOMS)
    assert backends.choose("auto", X) in ("cpu", "reference")


# ---- steps -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("contestant", ["fused", pytest.param("published form", marks=pytest.mark.slow)])
def test_a_step_that_computes_nothing_counts_what_one_that_does_counts(contestant, monkeypatch):
    """Of values nothing depends, and of the memory formats that empty results are given all that is counted does.
    Not of careful Python, whose padding keeps channels last on CPUs alone."""
    build = lambda: zoo.contestant("cpu", "cut", contestant, "float32", TINY)  # noqa: E731
    quick, steps = count(build, CPU)
    monkeypatch.setattr(launch_count, "_is_arithmetic", lambda *_: False)
    whole, _ = count(build, CPU)
    assert steps == 1 and quick.kinds == whole.kinds and quick.names == whole.names
    assert quick.kinds[CASTS] == 0 and quick.kinds[CONVOLUTIONS] > 100


def test_command_line(tmp_path, monkeypatch, capsys):
    """With a contestant that fails, which costs its own row."""
    monkeypatch.setattr(zoo, "names", lambda method: ["fused", "gone", "careful Python"])
    assert launches.main(["--size", "32", "--output", str(tmp_path)], TINY) == 1
    result = json.loads((tmp_path / "launches_cut_bfloat16.json").read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert result["estimate"] and rows["gone"]["status"] == "error" and "gone" in rows["gone"]["reason"]
    ours, careful = rows["fused"], rows["careful Python"]
    for row in (ours, careful):
        assert row["launches"] == sum(row["kinds"].values()) == sum(row["names"].values())
    assert ours["kinds"].keys() > {"norm", "nce", "patches", "resample", CASTS} and "norm" not in careful["kinds"]
    text = (tmp_path / "launches_cut_bfloat16.md").read_text()
    assert "An estimate by rules" in text and f"**{ours['launches']}**" in text and "**error** gone" in text
    assert "An estimate by rules" in capsys.readouterr().out


def test_a_trace_of_the_profiler_is_counted_by_names():
    events = [
        {"cat": "kernel", "name": "void cudnn::ops::nchwToNhwcKernel<float>"},
        {"cat": "kernel", "name": "sm90_xmma_gemm_bf16bf16_bf16f32"},
        {"cat": "kernel", "name": "void at::native::elementwise_kernel<direct_copy_kernel_cuda>"},
        {"cat": "kernel", "name": "void at::native::vectorized_elementwise_kernel<CUDAFunctor_add<float>>"},
        {"cat": "kernel", "name": "multi_tensor_apply_kernel<FusedAdamMathFunctor>"},
        {"cat": "kernel", "name": "reduce_kernel"},
        {"cat": "kernel", "name": "kernel"},  # one of ours, counted at its launch
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)"},
        {"cat": "gpu_memset", "name": "Memset (Device)"},
        {"cat": "gpu_user_annotation", "name": "Optimizer.step#Adam.step"},
        {"cat": "cpu_op", "name": "aten::add"},
        {"ph": "M", "name": "process_name"},
    ]
    counts = Counts()
    add(kernels_of({"traceEvents": [event | {"dur": 1.5} for event in events]}), counts)
    assert counts.kinds == Counter(
        {CONVOLUTIONS: 1, PRODUCTS: 1, CASTS: 1, ADDITIONS: 1, OPTIMISER: 1, COPIES: 1, OTHERS: 2}
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a CUDA device")
def test_a_step_on_a_gpu():
    found, _ = count(lambda: zoo.contestant("cuda", "cut", "fused", "bfloat16", TINY), torch.device("cuda"))
    estimated, _ = count(lambda: zoo.contestant("cpu", "cut", "fused", "bfloat16", TINY), CPU)
    for kind in ("nce", "patches", "resample"):  # how a norm is cut depends on the GPU
        assert found.kinds[kind] == estimated.kinds[kind] > 0
    assert found.kinds["norm"] and found.kinds[CONVOLUTIONS]


@pytest.mark.parametrize("arguments", [["--method", "cutt"], ["--precision", "float8"], ["--size", "big"]])
def test_bad_arguments_are_named(arguments, capsys):
    with pytest.raises(SystemExit):
        launches.parse(arguments)
    assert arguments[0] in capsys.readouterr().err
