"""Modules over the resample operators, with the buffers of the published ones."""

from __future__ import annotations

import torch
from torch import nn

from kernels import backends
from kernels._checks import FLOATING, check_count
from kernels._tools import NotScriptable, as_leaf
from kernels.resample.checks import as_padding, check_filter_size
from kernels.resample.op import blur_downsample, blur_upsample, reflection_pad2d
from kernels.resample.spec import binomial

Tensor = torch.Tensor


class _Blur(NotScriptable, nn.Module):
    """Holds `filt` (C, 1, k, k) as CUT's modules do, so that their checkpoints load. The operator has its filter built
    in: a state dict with another one is an error."""

    filt: Tensor

    def __init__(self, channels: int, filt: Tensor, impl: str) -> None:
        super().__init__()
        check_count("channels", channels)
        self.impl = backends.checked_impl(impl)
        # made on the default device, then filled
        self.register_buffer("filt", torch.empty((channels, 1, *filt.shape), dtype=filt.dtype).copy_(filt))

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing, unexpected, errors) -> None:
        given = state_dict.get(f"{prefix}filt")
        # in half precision, too, the published numbers are exact; those of self.filt may not be there yet (to_empty)
        want = self._published().to(self.filt.dtype)
        fits = given is not None and given.shape == self.filt.shape and not given.is_meta
        if given is not None and fits and not torch.equal(given.to(want), want.expand_as(given)):
            errors.append(f"{prefix}filt: got other numbers than the published filter's, which are built in")
            return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _published(self) -> Tensor:
        """The filter (k, k), on the CPU."""
        raise NotImplementedError

    def _check_channels(self, x: Tensor) -> None:
        if isinstance(x, Tensor) and x.dim() == 4 and x.shape[1] != self.filt.shape[0]:
            raise ValueError(f"x: got {x.shape[1]} channels in shape {tuple(x.shape)}, want {self.filt.shape[0]}")

    def extra_repr(self) -> str:
        return f"{self.filt.shape[0]}" + ("" if self.impl == "auto" else f", impl={self.impl}")


class BlurDownsample(_Blur):
    """`kernels.blur_downsample` as CUT's Downsample: (N, C, H, W) -> (N, C, ceil(H / 2), ceil(W / 2)).

    Args:
        channels: C.
        filter_size, impl: as in `kernels.blur_downsample`.
    """

    def __init__(self, channels: int, filter_size: int = 3, *, impl: str = "auto") -> None:
        check_filter_size(filter_size)
        super().__init__(channels, binomial(filter_size), impl)
        self.filter_size = int(filter_size)

    def _published(self) -> Tensor:
        return binomial(self.filter_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        self._check_channels(x)
        return blur_downsample(x, filter_size=self.filter_size, impl=self.impl)

    def extra_repr(self) -> str:
        return super().extra_repr() + f", filter_size={self.filter_size}"


class BlurUpsample(_Blur):
    """`kernels.blur_upsample` as CUT's Upsample: (N, C, H, W) -> (N, C, 2 H, 2 W).

    Args:
        channels: C.
        impl: as in `kernels.blur_upsample`.
    """

    def __init__(self, channels: int, *, impl: str = "auto") -> None:
        super().__init__(channels, 4 * binomial(4), impl)

    def _published(self) -> Tensor:
        return 4 * binomial(4)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W)."""
        self._check_channels(x)
        return blur_upsample(x, impl=self.impl)


class ReflectionPad2d(NotScriptable, nn.ReflectionPad2d):
    """torch.nn.ReflectionPad2d over `kernels.reflection_pad2d`: (N, C, H, W) or (C, H, W). Maps that are not floating
    (labels, complex numbers) are padded by torch, unless `impl` names an implementation.

    Args:
        padding: pixels on every side, or (left, right, top, bottom).
        impl: as in `kernels.reflection_pad2d`.
    """

    def __init__(self, padding: int | tuple[int, int, int, int], *, impl: str = "auto") -> None:
        super().__init__(as_padding(padding))
        self.impl = backends.checked_impl(impl)

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, C, H, W) or (C, H, W)."""
        if not isinstance(x, Tensor):
            leaf = as_leaf(self, x)
            if leaf is not None:
                return leaf
        elif x.dtype not in FLOATING and self.impl in ("auto", "reference"):
            return super().forward(x)
        elif x.dim() == 3:
            return self.forward(x[None])[0]
        return reflection_pad2d(x, self.padding, impl=self.impl)

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.impl == "auto" else f", impl={self.impl}")
