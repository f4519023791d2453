"""Modules over the norm operators. Instance norms are torch's own with more behind them: same keys and statistics."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm as _TorchInstanceNorm

from kernels import backends
from kernels._checks import FLOATING, check_count
from kernels._dtypes import wide
from kernels._tools import NotScriptable, as_leaf
from kernels.norm import reference
from kernels.norm.checks import as_spec, check_activation, check_input
from kernels.norm.op import adaptive_instance_norm, instance_norm, munit_layer_norm, norm_with_stats
from kernels.norm.spec import INSTANCE, centred

Tensor = torch.Tensor


def _not_floating(x: Tensor) -> str:
    text = f"x: got {x.dtype}, want float32, bfloat16, float16 or float64"
    if x.is_quantized:
        text += ": this module has no quantised form; quantise the model first, then call kernels.fuse on it"
    return text


class _Epilogue(NotScriptable):
    """What every module of this room can put after the normalisation; mixed into nn.Module subclasses."""

    activation: str
    negative_slope: float
    padding: int
    impl: str

    def set_epilogue(self, activation: str, negative_slope: float, padding: int, impl: str) -> None:
        check_activation(activation, negative_slope)
        check_count("padding", padding, least=0)
        self.activation = activation
        self.negative_slope = float(negative_slope)
        self.padding = int(padding)
        self.impl = backends.checked_impl(impl)

    def _options(self) -> dict[str, Any]:
        return dict(
            activation=self.activation, negative_slope=self.negative_slope, padding=self.padding, impl=self.impl
        )

    def _epilogue_repr(self) -> str:
        text = ""
        if self.activation != "none":
            text += f", activation={self.activation}"
        if self.activation == "leaky_relu":
            text += f", negative_slope={self.negative_slope}"
        if self.padding:
            text += f", padding={self.padding}"
        return text if self.impl == "auto" else f"{text}, impl={self.impl}"


class _InstanceNorm(_Epilogue, _TorchInstanceNorm):
    """What the instance norms of one to three spatial dimensions share; mixed into torch's module of each."""

    _wanted: str  # the shape of a batch, for messages

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.set_epilogue(activation, negative_slope, 0, impl)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: a batch or one sample; returns the same, larger by the padding."""
        return self.run(x, residual, self.activation, self.negative_slope, self.padding)

    def run(self, x: Tensor, residual: Tensor | None, activation: str, negative_slope: float, padding: int) -> Tensor:
        """forward, with these options in place of the module's: a fused Sequential puts what follows the norm here."""
        if not isinstance(x, Tensor):
            leaf = as_leaf(self, x, residual)
            if leaf is None:
                raise TypeError(f"x: got {type(x).__name__}, want a tensor of shape {self._wanted}")
            return leaf
        if x.dtype not in FLOATING:
            raise TypeError(_not_floating(x))
        self._check_input_dim(x)
        if x.dim() == self._get_no_batch_dim():
            residual = None if residual is None else residual[None]
            return self.run(x[None], residual, activation, negative_slope, padding)[0]
        self._check_channels(x)
        by_batch = self.training or not self.track_running_stats
        if by_batch and self.running_mean is None:
            options: dict[str, Any] = dict(
                activation=activation, negative_slope=negative_slope, padding=padding, impl=self.impl
            )
            return instance_norm(x, self.weight, self.bias, eps=self.eps, residual=residual, **options)
        spec = as_spec(INSTANCE, x, self.eps, 0.0, activation, negative_slope, residual, padding)
        if not by_batch:
            if self.running_mean is None or self.running_var is None:
                name = "running_mean" if self.running_mean is None else "running_var"
                raise ValueError(f"{name}: got None, want a tensor: track_running_stats is True, in eval mode")
            return reference.normalise_with(
                x, self.running_mean, self.running_var, self.weight, self.bias, residual, spec
            )
        check_input("instance_norm", x, per_plane=True)
        names = ("x", "weight", "bias", "residual")
        impl = backends.choose(self.impl, x, self.weight, self.bias, residual, names=names)
        y, stats = norm_with_stats(x, self.weight, self.bias, residual, spec, impl)
        self._update_running_stats(x, stats)
        return y

    def _check_channels(self, x: Tensor) -> None:
        if x.shape[1] == self.num_features:
            return
        text = f"x: got {x.shape[1]} channels in shape {tuple(x.shape)}, want {self.num_features}"
        if self.affine or self.track_running_stats:
            raise ValueError(text)
        warnings.warn(f"{text}; without parameters it makes no difference", stacklevel=4)  # torch lets this pass too

    @torch.no_grad()
    def _update_running_stats(self, x: Tensor, stats: Tensor | None) -> None:
        """As torch: the batch's mean of the planes' means and of their unbiased variances, weighted by momentum."""
        if x.shape[0] == 0:
            return
        assert self.running_mean is not None and self.running_var is not None
        n = math.prod(x.shape[2:])
        if stats is None:
            space = tuple(range(2, x.dim()))
            d, mean = centred(wide(x), space)
            mean, var = mean.mean((0, *space)), d.square().mean(space).mean(0)
        else:
            mean, var = (stats[0] + stats[1]).mean(0), stats[2].mean(0)
        for running, new in ((self.running_mean, mean), (self.running_var, var * (n / (n - 1)))):
            running.lerp_(new.to(running.dtype), self.momentum or 0.0)  # torch, too, reads None as 0

    def extra_repr(self) -> str:
        return super().extra_repr() + self._epilogue_repr()


class InstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """torch.nn.InstanceNorm1d, followed in the same pass by activation and residual; otherwise as `InstanceNorm2d`.

    Input (N, C, L) or (C, L).
    """

    _wanted = "(N, C, L)"


class InstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """torch.nn.InstanceNorm2d, followed in the same pass by activation, residual and reflection padding.

    State dict, defaults and running statistics are torch's own. With `track_running_stats=True`, training normalises
    by the statistics of each plane and updates the buffers; eval mode normalises by the buffers. Input (N, C, H, W)
    or (C, H, W).

    Args:
        num_features, eps, momentum, affine, track_running_stats, device, dtype: as in torch.nn.InstanceNorm2d.
        activation, negative_slope, padding, impl: as in `kernels.instance_norm`.
    """

    _wanted = "(N, C, H, W)"

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = False,
        track_running_stats: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        padding: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.set_epilogue(activation, negative_slope, padding, impl)


class InstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """torch.nn.InstanceNorm3d, followed in the same pass by activation and residual; otherwise as `InstanceNorm2d`.

    Input (N, C, D, H, W) or (C, D, H, W), contiguous or channels_last_3d, which the result keeps.
    """

    _wanted = "(N, C, D, H, W)"


INSTANCE_NORMS = (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d)


class AdaptiveInstanceNorm2d(_Epilogue, nn.Module):
    """`kernels.adaptive_instance_norm` as a module without parameters: scale and shift are arguments of forward.

    Args:
        num_features: C.
        eps, unit_offset, activation, negative_slope, padding, impl: as in `kernels.adaptive_instance_norm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        unit_offset: bool = False,
        activation: str = "none",
        negative_slope: float = 0.2,
        padding: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.unit_offset = unit_offset
        self.set_epilogue(activation, negative_slope, padding, impl)

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: (N, C, H, W); scale, shift: (N, C)."""
        return adaptive_instance_norm(
            x, scale, shift, eps=self.eps, unit_offset=self.unit_offset, residual=residual, **self._options()
        )

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, unit_offset={self.unit_offset}" + self._epilogue_repr()


class MunitLayerNorm(_Epilogue, nn.Module):
    """MUNIT's layer norm: keys `gamma`, drawn from U[0, 1), and `beta`, zero, both (C,); see
    `kernels.munit_layer_norm`.

    Args:
        num_features: C.
        eps: added to the unbiased standard deviation.
        affine: whether gamma and beta exist.
        activation, negative_slope, padding, impl: as in `kernels.munit_layer_norm`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        negative_slope: float = 0.2,
        padding: int = 0,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        if affine:
            self.gamma = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.beta = nn.Parameter(torch.empty(num_features, device=device, dtype=dtype))
            self.reset_parameters()
        else:
            self.register_parameter("gamma", None)
            self.register_parameter("beta", None)
        self.set_epilogue(activation, negative_slope, padding, impl)

    def reset_parameters(self) -> None:
        """gamma from U[0, 1), beta 0, as MUNIT starts them."""
        if self.affine:
            nn.init.uniform_(self.gamma)
            nn.init.zeros_(self.beta)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x, residual: (N, C, H, W)."""
        return munit_layer_norm(x, self.gamma, self.beta, eps=self.eps, residual=residual, **self._options())

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}, affine={self.affine}" + self._epilogue_repr()
