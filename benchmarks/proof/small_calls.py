"""Every room's kernels on small odd shapes, forward and backward: what the sanitizer watches.
`python -m benchmarks.proof.small_calls DEVICE IMPL [ROOM ...]` prints how many calls it made."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import torch

import kernels

Tensor = torch.Tensor
Call = tuple[Callable[..., object], list[Tensor]]  # function(*tensors) -> tensors; gradients of all floating ones

ROOMS = ("norm", "nce", "patches", "resample", "sinkhorn")
# Each dtype in one layout, alternately: what is compiled for a call takes longer than the call.
LAYOUTS = ((torch.float32, False), (torch.bfloat16, True), (torch.float16, False))
# Odd in every size, of several vectors and warps, and one that a cluster of blocks shares or two sweeps take.
SHAPES = ((2, 5, 9, 7), (1, 24, 17, 33), (1, 3, 131, 129))


def randn(*shape: int) -> Tensor:
    return torch.randn(shape)


def norm(impl: str) -> Iterator[Call]:
    for n, c, h, w in SHAPES:
        x, residual, style = randn(n, c, h, w), randn(n, c, h, w), randn(n, c, h + 2, w)
        yield lambda x, a, b: kernels.instance_norm(x, a, b, activation="relu", impl=impl), [x, randn(c), randn(c)]
        yield lambda x, r: kernels.instance_norm(x, residual=r, padding=1, impl=impl), [x, residual]
        yield (
            lambda x, a, b: kernels.adaptive_instance_norm(x, a, b, activation="leaky_relu", impl=impl),
            [x, randn(n, c), randn(n, c)],
        )
        yield lambda x, y: kernels.adain(x, y, impl=impl), [x, style]
        yield lambda x, a, b: kernels.munit_layer_norm(x, a, b, activation="tanh", impl=impl), [x, randn(c), randn(c)]


def nce(impl: str) -> Iterator[Call]:
    options = {"normalize": True, "impl": impl}
    five = [randn(2, patches, width) for patches, width in ((37, 40), (64, 33), (5, 256), (130, 16), (2, 8))]
    yield lambda *q: kernels.patch_nce_loss(q[:5], q[5:], **options), [*five, *(torch.randn_like(q) for q in five)]
    q, k, bank, weight = randn(2, 37, 40), randn(2, 37, 40), randn(77, 40), randn(2, 37, 77)
    yield (
        lambda q, k, bank, weight: kernels.patch_nce_loss(
            q, k, negatives=bank, log_weight=weight, detach_keys=False, **options
        ),
        [q, k, bank, weight],
    )
    yield (
        lambda q, k: kernels.patch_nce_loss(q, k, decoupled=True, detach_keys=False, reduction="none", **options),
        [q, k],
    )


def patches(impl: str) -> Iterator[Call]:
    maps = [randn(*shape) for shape in SHAPES]
    ids = [torch.randint(h * w, (50,)) for *_, h, w in SHAPES]  # some of them twice

    def at(maps: Sequence[Tensor]) -> list[Tensor]:
        return [i.to(x.device) for i, x in zip(ids, maps)]

    yield lambda *maps: kernels.sample_patches(maps, ids=at(maps), impl=impl)[0], maps
    for x, i in zip(maps, ids):
        yield lambda x, i=i: kernels.tap_patches(x * 1, i.to(x.device), impl=impl), [x]


def resample(impl: str) -> Iterator[Call]:
    for shape in SHAPES:
        x = randn(*shape)
        for size in (3, 4):
            yield lambda x, size=size: kernels.blur_downsample(x, filter_size=size, impl=impl), [x]
        yield lambda x: kernels.blur_upsample(x, impl=impl), [x]
        yield lambda x: kernels.reflection_pad2d(x, (1, 2, 3, 0), impl=impl), [x]


def sinkhorn(impl: str) -> Iterator[Call]:
    for shape in ((2, 33, 65), (1, 130, 7)):
        yield lambda x: kernels.sinkhorn(x, 3, impl=impl), [randn(*shape)]


def run(call: Call, device: torch.device, dtype: torch.dtype, channels_last: bool) -> None:
    """Forward, and backward from random gradients. The host draws them, so that few kernels of torch are watched."""
    function, tensors = call

    def arranged(t: Tensor) -> Tensor:
        t = t.to(dtype)
        return (t.contiguous(memory_format=torch.channels_last) if channels_last and t.dim() == 4 else t).to(device)

    leaves = [arranged(t).requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = [outputs] if isinstance(outputs, Tensor) else [y for y in outputs if y.requires_grad]
    grads = [arranged(torch.randn(y.shape)).to(y.dtype) for y in outputs]
    torch.autograd.grad(outputs, leaves, grads, allow_unused=True)  # no gradient reaches keys that are detached


def main() -> int:
    device, impl, *rooms = sys.argv[1:]
    torch.manual_seed(0)
    count = 0
    for room in rooms or ROOMS:
        for call in globals()[room](impl):
            for dtype, channels_last in LAYOUTS:
                run(call, torch.device(device), dtype, channels_last)
                count += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"{count} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
