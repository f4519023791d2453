"""The CUDA kernels of patch_nce_loss compiled for GPUs that are not here: what the launcher would really launch for
CUT's shapes and its relatives' spills nothing, fits registers and shared memory, and multiplies by tensor cores."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from support.cuda_offline import DEVICES, RESERVED, Kernel, all_compiled, distinct, needs_nvrtc, planned, problems
from support.emulated import Launch

from kernels.nce import launch_cuda
from kernels.nce.cut_cuda import Size, cut
from kernels.nce.spec import Layer, Needs, Spec

FLOAT, BF16, HALF = torch.float32, torch.bfloat16, torch.float16
CUT = ((1, 256, 256),) * 5  # five layers of 256 patches, 256 features behind the head
SPEC = Spec(0.07, True, False)


class Case(NamedTuple):
    dtype: torch.dtype
    sizes: tuple = CUT  # (B, S, C) of each layer
    negatives: tuple = ()  # (M,) shared, or (B, M)
    needs: tuple = (True, True, True, False)


def launches(cases: list[Case], arch: str) -> list[Launch]:
    """Everything forward and backward of these calls would launch."""
    with planned(arch) as found:
        for case in cases:
            layers = [layer(case, *size) for size in case.sizes]
            needs = [Needs(*case.needs)._replace(negatives=bool(case.negatives) and case.needs[2])] * len(layers)
            loss, stats, units = launch_cuda.forward(layers, SPEC, [case.needs[0]] * len(layers))
            launch_cuda.backward(loss, layers, stats, units, needs, SPEC)
    return found


def layer(case: Case, b: int, s: int, c: int) -> Layer:
    def new(*shape):
        return torch.empty(shape, dtype=case.dtype, device="meta")

    return Layer(new(b, s, c), new(b, s, c), new(*case.negatives, c) if case.negatives else None, None, None)


def every_case(dtype: torch.dtype) -> list[Case]:
    """All instantiations: blocks of few rows and of many, of each number of columns."""
    found = [Case(dtype, ((batch, 256, width),)) for width in (64, 128, 256) for batch in (1, 128)]
    return [*found, Case(dtype, CUT, needs=(True, False, False, False))]


def check(cases: list[Case], arch: str) -> list[Kernel]:
    kernels = all_compiled(launches(cases, arch), arch)
    assert kernels and not problems(kernels), "\n".join(problems(kernels))
    return kernels


@needs_nvrtc
@pytest.mark.parametrize(
    "dtype, arch", [(BF16, "sm_80"), pytest.param(FLOAT, "sm_90", marks=pytest.mark.slow)], ids=str
)
def test_resources(arch, dtype):
    check([Case(dtype)], arch)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [FLOAT, BF16, HALF], ids=str)
@pytest.mark.parametrize("arch", DEVICES)
def test_resources_of_everything(arch, dtype):
    # the shared memory of sm_120 holds the smaller of the blocks with 256 float32 columns alone
    assert len(check(every_case(dtype), arch)) == (11 if (dtype, arch) == (FLOAT, "sm_120") else 13)


@needs_nvrtc
@pytest.mark.parametrize("dtype", [BF16, pytest.param(HALF, marks=pytest.mark.slow)], ids=str)
def test_16_bit_products_are_the_tensor_cores(dtype):
    """And what is read and written is so 16 bytes at a time: what is narrow are statistics and weights."""
    for kernel in check([Case(dtype)], "sm_90"):
        assert kernel.count(r"HMMA\.16816\.F32[.A-Z0-9]*") >= 16 and kernel.count(r"LDSM[.A-Z0-9]*")
        assert kernel.count(r"LDGSTS\.E\.[.A-Z]*128[.A-Z0-9]*") and kernel.count(r"STG\.E\.128"), kernel.launch.function


# ---- the launcher itself ---------------------------------------------------------------------------------------------


def names(case: Case) -> list[str]:
    return [launch.name for launch in launches([case], "sm_90")]


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_one_launch_serves_all_layers(dtype):
    """CUT detaches its keys: no tile is computed again."""
    alone = (True, False, False, False)
    for sizes in (CUT, ((1, 256, 64), (2, 64, 128), (1, 32, 300))):
        assert names(Case(dtype, sizes, needs=alone)) == ["forward", "backward_rows"]
        assert names(Case(dtype, sizes)) == ["forward", "backward"]
    assert len(names(Case(dtype, CUT + CUT, needs=alone))) == 4  # beyond 8 layers, one more


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
def test_tiles_grow_with_the_batch(dtype):
    few, many = (launches([Case(dtype, ((batch, 256, 256),) * 5)], "sm_90") for batch in (1, 64))
    assert few[0].grid.blocks == 80 and few[0].function.endswith("256, 16>"), few[0]
    assert many[0].grid.blocks == 5 * 64 * 8 and many[0].function.endswith("256, 32>"), many[0]


def test_kernels_are_not_compiled_anew_for_every_shape():
    shapes = [CUT, ((1, 1, 256),) * 5, ((3, 77, 256),) * 5, ((1, 255, 250),) * 5, ((2, 64, 256), *CUT[1:])]
    cases = [Case(FLOAT, sizes, negatives) for sizes in shapes for negatives in ((), (100,)) if sizes[0][1] > 1]
    assert len(distinct(launches(cases, "sm_90"))) == 2


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("width", [1, 64, 65, 256, 257, 5000])
@pytest.mark.parametrize("own, others", [(1, 1), (256, 256), (7, 100_000), (100_000, 7)])
def test_blocks_fit_every_device(own, others, width, arch):
    for itemsize in (2, 4):
        for problems_ in (1, 64):
            size = Size(problems_, own, others, width, True)
            found = cut([size, size._replace(own=0)], itemsize, DEVICES[arch])
            assert found.shared + 6 * 1024 + RESERVED <= DEVICES[arch].shared, found
            assert found.tiles[0] * found.rows >= own and found.chunks[0] * found.columns >= width
            assert found.starts == (0, found.blocks) and found.blocks == problems_ * found.tiles[0] * found.chunks[0]
