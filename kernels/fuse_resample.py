"""The part of `fuse` that knows padding and antialiased sampling: published modules to those of this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from kernels.resample import BlurDownsample, BlurUpsample, ReflectionPad2d, blur_downsample, blur_upsample
from kernels.resample.reference import binomial

if TYPE_CHECKING:
    from kernels.fuse import FuseReport

_PADS = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d)


def convert(name: str, module: nn.Module, report: FuseReport) -> None:
    """Changes the class of `module`, in place, if it is one of those."""
    if type(module) is nn.ReflectionPad2d:
        if min(module.padding) < 0:
            report.left.append((name, "ReflectionPad2d: a negative padding, which crops"))
            return
        module.__class__ = ReflectionPad2d
        module.impl = "auto"
        report.replaced.append((name, "ReflectionPad2d"))
        return
    if not _looks_like_blur(module):
        return
    if module.filt.is_meta:
        report.left.append((name, f"{type(module).__name__}: its filter has no numbers yet; load them, then fuse"))
        return
    found = _known_filter(module)
    why = _why_not(module, *found) if found else "its filter is none of the published ones"
    if why:
        report.left.append((name, f"{type(module).__name__}: {why}"))
    else:
        _become(module, *found)
        what = "BlurUpsample" if found[0] else f"BlurDownsample, filter size {found[1]}"
        report.replaced.append((name, f"{what}, with its buffer"))


def _looks_like_blur(module: nn.Module) -> bool:
    """A depthwise filter in a buffer, and a pad before it: no parameters, nothing else inside."""
    if isinstance(module, (BlurDownsample, BlurUpsample)) or list(module.parameters()):
        return False
    filt = module._buffers.get("filt")
    children = list(module.children())
    return (
        isinstance(filt, torch.Tensor)
        and len(module._buffers) == 1
        and filt.dim() == 4
        and filt.shape[1] == 1
        and filt.shape[2] == filt.shape[3]
        and len(children) == 1
        and isinstance(children[0], _PADS)
    )


def _known_filter(module: nn.Module) -> tuple[bool, int] | None:
    """(whether it enlarges, size)."""
    filt = module.filt
    size = filt.shape[-1]
    if not 2 <= size <= 7 or not filt.is_floating_point():
        return None
    row = binomial(size).to(filt)
    if torch.equal(filt, row.expand_as(filt)):
        return False, size
    if size == 4 and torch.equal(filt, (4 * row).expand_as(filt)):
        return True, size
    return None


@torch.no_grad()
def _why_not(module: nn.Module, up: bool, size: int) -> str:
    """Empty if it computes what its filter says: tried on two maps with odd and even sides; noise, so that no two
    different operators agree."""
    generator = torch.Generator().manual_seed(0)
    for height, width in ((9, 12), (8, 11)):
        x = torch.randn(1, module.filt.shape[0], height, width, generator=generator).to(module.filt)
        try:
            y = module.forward(x)  # not module(x): its hooks have no business here
        except Exception as error:  # somebody else's code, which this was only a guess about: left as it is
            return f"it could not be tried on a small map ({type(error).__name__}: {error})"
        wide = x.double()
        want = blur_upsample(wide) if up else blur_downsample(wide, filter_size=size)
        same = isinstance(y, torch.Tensor) and y.shape == want.shape
        if not same or not torch.allclose(y.double(), want, rtol=0, atol=32 * torch.finfo(x.dtype).eps):
            return "on a small map it computes something else"
    return ""


def _become(module: nn.Module, up: bool, size: int) -> None:
    # The class changes and the object stays, with its buffer and its hooks; the pad has nothing left to do.
    for key in list(module._modules):
        del module._modules[key]
    module.__class__ = BlurUpsample if up else BlurDownsample
    module.impl = "auto"
    if not up:
        module.filter_size = size
