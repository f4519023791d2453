"""The arguments of the C++ functions: plain integers by position, in the order that bind.cpp reads and launch_cpu.py
passes. Both name them; the names are compared when the library loads, and here the values that stand under each."""

import importlib
import itertools

import pytest
import torch

from kernels import _native
from kernels._build import ROOMS
from kernels.nce import launch_cpu as nce
from kernels.nce.spec import Layer, Needs
from kernels.nce.spec import Spec as NceSpec
from kernels.norm import launch_cpu as norm
from kernels.norm.spec import Spec as NormSpec
from kernels.patches import launch_cpu as patches
from kernels.patches.spec import layout_of
from kernels.resample import launch_cpu as resample
from kernels.resample.spec import DOWN, PAD
from kernels.resample.spec import Spec as ResampleSpec
from kernels.sinkhorn import launch_cpu as sinkhorn

LAUNCHERS = {room: importlib.import_module(f"kernels.{room}.launch_cpu") for room in ROOMS}
FUNCTIONS = {name: text for launcher in LAUNCHERS.values() for name, text in launcher.ARGUMENTS.items()}
DTYPES = {torch.bfloat16: 1, torch.float16: 2}  # not float32: its code is 0, as many a null or False


# ---- the lists of Python and C++ -------------------------------------------------------------------------------------


def test_every_function_of_the_library_is_declared_with_the_names_it_reads():
    module = _native.load()
    functions = {name for name in dir(module) if callable(getattr(module, name)) and not name.startswith("__")}
    functions -= {"select", "supported", "emulated", "bfloat16_products"}  # of the module, not of a room
    assert functions == FUNCTIONS.keys()
    assert {name: getattr(module, name).__doc__ for name in functions} == FUNCTIONS
    assert not _native._difference(module)


@pytest.mark.parametrize("room", ROOMS)
def test_two_arguments_in_each_others_place_are_refused(room, monkeypatch):
    module = _native.load()
    for function, text in LAUNCHERS[room].ARGUMENTS.items():
        names = text.split()
        for at in range(len(names) - 1):
            swapped = [*names[:at], names[at + 1], names[at], *names[at + 2 :]]
            monkeypatch.setitem(LAUNCHERS[room].ARGUMENTS, function, " ".join(swapped))
            want = f"{function}: argument {at + 1} is {names[at + 1]} in Python and {names[at]} in C++"
            assert _native._difference(module).endswith(want)
        for wrong, has, want in ((names[:-1], "no argument", names[-1]), ([*names, "y"], "y", "no argument")):
            monkeypatch.setitem(LAUNCHERS[room].ARGUMENTS, function, " ".join(wrong))
            assert _native._difference(module).endswith(f"is {has} in Python and {want} in C++")
        monkeypatch.setitem(LAUNCHERS[room].ARGUMENTS, function, text)


@pytest.mark.parametrize("missing", [False, True])
def test_a_library_that_reads_something_else_is_not_used(missing, monkeypatch):
    """Also one that lacks a function."""
    _native.load()
    for name in ("_module", "_found"):
        monkeypatch.setattr(_native, name, None)
    changed = {"moment": "x"} if missing else {"moments": norm.ARGUMENTS["moments"].replace("n c", "c n")}
    monkeypatch.setattr(norm, "ARGUMENTS", norm.ARGUMENTS | changed)
    one, two = ("moment: argument 1 is x", "no argument") if missing else ("moments: argument 3 is c", "n")
    want = (
        f"csrc/cpu/norm/bind.cpp does not read what kernels/norm/launch_cpu.py passes to {one} in Python and {two} in "
    )
    with pytest.raises(_native.BuildError, match=want):
        _native.load()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_as_many_arguments_are_read_as_are_named_and_numbers_of_their_kind(function):
    """No call here gets as far as the kernel: each fails while its arguments are read."""
    call, names = getattr(_native.load(), function), FUNCTIONS[function].replace("[ ", "").replace(" ]", "").split()
    zeros = [0] * len(names)
    with pytest.raises(TypeError, match="too few arguments"):
        call(*zeros[:-1])
    with pytest.raises(TypeError, match="too (many|few) arguments"):  # one that begins another group is too few
        call(*zeros, 0)
    floats = set()
    for at, name in enumerate(names):
        with pytest.raises(TypeError) as caught:
            call(*zeros[:at], 0.5, *zeros[at + 1 :], 0)
        if "arguments" in str(caught.value):  # their number is all that was wrong
            floats.add(name)
    assert floats == {"eps", "offset", "slope", "temperature"} & set(names)


# ---- the values that Python passes -----------------------------------------------------------------------------------


class Recorder:
    """In the library's place: keeps what is passed."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, function):
        return lambda *args: self.calls.append((function, args))


@pytest.fixture
def passed(monkeypatch):
    """The arguments of the one call since the last, by name: those of the call, then those of each group."""
    recorder = Recorder()
    monkeypatch.setattr(_native, "_module", recorder)

    def last(function):
        ((name, args),) = recorder.calls
        recorder.calls.clear()
        assert name == function
        names = FUNCTIONS[function].split()
        single = names.index("[") if "[" in names else len(names)
        found, group = [dict(zip(names, args[:single]))], names[single + 1 : -1]
        while len(args) > single:
            assert group and len(args) >= single + len(group)
            found.append(dict(zip(group, args[single:])))
            single += len(group)
        return found

    return last


def compare(found, *wanted, alike=()):
    """Of several calls: what was passed is what was wanted, and no two arguments could change places unnoticed, except
    pairs that are `alike` whatever the call."""
    assert found == list(wanted)
    for groups in zip(*wanted):
        for one, two in itertools.combinations(groups[0], 2):
            assert (one, two) in alike or any(group[one] != group[two] for group in groups), (
                f"{one} and {two} have one value in every call"
            )


def maps(shape, dtype, channels_last):
    form = torch.channels_last if channels_last else torch.contiguous_format
    return torch.randn(shape).to(dtype).contiguous(memory_format=form)


NORMS = [  # shape, dtype, channels last, per sample, options
    ((2, 3, 5, 7), torch.bfloat16, False, True, NormSpec(2, 1e-3, 0.5, 3, 0.25, 4)),
    ((4, 6, 8, 9), torch.float16, True, False, NormSpec(0, 1e-2, 0.75, 1, 0.125, 5)),
]


def norm_problem(x, stats, spec, channels_last):
    n, c, h, w = x.shape
    sizes = dict(n=n, c=c, h=h, w=w, channels_last=channels_last, dtype=DTYPES[x.dtype], kind=spec[0])
    return dict(x=x.data_ptr(), stats=stats.data_ptr(), **sizes)


def norm_options(scale, shift, per_sample, spec):
    _, _, offset, activation, slope, pad = spec
    options = dict(per_sample=per_sample, offset=offset, activation=activation, slope=slope, pad=pad)
    return dict(scale=scale.data_ptr(), shift=shift.data_ptr(), **options)


def test_what_norm_passes(passed):
    found, wanted = {name: [] for name in norm.ARGUMENTS}, {name: [] for name in norm.ARGUMENTS}

    def add(function, **want):
        found[function].append(passed(function))
        wanted[function].append([want])

    kept = []  # or memory, and with it an address, would come twice
    for shape, dtype, channels_last, per_sample, spec in NORMS:
        x, residual = (maps(shape, dtype, channels_last) for _ in range(2))
        n, c, h, w = shape
        scale, shift = torch.randn(2, n, c) if per_sample else torch.randn(2, c)
        y, stats = norm.forward(x, scale, shift, residual, spec)
        problem, options = norm_problem(x, stats, spec, channels_last), norm_options(scale, shift, per_sample, spec)
        rn, rc, rh, _ = residual.stride()
        strides = dict(residual=residual.data_ptr(), residual_n=rn, residual_c=rc, residual_h=rh)
        add("norm_forward", **problem, **options, eps=spec[1], y=y.data_ptr(), **strides)
        grad = maps((n, c, h + 2 * spec[5], w + 2 * spec[5]), dtype, channels_last)
        grads = norm.backward(grad, x, scale, shift, stats, True, spec)
        names = ("grad_x", "grad_scale", "grad_shift", "grad_residual")
        addresses = {name: g.data_ptr() for name, g in zip(names, grads)}
        add("norm_backward", **problem, **options, grad=grad.data_ptr(), **addresses)
        moments = norm.moments(x, spec[0], spec[1])
        add("moments", **norm_problem(x, moments, spec, channels_last), eps=spec[1])
        grad_mean, grad_std = torch.randn(2, n, c)
        grad_x = norm.moments_backward(grad_mean, grad_std, x, moments, spec[0])
        addresses = dict(grad_mean=grad_mean.data_ptr(), grad_std=grad_std.data_ptr(), grad_x=grad_x.data_ptr())
        add("moments_backward", **norm_problem(x, moments, spec, channels_last), **addresses)
        kept += [x, residual, scale, shift, y, stats, grad, *grads, moments, grad_mean, grad_std, grad_x]
    for function in norm.ARGUMENTS:
        compare(found[function], *wanted[function])


def layer(shape, m, dtype, shared):
    b, s, c = shape
    q, k = torch.randn(2, b, s, c).to(dtype)
    negatives = torch.randn(m, c) if shared else torch.randn(b, m, c)
    log_weight = torch.randn(s, m + 6)[:, :m].expand(b, s, m)
    similarity_weight = torch.randn(b, m, 2 * s)[..., ::2].transpose(1, 2)
    return Layer(q, k, negatives.to(dtype), log_weight, similarity_weight)


def nce_layer(one, shared):
    b, s, c = one.q.shape
    want = dict(q=one.q.data_ptr(), k=one.k.data_ptr(), negatives=one.negatives.data_ptr())
    want |= dict(b=b, s=s, m=one.negatives.shape[-2], c=c, shared=shared)
    for name, weight in (("log_weight", one.log_weight), ("similarity_weight", one.similarity_weight)):
        numbers = (weight.data_ptr(), *weight.stride())
        want |= {f"{name}.{field}": number for field, number in zip("pbij", numbers)}
    return want


def test_what_nce_passes(passed):
    found, wanted, kept = ([], []), ([], []), []
    for dtype, normalize, decoupled, shapes in (
        (torch.bfloat16, True, False, [((2, 3, 4), 5, True), ((3, 5, 2), 9, False)]),
        (torch.float16, False, False, [((5, 4, 3), 2, False), ((4, 2, 7), 3, True)]),
        (torch.bfloat16, False, True, [((6, 2, 5), 7, True), ((2, 6, 5), 4, False)]),
    ):
        layers = [layer(shape, m, dtype, shared) for shape, m, shared in shapes]
        spec = NceSpec(0.25, normalize, decoupled)
        options = dict(dtype=DTYPES[dtype], temperature=0.25, normalize=normalize, decoupled=decoupled)
        inputs = [nce_layer(one, shared) for one, (_, _, shared) in zip(layers, shapes)]
        loss, stats, units = nce.forward(layers, spec, [True, True])
        groups = [want | dict(dq_unscaled=unit.data_ptr()) for want, unit in zip(inputs, units)]
        found[0].append(passed("nce_forward"))
        wanted[0].append([options | dict(loss=loss.data_ptr(), stats=stats.data_ptr()), *groups])
        grad = torch.randn(len(loss))
        grads = nce.backward(grad, layers, stats, units, [Needs(True, True, True, True)] * 2, spec)
        names = ("grad_q", "grad_k", "grad_negatives", "grad_log_weight")
        groups = [
            want | dict(dq_unscaled_in=unit.data_ptr(), **{name: g.data_ptr() for name, g in zip(names, four)})
            for want, unit, four in zip(inputs, units, grads)
        ]
        found[1].append(passed("nce_backward"))
        wanted[1].append([options | dict(grad=grad.data_ptr(), stats=stats.data_ptr()), *groups])
        kept += [layers, loss, stats, units, grad, grads]
    compare(found[0], *wanted[0])
    compare(found[1], *wanted[1])


def test_what_patches_passes(passed):
    found, wanted, kept = ([], []), ([], []), []
    for dtype, shapes, unique in (
        (torch.bfloat16, [(2, 3, 5, 7), (3, 4, 9, 6)], False),
        (torch.float16, [(5, 3, 8, 4)], True),
    ):
        xs = [maps(shape, dtype, at != unique) for at, shape in enumerate(shapes)]
        ids = [torch.arange(6 - at) for at in range(len(xs))]
        rows = patches.forward(xs, ids)

        def each(xs, rows, unique, zero, ids=ids):
            groups = []
            for x, r, at in zip(xs, rows, ids):
                sn, sc, sh, sw = x.stride()
                group = dict(map=x.data_ptr(), rows=r.data_ptr(), ids=at.data_ptr(), n=x.shape[0], c=x.shape[1])
                group |= dict(p=len(at), positions=x[0, 0].numel(), w=x.shape[3], sn=sn, sc=sc, sh=sh, sw=sw)
                group |= dict(dtype=DTYPES[x.dtype])
                groups.append(group | dict(unique=unique, zero=2 * x.numel() if zero else 0))
            return [{}, *groups]

        found[0].append(passed("patches_gather"))
        wanted[0].append(each(xs, rows, True, False))
        totals = patches.backward(rows, ids, [layout_of(x) for x in xs], unique)
        found[1].append(passed("patches_scatter"))
        wanted[1].append(each(totals, rows, unique, True))
        patches.add(totals[0], rows[0], ids[0])
        found[1].append(passed("patches_scatter"))
        wanted[1].append(each(totals[:1], rows, False, False))
        kept += [xs, rows, totals]
    compare(found[0], *wanted[0])
    compare(found[1], *wanted[1])


def test_what_resample_passes(passed):
    found, wanted, kept = [], [], []
    for shape, dtype, channels_last, spec in (
        ((2, 3, 9, 14), torch.bfloat16, False, ResampleSpec(PAD, (2, 1), (3, 5), 9, 14)),
        ((4, 5, 40, 62), torch.float16, True, ResampleSpec(DOWN, (4, 0), (7, 0), 40, 62)),
        ((3, 1, 13, 22), torch.float16, False, ResampleSpec(DOWN, (3, 0), (5, 0), 26, 43, True)),
    ):
        x = maps(shape, dtype, channels_last)
        y = resample.apply(x, spec, channels_last)
        sn, sc, sh, _ = x.stride()
        want = dict(x=x.data_ptr(), y=y.data_ptr(), n=shape[0], c=shape[1], channels_last=channels_last)
        want |= dict(dtype=DTYPES[dtype], sn=sn, sc=sc, sh=sh)
        for axis, taps in zip(("rows", "columns"), resample._tables(spec)[0]):
            want |= {f"{axis}.{name}": getattr(taps, name).ctypes.data for name in ("first", "index", "weight")}
            want |= {f"{axis}.{name}": getattr(taps, name) for name in ("outputs", "low", "groups", "phases", "step")}
        found.append(passed("resample"))
        wanted.append([want])
        kept += [x, y]
    compare(found, *wanted, alike=[(f"rows.{name}", f"columns.{name}") for name in ("phases", "step")])


def test_what_sinkhorn_passes(passed):
    found, wanted, kept = ([], []), ([], []), []
    for shape, iterations, dtype in (((2, 3, 4), 7, torch.bfloat16), ((5, 2, 3), 4, torch.float16)):
        x, grad = torch.randn(2, *shape).to(dtype)
        plan, potentials = sinkhorn.forward(x, iterations)
        sizes = dict(problems=shape[0], s=shape[1], m=shape[2], iterations=iterations, dtype=DTYPES[dtype])
        problem = dict(**sizes, log_kernel=x.data_ptr(), potentials=potentials.data_ptr())
        found[0].append(passed("sinkhorn_forward"))
        wanted[0].append([problem | dict(log_plan=plan.data_ptr())])
        dx = sinkhorn.backward(grad, x, potentials)
        found[1].append(passed("sinkhorn_backward"))
        wanted[1].append([problem | dict(grad=grad.data_ptr(), grad_log_kernel=dx.data_ptr())])
        kept += [x, grad, plan, potentials, dx]
    compare(found[0], *wanted[0])
    compare(found[1], *wanted[1])
