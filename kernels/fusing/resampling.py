"""The part of `fuse` that knows antialiased sampling as CUT has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._C._functorch import is_functorch_wrapped_tensor

from kernels._checks import FLOATING
from kernels._guard import constant_to_compile
from kernels.fusing import paddings
from kernels.fusing.classes import Derived, derive, underive, untouched
from kernels.fusing.recognised import is_harmless
from kernels.resample import BlurDownsample, BlurUpsample, blur_downsample, blur_upsample
from kernels.resample.spec import binomial

_PADS = (nn.ReflectionPad2d, nn.ReplicationPad2d, nn.ZeroPad2d)


class _FusedBlur(Derived):
    """The operator in place of a forward that was seen to compute it, as long as the module is what it was then.

    `_fused_how`: (whether it enlarges, filter size), None once somebody has assigned an attribute. `_fused_pad`: type
    and padding of its pad. `_fused_filter`: the filter that was last seen to be the published one, and its version
    then: .to(), functional_call and load_state_dict bring other tensors or numbers.
    """

    _fused_how: tuple[bool, int] | None = None  # also of an object that the class itself has made
    _fused_pad: tuple[type, object]
    _fused_filter: tuple[torch.Tensor | None, int]
    filt: torch.Tensor
    impl: str

    def forward(self, x):
        if self._as_it_was_tried(x):
            assert self._fused_how is not None
            up, size = self._fused_how
            return blur_upsample(x, impl=self.impl) if up else blur_downsample(x, filter_size=size, impl=self.impl)
        return super().forward(x)  # pyright: ignore[reportAttributeAccessIssue] (of the other base)

    def _as_it_was_tried(self, x: object) -> bool:
        filt, pads = self.filt, list(self._modules.values())
        return (
            self._fused_how is not None
            and isinstance(x, torch.Tensor)
            and x.dtype in FLOATING
            and x.dim() == 4
            and x.shape[1] == filt.shape[0]
            and len(pads) == 1
            and (type(pads[0]), pads[0].padding) == self._fused_pad
            and untouched(pads[0])
            and type(filt) is torch.Tensor
            and not filt.is_meta
            and self._filter_is_published(filt)
        )

    def _filter_is_published(self, filt: torch.Tensor) -> bool:
        assert self._fused_how is not None
        if torch.compiler.is_compiling():  # looked at once, while it compiles
            return _holds(filt, *self._fused_how)
        seen, version = self._fused_filter
        if filt is seen and filt._version == version:
            return True
        if is_functorch_wrapped_tensor(filt) or not _holds(filt, *self._fused_how):
            return False
        if not filt.is_inference():  # which has no version, and is looked at each time
            self.__dict__["_fused_filter"] = (filt, filt._version)
        return True

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if not is_harmless(self, name):
            self.__dict__["_fused_how"] = None


@constant_to_compile
def _holds(filt: torch.Tensor, up: bool, size: int) -> bool:
    """Whether these are the numbers of the published filter, in the filter's own dtype."""
    row = binomial(size).to(filt)
    return filt.shape[2:] == row.shape and torch.equal(filt, (4 * row if up else row).expand_as(filt))


def looks_like(module: nn.Module) -> bool:
    """A depthwise filter in a buffer, and a pad before it: no parameters, nothing else inside."""
    if isinstance(module, (BlurDownsample, BlurUpsample)) or list(module.parameters()):
        return False
    filt = module._buffers.get("filt")
    children = list(module.children())
    return (
        isinstance(filt, torch.Tensor)
        and not nn.parameter.is_lazy(filt)
        and len(module._buffers) == 1
        and filt.dim() == 4
        and filt.shape[1] == 1
        and filt.shape[2] == filt.shape[3]
        and len(children) == 1
        and isinstance(children[0], _PADS)
    )


def name_of(module: nn.Module) -> str:
    if not isinstance(module, _FusedBlur) or module._fused_how is None:
        return ""
    up, size = module._fused_how
    return "BlurUpsample" if up else f"BlurDownsample, filter size {size}"


def give_back(module: nn.Module) -> None:
    if not isinstance(module, _FusedBlur):
        return
    underive(module, _FusedBlur)
    for key in ("impl", "_fused_how", "_fused_pad", "_fused_filter"):
        vars(module).pop(key, None)


def take(module: Any) -> str:
    """Puts the operator behind the forward of `module`, which looks like one; or says why not."""
    if module.filt.is_meta:
        return "its filter has no numbers yet; load them, then fuse"
    (pad,) = module.children()
    found = _known_filter(module)
    if found is None:
        return "its filter is none of the published ones"
    again = isinstance(module, _FusedBlur)
    if hasattr(module, "impl") and not again:
        return "it has an attribute `impl` of its own"
    if not untouched(pad):
        return "a hook watches its padding, or the padding's forward was replaced on the object"
    why = _why_not(module, *found)
    if not why and not again:
        why = derive(module, _FusedBlur)
    if why:
        return why
    if paddings.looks_like(pad):
        paddings.take(pad)  # for where the forward of before runs, or a second user of it
    module.impl = "auto"
    module.__dict__.update(_fused_how=found, _fused_pad=(type(pad), pad.padding), _fused_filter=(None, 0))
    return ""


def _known_filter(module: Any) -> tuple[bool, int] | None:
    """(whether it enlarges, size)."""
    filt = module.filt
    size = filt.shape[-1]
    if not 2 <= size <= 7 or not filt.is_floating_point():
        return None
    if _holds(filt, False, size):
        return False, size
    return (True, size) if size == 4 and _holds(filt, True, size) else None


def _why_not(module: Any, up: bool, size: int) -> str:
    """Empty if it computes what its filter says, and its gradient: tried in both modes on two maps with odd and even
    sides; noise, so that no two different operators agree."""
    generator = torch.Generator("cpu").manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(module.filt)

    def close(a: Any, b: torch.Tensor) -> bool:
        same = isinstance(a, torch.Tensor) and a.shape == b.shape and a.device == b.device and a.dtype == x.dtype
        return same and torch.allclose(a.double(), b, rtol=0, atol=32 * torch.finfo(x.dtype).eps)

    was_training = module.training
    try:
        for training, height, width in ((True, 9, 12), (False, 8, 11)):
            vars(module)["training"] = training
            with (
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast(module.filt.device.type, enabled=False),
            ):
                x = noise(2, module.filt.shape[0], height, width)
                wide = x.double()
                given = (x.clone().requires_grad_(), wide.clone().requires_grad_())
                try:
                    y = module.forward(given[0])  # not module(x): its hooks have no business here
                    if not isinstance(y, torch.Tensor) or not y.requires_grad:
                        return "on a small map it computes something else"
                    g = noise(*y.shape)
                    (dx,) = torch.autograd.grad(y, given[0], g)
                except Exception as error:  # somebody else's code, which this was only a guess about: left as it is
                    return f"it could not be tried on a small map ({type(error).__name__}: {error})"
                want = blur_upsample(given[1]) if up else blur_downsample(given[1], filter_size=size)
                if not close(y, want) or not close(dx, torch.autograd.grad(want, given[1], g.double())[0]):
                    return "on a small map it computes something else"
    finally:
        vars(module)["training"] = was_training
    return ""
