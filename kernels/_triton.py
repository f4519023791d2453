"""What the launchers of the triton kernels share: the launch itself, sizes, devices. Imported where triton is."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
import triton.language as tl  # noqa: F401 (triton's interpreter looks for it in the module of every kernel)

ASSUMED_SMS = 132  # of an H100 or H200, where there is no device to ask


# ---- numbers ---------------------------------------------------------------------------------------------------------


def pow2(n: int) -> int:
    """The power of two at or above n."""
    return 1 << max(n - 1, 0).bit_length()


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


# ---- sizes as arguments ----------------------------------------------------------------------------------------------

# Triton compiles a kernel again for an integer that is 1 (a constant then) and for one that is a multiple of 16 (a
# promise of alignment then). Of widths and strides that is wanted: it makes vector loads. Of numbers of planes, chunks
# or positions it only makes more kernels to compile. These are plain integers, and are passed
#
#   as arguments of their own     listed in the kernel's do_not_specialize (PLAIN of each room);
#   inside a tuple                encoded, because do_not_specialize has no effect there, without a word. Kernels that
#                                 serve several layers or maps at once take their sizes in tuples.
#
# Encoding all of them would be one way instead of two, but other code: of a shifted number the compiler knows a range,
# and ptxas gave the Sinkhorn kernel for 33 x 20 then 96 registers instead of 72 (sm_90).


def encode(n: int) -> int:
    """A plain integer n >= 0 as a member of a tuple; the kernel has to `decode` it. Odd and above 1, whatever n is, and
    32 bits up to n = 2^30 - 2."""
    return 2 * n + 3


@triton.jit
def decode(n):
    """What was encoded."""
    return (n - 3) >> 1


# ---- launches --------------------------------------------------------------------------------------------------------


def run(kernel, programs: int, warps: int, *args, stages: int = 1, **constants) -> None:
    """Launches `programs` programs. The only place that does: launchers call it as `_triton.run`, and tests put
    something else in its place there.

    stages: 1 unless loads feed a product of matrices; staging other loads through shared memory gains nothing.
    enable_fp_fusion: backwards compute again what forwards did (d * a + b, logits) and must see the very numbers, so
    every kernel rounds alike, whatever triton's default is.
    """
    kernel[(programs,)](*args, **constants, num_warps=warps, num_stages=stages, enable_fp_fusion=True)


@functools.cache
def _sms(index: int) -> int:
    return torch.cuda.get_device_properties(index).multi_processor_count


def sms_of(x: torch.Tensor) -> int:
    """Multiprocessors of x's device."""
    return _sms(x.get_device()) if x.is_cuda else ASSUMED_SMS


def on(x: torch.Tensor) -> contextlib.AbstractContextManager:
    """Makes x's device current where it is not: triton launches on the current device."""
    if x.is_cuda and x.get_device() != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return contextlib.nullcontext()
