"""The triton patches kernels compiled for GPUs that are not here: what the launcher would launch for CUT's layers must
fit each target's shared memory and registers and spill nothing. The launcher runs on meta tensors, its launches
recorded instead of run."""

from __future__ import annotations

import os
import re
import subprocess
from typing import NamedTuple

import pytest
import torch

triton = pytest.importorskip("triton", reason="triton is not installed")
if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
    pytest.skip("TRITON_INTERPRET is set: kernels are interpreted, not compiled", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kernels.patches import launch_triton  # noqa: E402
from kernels.patches.spec import form_of  # noqa: E402

POINTER = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64"}
REGISTERS = 128  # of a thread: four programs of four warps on a multiprocessor
SHARED = 4096

CUT = [(1, 3, 262, 262), (1, 128, 256, 256), (1, 256, 128, 128), (1, 256, 64, 64), (1, 256, 64, 64)]
ASSEMBLER = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "ptxas-blackwell")
needs_assembler = pytest.mark.skipif(
    not os.access(ASSEMBLER, os.X_OK), reason="this triton has no ptxas-blackwell, which counts registers and spills"
)


class Launch(NamedTuple):
    kernel: object
    programs: int
    warps: int
    args: tuple
    constants: dict


def launches(sizes: list[tuple], dtype: torch.dtype, channels_last: bool = False, count: int = 256) -> list[Launch]:
    """Of sample_patches forward, backward with drawn and with given positions, and of tap_patches backward."""
    found = []

    def record(kernel, programs, warps, *args, **constants):
        found.append(Launch(kernel, programs, warps, args, constants))

    order = torch.channels_last if channels_last else torch.contiguous_format
    maps = [torch.empty(size, dtype=dtype, device="meta", memory_format=order) for size in sizes]
    ids = [torch.empty(count, dtype=torch.int64, device="meta") for _ in maps]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch_triton, "_run", record)
        rows = launch_triton.forward(maps, ids)
        for unique in (True, False):
            launch_triton.backward(rows, ids, [form_of(x) for x in maps], unique)
        launch_triton.add(maps[0], rows[0], ids[0])
    return found


def typed(value: object) -> object:
    """An argument's type as the just-in-time compiler specialises it."""
    if isinstance(value, tuple):
        return tuple(typed(v) for v in value)
    if isinstance(value, torch.Tensor):
        return POINTER[value.dtype]
    # of 1 and of multiples of 16 it would make other kernels; see triton_kernels.encode
    assert value != 1 and value % 16, value
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def signature(launch: Launch) -> dict:
    names = launch.kernel.arg_names
    assert set(names) == {*names[: len(launch.args)], *launch.constants}
    return {name: typed(value) for name, value in zip(names, launch.args)} | dict.fromkeys(
        launch.constants, "constexpr"
    )


def compile_for(launch: Launch, target: GPUTarget):
    names = launch.kernel.arg_names
    constants = {(names.index(name),): value for name, value in launch.constants.items()}
    aligned = {
        (names.index(name), i): [["tt.divisibility", 16]]
        for name in ("maps", "ids", "rows")
        for i in range(len(launch.args[0]))
    }
    source = ASTSource(launch.kernel, signature(launch), constants, aligned)
    options = {"num_warps": launch.warps, "num_stages": 1, "enable_fp_fusion": True}
    return triton.compile(source, target=target, options=options)


@needs_assembler
@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resources(dtype, capability, tmp_path):
    found = launches(CUT, dtype, channels_last=dtype == torch.bfloat16)
    assert [launch.kernel.__name__ for launch in found] == ["gather", "scatter", "scatter", "scatter"]
    for launch in found:
        compiled = compile_for(launch, GPUTarget("cuda", capability, 32))
        ptx = tmp_path / "kernel.ptx"
        ptx.write_text(compiled.asm["ptx"])
        arch = re.search(r"\.target\s+(sm_\w+)", compiled.asm["ptx"]).group(1)
        command = [ASSEMBLER, "-v", f"--gpu-name={arch}", str(ptx), "-o", str(tmp_path / "kernel.cubin")]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stderr
        what = f"{launch.kernel.__name__} {launch.constants} sm_{capability}"
        assert int(re.search(r"Used (\d+) registers", text).group(1)) <= REGISTERS, what
        assert sum(int(n) for n in re.findall(r"(\d+) bytes spill", text)) == 0, what
        assert compiled.metadata.shared <= SHARED, what


def test_compiles_for_gfx942():
    for launch in launches(CUT[:2], torch.bfloat16):
        assert compile_for(launch, GPUTarget("hip", "gfx942", 64)).metadata.shared <= 65536


def test_kernels_are_not_compiled_anew_for_every_shape():
    others = [(2, 1, 16, 1), (4, 16, 31, 512), (1, 17, 64, 64), (3, 256, 1, 1), (1, 64, 8, 8)]
    one, other = launches(CUT, torch.float32), launches(others, torch.float32, channels_last=True, count=16)
    assert [signature(launch) for launch in one] == [signature(launch) for launch in other]
    assert [launch.constants for launch in one] == [launch.constants for launch in other]


def test_five_layers_fill_the_device():
    assert launches(CUT, torch.float32)[0].programs >= 132


def test_sizes_survive_their_code():
    for size in (0, 1, 16, 12345, 2**40):
        assert launch_triton.triton_kernels.encode(size) >> 4 == size
