"""The CUDA kernels of the norm family compiled for GPUs that are not here: what the launcher would really launch for
the published networks' shapes spills nothing, fits registers and shared memory, and moves 16 bytes at a time."""

from __future__ import annotations

import pytest
from support.cuda_offline import ARCHITECTURES, DEVICES, Kernel, all_compiled, distinct, needs_nvrtc, planned, problems
from support.emulated import Launch
from support.norm_networks import BF16, FLOAT, Case, call, every_case, network_cases

from kernels.norm import launch_cuda
from kernels.norm.cut_cuda import PLANES, THREADS, Shape, cut
from kernels.norm.spec import INSTANCE, LAYER_STD

LAYOUTS = [(d, channels_last) for d in (FLOAT, BF16) for channels_last in (False, True)]


def launches(cases: list[Case], arch: str) -> list[Launch]:
    with planned(arch) as found:
        for case in cases:
            call(launch_cuda, case)
    return found


def selection(start: int, step: int) -> list[Case]:
    return [case for layout in LAYOUTS for case in network_cases(*layout)][start::step]


def check(cases: list[Case], arch: str) -> list[Kernel]:
    kernels = all_compiled(launches(cases, arch), arch)
    assert kernels and not problems(kernels), "\n".join(problems(kernels))
    return kernels


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_resources(arch):
    """Each architecture a part of the cases; the rest is for `pytest -m slow`."""
    check(selection(5 * list(DEVICES).index(arch), 22), arch)


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("arch", DEVICES)
def test_resources_of_everything(arch):
    check(every_case(), arch)


@needs_nvrtc
@pytest.mark.parametrize("dtype, arch", [(FLOAT, "sm_80"), (BF16, "sm_90")], ids=str)
def test_16_bytes_at_a_time(dtype, arch):
    """Maps move in vectors, and no hot loop stores single elements: what is narrow are statistics (float32)."""
    for channels_last in (False, True):
        for kernel in check([Case((1, 64, 16, 16), dtype, channels_last)], arch):
            wide = kernel.count(r"STG\.E\.128")
            assert wide and kernel.count(r"LDG\.E\.128[.A-Z]*"), kernel.launch.function
            assert kernel.count(r"STG\.[.A-Z0-9]*") - wide <= 4, kernel.launch.function


# ---- the rule of cutting ---------------------------------------------------------------------------------------------


def names(case: Case, arch: str = "sm_90") -> list[str]:
    return [launch.name for launch in launches([case], arch)]


def test_residual_blocks_take_one_launch():
    """38 of the 58 norms of a CUT step: 256 planes of 64 x 64, channels last, which Triton's tiles do not hold."""
    for dtype, channels_last in LAYOUTS:
        for padding in (0, 1):
            case = Case((1, 256, 64, 64), dtype, channels_last, padding=padding)
            assert names(case) == ["forward_held", "backward_held"], case


def test_large_planes_are_held_by_clusters_alone():
    case = Case((1, 64, 256, 256), FLOAT)
    assert names(case) == ["forward_held", "backward_held"]
    assert names(case, "sm_80") == ["chunk_moments", "forward_apply", "chunk_sums", "backward_apply"]


@pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_one_image_fills_the_device(dtype, channels_last):
    for shape in ((1, 64, 256, 256), (1, 256, 64, 64), (1, 128, 128, 128)):
        for launch in launches([Case(shape, dtype, channels_last)], "sm_90"):
            least = 0.4 if launch.name.endswith("held") else 3.0  # of the multiprocessors; half of them, but one launch
            assert launch.name.startswith("combine") or launch.grid.blocks >= least * DEVICES["sm_90"].sms, launch


@pytest.mark.parametrize("arch", DEVICES)
@pytest.mark.parametrize("n,c,length", [(1, 1, 2), (1, 64, 65536), (3, 5, 1 << 22), (2, 512, 961), (1000, 3, 49)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_pieces_cover_each_plane_once(n, c, length, channels_last, arch):
    device = DEVICES[arch]
    for itemsize in (2, 4):
        for kind in (INSTANCE, LAYER_STD):
            for backward in (False, True):
                shape = Shape(n, c, length, itemsize, channels_last, 0, kind)
                found = cut(shape, device, backward=backward, padded=False)
                assert (found.pieces - 1) * found.span < length <= found.pieces * found.span, found
                assert found.threads % 32 == 0 and found.threads <= THREADS
                assert (found.vector << found.log_columns) <= PLANES and found.shared <= device.shared
                assert found.held == (found.pieces <= device.cluster) or not found.held
                assert kind == INSTANCE or not found.held
                if found.held and found.per:
                    share = found.span // (1 if channels_last else found.vector) << found.log_columns
                    assert share <= found.per * found.threads, found


def test_kernels_are_not_compiled_anew_for_every_shape():
    """Sizes are arguments: images of other sizes find their kernels compiled."""
    cases = [Case(shape, FLOAT) for shape in ((1, 64, 64, 64), (1, 64, 64, 60), (1, 80, 60, 64), (2, 64, 56, 64))]
    assert len(distinct(launches(cases, "sm_90"))) <= 3
