"""How the CUDA kernels are found, built, chosen and launched: in the emulation, and where there is no CUDA at all."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch
from support import emulated
from support.cuda_offline import needs_nvrtc

import kernels
from kernels import _build, _cuda, _cuda_build, backends
from kernels._cache import BuildError
from kernels.norm import launch_cuda
from kernels.norm.spec import Spec

PLAIN = Spec(0, 1e-5, 0.0, 0, 0.2, 0)
X = torch.arange(96.0).reshape(1, 2, 6, 8)


@pytest.fixture
def emulation():
    with emulated.emulation():
        yield


@pytest.fixture
def without(monkeypatch):
    """No driver is named, and nothing is known yet."""
    monkeypatch.delenv("KERNELS_CUDA_DRIVER", raising=False)
    emulated.forget()
    yield monkeypatch
    emulated.forget()


# ---- what is available -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_the_reason_is_given(without):
    assert _cuda.why_not() == "no CUDA device"
    assert "cuda       unavailable: no CUDA device" in kernels.backend_report()
    with pytest.raises(kernels.BackendUnavailable, match="impl='cuda' cannot run: the tensors are on cpu"):
        kernels.instance_norm(X, impl="cuda")


def test_a_driver_that_is_not_there(without, tmp_path):
    without.setenv("KERNELS_CUDA_DRIVER", str(tmp_path / "libcuda.so"))
    with pytest.raises(kernels.BackendUnavailable, match="the CUDA driver cannot be used: .*cannot open shared object"):
        kernels.instance_norm(X, impl="cuda")


def test_old_devices_are_left_to_triton(without):
    without.setattr(torch.version, "hip", None)
    without.setattr(torch.cuda, "is_available", lambda: True)
    without.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert _cuda.why_not() == "the device has compute capability 7.5, want 8.0 or more"


def test_devices_that_the_compiler_does_not_know_are_left_to_triton(emulation, monkeypatch):
    """As a GPU newer than the CUDA that torch was built for."""
    monkeypatch.setattr(_cuda_build.Emulated, "knows", lambda self, arch: False)
    with pytest.raises(kernels.BackendUnavailable, match="the device is sm_90, which emulation .* does not know"):
        kernels.instance_norm(X, impl="cuda")


@needs_nvrtc
def test_what_nvrtc_knows():
    nvrtc = _cuda_build.Nvrtc()
    assert nvrtc.knows("sm_80") and nvrtc.knows("sm_90") and not nvrtc.knows("sm_20") and not nvrtc.knows("sm_990")


def test_a_launcher_that_does_not_load(emulation, monkeypatch):
    def noexec(name, path):
        raise ImportError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(_build, "_import", noexec)
    with pytest.raises(kernels.BackendUnavailable, match="does not load: .*mounted noexec"):
        kernels.instance_norm(X, impl="cuda")


def test_rocm_is_left_to_triton(without):
    without.setattr(torch.version, "hip", "6.4")
    assert "triton serves AMD devices" in _cuda.why_not()


@pytest.mark.parametrize(
    "cuda, triton, chosen",
    [("", "", "cuda"), ("old", "", "triton"), ("", "absent", "cuda"), ("old", "absent", "reference")],
)
def test_auto_takes_cuda_before_triton_before_the_reference(cuda, triton, chosen, monkeypatch, recwarn):
    monkeypatch.setattr(_cuda, "why_not", lambda index: cuda)
    monkeypatch.setattr(backends, "why_no_triton", lambda: triton)
    assert backends._decide("auto", torch.device("cuda", 1), torch.float32) == chosen
    assert [str(w.message).count("old; absent") for w in recwarn] == ([1] if chosen == "reference" else [])


def test_report_in_the_emulation(emulation):
    kernels.instance_norm(X, activation="relu", impl="cuda")
    report = kernels.backend_report()
    assert "cuda       active, emulation" in report and "sm_90" in report
    assert re.search(r"norm norms::forward_held<float, 4, false, 1, .*: 0 registers, 0 bytes spilled, .* s", report)


@needs_nvrtc
def test_what_a_kernel_takes_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    known = _cuda.arguments("norm")
    text = _cuda_build.source("norm", "moments", "norms::combine_moments", known.type, 512, known.format.size)
    _cuda_build.image(_cuda_build.Nvrtc(), "norm", text, "sm_90", "norm combine_moments")
    (record,) = _cuda_build.built()
    assert record["kernel"] == "norm combine_moments" and record["arch"] == "sm_90" and record["seconds"] > 0
    takes = record["takes"]
    assert 16 < takes["registers"] <= 128 and takes["spilled"] == 0 and takes["shared"] > 8000


# ---- building --------------------------------------------------------------------------------------------------------


def test_a_kernel_that_does_not_compile_is_remembered(emulation, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path / "cache"))
    broken = tmp_path / "cuda"
    shutil.copytree(_cuda_build.SOURCES, broken)
    text = (broken / "norm" / "forward.cuh").read_text()
    (broken / "norm" / "forward.cuh").write_text(text.replace("const Stats s", "const Statistics s"))
    monkeypatch.setattr(_cuda_build, "SOURCES", broken)
    _cuda_build.headers.cache_clear()
    try:
        for attempt in range(2):
            with pytest.raises(BuildError, match="norms::forward_held.* does not compile: .*Statistics.*delete it"):
                launch_cuda.forward(X, None, None, None, PLAIN)
            assert capfd.readouterr().err.count("compiling the CUDA kernel") == (attempt == 0)
        (log,) = (tmp_path / "cache").rglob("failed.log")
        log.unlink()
        with pytest.raises(BuildError):
            launch_cuda.forward(X, None, None, None, PLAIN)
        assert "compiling" in capfd.readouterr().err
    finally:
        _cuda_build.headers.cache_clear()


def test_a_failure_of_the_machine_is_not_remembered(emulation, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        full = "error: kernel.o: No space left on device"
        patch.setattr(_cuda_build.Emulated, "compile", lambda *given: (False, full))
        for _ in range(2):
            with pytest.raises(BuildError, match="No space left.*the next call tries again; KERNELS_IMPL=triton"):
                launch_cuda.forward(X, None, None, None, PLAIN)
            assert "compiling the CUDA kernel" in capfd.readouterr().err
    (folder,) = tmp_path.glob("cuda-*")
    (folder / "work-of-the-dead").mkdir()
    launch_cuda.forward(X, None, None, None, PLAIN)
    assert {path.name for path in folder.iterdir()} == {"lock", _cuda_build.IMAGE, "build.json"}


def test_damaged_records_are_left_out_of_the_report(emulation, monkeypatch, tmp_path):
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"kernel": "x"}')):
        (tmp_path / f"cuda-{name}").mkdir()
        (tmp_path / f"cuda-{name}" / "build.json").write_text(text)
    assert "sm_90; 0 kernels built" in kernels.backend_report()


def test_a_build_is_used_again(emulation, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("KERNELS_CACHE", str(tmp_path))
    want = launch_cuda.forward(X, None, None, None, PLAIN)[0]
    assert "compiling the CUDA kernel norm norms::forward_held" in capfd.readouterr().err
    launch_cuda._plans.clear(), _cuda._loaded.clear()
    assert torch.equal(launch_cuda.forward(X, None, None, None, PLAIN)[0], want)
    assert capfd.readouterr().err == ""
    (image,) = tmp_path.rglob(_cuda_build.IMAGE)
    (tmp_path / "short").write_bytes(image.read_bytes()[:-100])
    os.replace(tmp_path / "short", image)  # built anew, not loaded
    launch_cuda._plans.clear(), _cuda._loaded.clear()
    assert torch.equal(launch_cuda.forward(X, None, None, None, PLAIN)[0], want)
    assert "compiling" in capfd.readouterr().err


def test_every_include_is_handed_to_the_compiler():
    for folder in sorted(path for path in _cuda_build.SOURCES.iterdir() if path.is_dir() and path.name != "common"):
        given = _cuda_build.headers(folder.name)
        for text in given.values():
            for line in text.splitlines():
                if line.startswith('#include "') and "emulation.h" not in line:
                    assert line.split('"')[1] in given, line


# ---- launching -------------------------------------------------------------------------------------------------------


def test_arguments_are_packed_by_name():
    known = _cuda.arguments("norm")
    assert known.pointers[:3] == ("x", "scale", "shift") and len(known.pointers) == 15 and known.format.size % 8 == 0
    with pytest.raises(TypeError, match="norms::Args: .*eps.*missing, or not of the struct"):
        known.pack(dict.fromkeys([*known.numbers, "epsilon"], 0) | {"eps": 0} | {"length": 1} | {"slopes": 2.0})


def launch(**grid):
    x, y, stats = X.clone(), torch.empty_like(X), torch.empty(4, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        made = _cuda.launch

        def other(room, header, function, most, index, given, numbers):
            return made(room, header, function, most, index, given._replace(**grid), numbers)

        patch.setattr(_cuda, "launch", other)
        launch_cuda._plans.clear()
        launch_cuda.forward(x, None, None, None, PLAIN, out=y)
    return y, stats


@pytest.mark.parametrize(
    "grid, said",
    [
        ({"blocks": 3, "cluster": 2}, "3 blocks in clusters of 2"),
        ({"shared": 300000}, "cuFuncSetAttribute"),
        ({"blocks": 16, "cluster": 16}, "more than 8 blocks"),
        ({"blocks": 0}, "a grid of 0 blocks"),
    ],
)
def test_what_a_gpu_would_refuse_is_an_error(grid, said, emulation):
    with pytest.raises(RuntimeError, match=said):
        launch(**grid)
    launch_cuda._plans.clear()


def test_less_shared_memory_in_one_launch_takes_none_from_another(emulation):
    """What a function may use is set for the function, not for a launch of it."""
    known, launches = _cuda.launch, []
    with pytest.MonkeyPatch.context() as patch:

        def of(shared):
            def other(room, header, function, most, index, grid, numbers):
                launch = known(room, header, function, most, index, grid._replace(shared=shared), numbers)
                launches.append(launch)
                return launch

            launch_cuda._plans.clear()
            patch.setattr(_cuda, "launch", other)
            return launch_cuda.forward(X, None, None, None, PLAIN)[0]

        want = of(100_000)
        assert torch.equal(of(60_000), want)
        stats, y = torch.empty(4, 1, 2), torch.empty_like(X)
        addresses = dict.fromkeys(_cuda.arguments("norm").pointers, 0)
        addresses |= {"x": X.data_ptr(), "y": y.data_ptr(), "stats": stats.data_ptr()}
        launches[0](0, *addresses.values())
    assert torch.equal(y, want)


def test_a_launch_takes_its_addresses_alone(emulation):
    known = _cuda.arguments("norm")
    numbers = dict.fromkeys(known.numbers, 1)
    template = "norms::forward_held<float, 1, false, 0, false, 0, 1, 4>"
    made = _cuda.launch("norm", "forward", template, 512, 0, _cuda.Grid(1, 32), numbers)
    with pytest.raises(TypeError, match="a stream and 15 addresses are wanted, got 2 values"):
        made(0, 1)
    with pytest.raises(TypeError):
        made(0, *["x"] * 15)


def test_plans_are_bounded():
    plans = _cuda.Plans()
    for i in range(5000):
        plans[i,] = i
    assert len(plans) < 4096 and plans[4999,] == 4999


def test_the_environment_is_left_as_it_was():
    before = os.environ.get("KERNELS_CUDA_DRIVER")
    with emulated.emulation():
        assert _cuda.emulating()
    assert os.environ.get("KERNELS_CUDA_DRIVER") == before and _cuda.emulating() == (before is not None)


def test_compiled_code_runs_the_implementation_that_was_asked_for(emulation):
    """The registered op is given it: on one device there are two."""
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: kernels.instance_norm(x, activation="relu", impl="cuda"), fullgraph=True, backend="aot_eager"
    )
    x, y = (X.clone().requires_grad_() for _ in range(2))
    with emulated.recorded(run=True) as found:
        torch.autograd.backward(compiled(x), torch.ones_like(X))
    assert [launch.name for launch in found] == ["forward_held", "backward_held"]
    torch.autograd.backward(kernels.instance_norm(y, activation="relu", impl="cuda"), torch.ones_like(X))
    assert torch.equal(x.grad, y.grad)
