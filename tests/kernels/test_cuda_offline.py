"""The CUDA kernels of patches, resample and sinkhorn compiled for GPUs that are not here: they spill nothing and fit.
(Those of norm and nce have files of their own.)"""

from __future__ import annotations

import pytest
import torch
from support.cuda_offline import DEVICES, all_compiled, needs_nvrtc, planned, problems

from kernels.patches import launch_cuda as patches
from kernels.resample import launch_cuda as resample
from kernels.resample.spec import DOWN, PAD, UP, Spec
from kernels.sinkhorn import launch_cuda as sinkhorn


def launch_all(dtype, channels_last):
    """CUT's calls, forward and backward."""

    def new(*shape, dtype=dtype):
        order = torch.channels_last if channels_last and len(shape) == 4 else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, device="meta", memory_format=order)

    ids = new(256, dtype=torch.int64)
    maps = [new(1, c, s, s) for c, s in ((3, 262), (128, 256), (256, 128), (256, 64))]
    rows = patches.forward(maps, [ids] * len(maps))
    patches.add(maps[-1], rows[-1], ids)
    for spec in (
        Spec(DOWN, (3, 0), (3, 0), 256, 256),
        Spec(UP, (0, 0), (0, 0), 64, 64),
        Spec(PAD, (3, 3), (3, 3), 256, 256),
    ):
        y = resample.apply(new(1, 64, spec.height, spec.width), spec, channels_last)
        resample.apply(y, spec._replace(transposed=True), channels_last)
    plan, potentials = sinkhorn.forward(new(4, 256, 256), 50)
    sinkhorn.backward(plan, plan, potentials)


CASES = [(d, last) for d in (torch.bfloat16, torch.float32, torch.float16) for last in (True, False)]


@needs_nvrtc
@pytest.mark.parametrize(
    "arch, case",
    [
        pytest.param(arch, case, marks=() if (i + j) % 6 == 0 and arch == "sm_90" else pytest.mark.slow)
        for i, arch in enumerate(DEVICES)
        for j, case in enumerate(CASES)
    ],
    ids=str,
)
def test_resources(arch, case):
    with planned(arch) as found:
        launch_all(*case)
    names = {launch.name for launch in found}
    assert names == {"gather", "scatter", "resample", "iterate", "sweep", "gradient"}
    kernels = all_compiled(found, arch)
    assert not problems(kernels), "\n".join(problems(kernels))
    for kernel in kernels:
        if kernel.launch.room == "patches" or (kernel.launch.room == "resample" and case[1]):
            assert kernel.count(r"STG\.E\.128"), kernel.launch.function
