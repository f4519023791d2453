"""The triton Sinkhorn kernels on a GPU, and compiled for GPUs that are not here, with the launcher's own tiles (see
test_norm_offline.py)."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

CASES = Path(__file__).with_name("sinkhorn_triton_cases.py")

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    """The same cases, compiled, likewise in a process of their own."""
    environment = dict(os.environ, PYTHONPATH=str(CASES.parents[2]))
    environment.pop("TRITON_INTERPRET", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", str(CASES)]
    run = subprocess.run(command, cwd=CASES.parents[2], env=environment, capture_output=True, text=True, timeout=550)
    assert run.returncode == 0 and "passed" in run.stdout, run.stdout[-20000:] + run.stderr[-2000:]


# ---- compiled for other machines -------------------------------------------------------------------------------------

SHARED = {80: 166912, 90: 232448, 100: 232448}  # bytes a program may use
POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
SIZES = [(5, 256, 256), (1, 1024, 1024), (3, 33, 20), (2, 64, 1)]


def launches(shape: tuple[int, int, int], dtype: torch.dtype) -> list[tuple]:
    """(kernel, warps, args, constants) of everything forward and backward of this call would launch."""
    from kernels.sinkhorn import launch_triton

    found = []
    x = torch.empty(shape, dtype=dtype, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_triton, "_run", lambda k, programs, warps, *a, **c: found.append((k, warps, a, c)))
        plan, potentials = launch_triton.forward(x, 50)
        launch_triton.backward(plan, x, potentials)
    return found


def compile_for(launch: tuple, target):
    import triton
    from triton.compiler import ASTSource

    kernel, warps, args, chosen = launch
    signature, constants, attrs = {}, {}, {}
    values = dict(zip(kernel.arg_names, args)) | chosen
    assert set(values) == set(kernel.arg_names)
    for i, (name, value) in enumerate((name, values[name]) for name in kernel.arg_names):
        if name in chosen:
            signature[name], constants[(i,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = POINTER[value.dtype]
            attrs[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32" if isinstance(value, int) else "fp32"
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(ASTSource(kernel, signature, constants, attrs), target=target, options=options)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") != "0", reason="kernels are interpreted, not compiled")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_resources(capability):
    import triton
    from triton.backends.compiler import GPUTarget

    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"
    if not os.access(assembler, os.X_OK):
        pytest.skip("this triton has no ptxas-blackwell, which counts registers and spilled bytes")
    cases = [(size, torch.float32) for size in SIZES] + [(SIZES[0], torch.bfloat16)]
    for launch in (launch for case in cases for launch in launches(*case)):
        compiled = compile_for(launch, GPUTarget("cuda", capability, 32))
        ptx = compiled.asm["ptx"]
        arch = re.search(r"\.target\s+(sm_\w+)", ptx).group(1)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernel.ptx"
            path.write_text(ptx)
            command = [str(assembler), "-v", f"--gpu-name={arch}", str(path), "-o", str(path.with_suffix(".cubin"))]
            text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stderr
        registers = int(re.search(r"Used (\d+) registers", text).group(1))
        spilled = sum(int(n) for n in re.findall(r"(\d+) bytes spill", text))
        what = (launch[0].__name__, launch[1], launch[3], registers, spilled, compiled.metadata.shared)
        assert compiled.metadata.shared <= SHARED[capability] and spilled == 0, what
        assert registers <= 255 and launch[1] * 32 * registers <= 65536, what


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET", "0") != "0", reason="kernels are interpreted, not compiled")
def test_compiles_for_gfx942():
    from triton.backends.compiler import GPUTarget

    for launch in launches(SIZES[0], torch.float32):
        assert compile_for(launch, GPUTarget("hip", "gfx942", 64)).metadata.shared <= 65536
