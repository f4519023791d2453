"""Norms as other people's code has them, in several styles, and look-alikes that compute something else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def over_planes(p, x):
    """(N, C) or (C,) to where it meets the planes of x."""
    return p.reshape(*p.shape if p.dim() == 2 else (1, -1), *[1] * (x.dim() - 2))


# ---- scale and shift from outside ------------------------------------------------------------------------------------


class Assigned(nn.Module):
    """A batch norm of N * C channels: `weight` and `bias` (N * C,) come from outside, the buffers are never read."""

    def __init__(self, channels, eps=1e-5):
        super().__init__()
        self.num_features, self.eps = channels, eps
        self.weight = self.bias = None
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        n = x.shape[0]
        planes = x.contiguous().view(1, n * x.shape[1], *x.shape[2:])
        statistics = self.running_mean.repeat(n), self.running_var.repeat(n)
        return F.batch_norm(planes, *statistics, self.weight, self.bias, True, 0.1, self.eps).view(x.shape)


class AssignedWithoutBuffers(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.num_features, self.eps = channels, 1e-3
        self.weight, self.bias = None, None

    def forward(self, x):
        y = F.batch_norm(x.flatten(0, 1)[None], None, None, self.weight, self.bias, training=True, eps=self.eps)
        return y.unflatten(1, x.shape[:2])[0]


class AssignedByMoments(Assigned):
    unbiased, outside, offset = False, False, 0

    def forward(self, x):
        var, mean = torch.var_mean(x, (2, 3), keepdim=True, unbiased=self.unbiased)
        root = var.sqrt() + self.eps if self.outside else (var + self.eps).sqrt()
        scale = over_planes(self.weight.view(x.shape[:2]), x) + self.offset
        return (x - mean) / root * scale + over_planes(self.bias.view(x.shape[:2]), x)


ASSIGNED = (Assigned, AssignedWithoutBuffers, AssignedByMoments)


class UnbiasedAssigned(AssignedByMoments):
    unbiased = True


class OutsideAssigned(AssignedByMoments):
    outside = True


class OffsetAssigned(AssignedByMoments):
    offset = 1


class StatisticsInEval(Assigned):
    def forward(self, x):
        if self.training:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var)


class ReadsBuffers(Assigned):
    def forward(self, x):
        return super().forward(x) + over_planes(self.running_mean, x)


class WritesBuffers(Assigned):
    def forward(self, x):
        self.running_mean.lerp_(x.detach().mean((0, 2, 3)), 0.1)
        return super().forward(x)


class Counts(Assigned):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class ActivatedAssigned(Assigned):
    def forward(self, x):
        return super().forward(x).relu()


class WithoutGradient(Assigned):
    def forward(self, x):
        return super().forward(x).detach() + 0 * x


UNLIKE_ASSIGNED = (
    UnbiasedAssigned,
    OutsideAssigned,
    OffsetAssigned,
    StatisticsInEval,
    ReadsBuffers,
    WritesBuffers,
    Counts,
    ActivatedAssigned,
    WithoutGradient,
)


# ---- per sample, over channels and space -----------------------------------------------------------------------------


class Layer(nn.Module):
    """Unbiased deviation plus eps; a single sample goes another way."""

    def __init__(self, channels, eps=1e-5, affine=True):
        super().__init__()
        self.num_features, self.eps, self.affine = channels, eps, affine
        if affine:
            self.gamma = nn.Parameter(torch.rand(channels))
            self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        if len(x) == 1:
            x = (x - x.mean()) / (x.std() + self.eps)
        else:
            flat = x.flatten(1)
            mean, std = (m.view(-1, 1, 1, 1) for m in (flat.mean(1), flat.std(1)))
            x = (x - mean) / (std + self.eps)
        return x * over_planes(self.gamma, x) + over_planes(self.beta, x) if self.affine else x


class PlainLayer(Layer):
    def __init__(self, channels):
        super().__init__(channels, affine=False)


class LayerByMoments(nn.Module):
    """Other names, in another order."""

    unbiased, outside, offset, dims = True, True, 0, (1, 2, 3)

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.eps = 1e-4

    def forward(self, x):
        var, mean = torch.var_mean(x, self.dims, keepdim=True, unbiased=self.unbiased)
        d = (x - mean) / (var.sqrt() + self.eps if self.outside else (var + self.eps).sqrt())
        return torch.addcmul(over_planes(self.bias, x), d, over_planes(self.weight, x) + self.offset)


class ScaledLayer(nn.Module):
    """A scale and no shift."""

    def __init__(self, channels):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(channels)), 1e-6

    def forward(self, x):
        std, mean = torch.std_mean(x, (1, 2, 3), keepdim=True)
        return (x - mean) / (std + self.eps) * self.scale[:, None, None]


LAYERS = (Layer, PlainLayer, LayerByMoments, ScaledLayer)


class BiasedLayer(LayerByMoments):
    unbiased = False


class InsideLayer(LayerByMoments):
    outside = False


class OffsetLayer(LayerByMoments):
    offset = 1


class LayerOfPixels(LayerByMoments):
    dims = 1


class LayerOfPlanes(LayerByMoments):
    dims = (2, 3)


class OtherForOneSample(LayerByMoments):
    def forward(self, x):
        return super().forward(x) if len(x) > 1 else F.layer_norm(x, x.shape[1:])


class OtherInEval(LayerByMoments):
    def forward(self, x):
        return super().forward(x) if self.training else x


class Noisy(LayerByMoments):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.randn_like(x)


class Fails(LayerByMoments):
    def forward(self, x):
        raise RuntimeError("want a mask")


UNLIKE_LAYERS = (
    BiasedLayer,
    InsideLayer,
    OffsetLayer,
    LayerOfPixels,
    LayerOfPlanes,
    OtherForOneSample,
    OtherInEval,
    Noisy,
    Fails,
)


# ---- a projection of the style inside --------------------------------------------------------------------------------

STYLE = 5


class Projected(nn.Module):
    """The first half of what `fc` gives is the scale, less one."""

    def __init__(self, channels):
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.fc = nn.Linear(STYLE, 2 * channels)

    def forward(self, x, s):
        h = self.fc(s)
        scale, shift = h.view(*h.shape, 1, 1).chunk(2, 1)
        return (1 + scale) * self.norm(x) + shift


class ProjectedLast(nn.Module):
    """Shift first, no offset, a network of its own in front, which is registered first."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels
        self.style = nn.Sequential(nn.Linear(STYLE, 7), nn.ReLU(), nn.Linear(7, 2 * channels))
        self.inner = nn.InstanceNorm2d(channels, eps=1e-3)

    def forward(self, x, style):
        assert style.shape == (len(x), STYLE)
        h = self.style(style)[..., None, None]
        return torch.addcmul(h[:, : self.channels], self.inner(x), h[:, self.channels :])


class ProjectedTwice(nn.Module):
    """Any number of dimensions, a projection for each, spectrally normalised; arguments nobody gives."""

    def __init__(self, channels, norm=nn.InstanceNorm2d):
        super().__init__()
        self.norm = norm(channels)
        self.noise = None
        self.to_shift = nn.utils.spectral_norm(nn.Linear(STYLE, channels))
        self.to_scale = nn.utils.parametrizations.spectral_norm(nn.Linear(STYLE, channels, bias=False))

    def forward(self, x, y, noise=None, **_):
        scale, shift = self.to_scale(y), self.to_shift(y)
        return torch.addcmul(over_planes(shift, x), self.norm(x), 1 + over_planes(scale, x))


class ProjectedLine(ProjectedTwice):
    def __init__(self, channels):
        super().__init__(channels, nn.InstanceNorm1d)


class ProjectedVolume(ProjectedTwice):
    def __init__(self, channels):
        super().__init__(channels, nn.InstanceNorm3d)


PROJECTED = (Projected, ProjectedLast, ProjectedTwice, ProjectedLine, ProjectedVolume)
PROJECTED_SPACE = {ProjectedLine: (13,), ProjectedVolume: (3, 5, 4)}


class Rescaled(Projected):
    def forward(self, x, s):
        return super().forward(x, 0.5 * s)


class Activated(Projected):
    def forward(self, x, s):
        return super().forward(x, s.tanh())


class Interleaved(Projected):
    def forward(self, x, s):
        scale, shift = self.fc(s).unflatten(1, (-1, 2)).unbind(2)
        return (1 + over_planes(scale, x)) * self.norm(x) + over_planes(shift, x)


class CalledTwice(Projected):
    def forward(self, x, s):
        scale, shift = self.fc(s).chunk(2, 1)[0], self.fc(s).chunk(2, 1)[1]
        return (1 + over_planes(scale, x)) * self.norm(x) + over_planes(shift, x)


class WithoutCall(Projected):
    def forward(self, x, s):
        scale, shift = F.linear(s, self.fc.weight, self.fc.bias).chunk(2, 1)
        return (1 + over_planes(scale, x)) * self.norm(x) + over_planes(shift, x)


class WithSkip(Projected):
    def forward(self, x, s):
        return x + super().forward(x, s)


class NormLast(Projected):
    def forward(self, x, s):
        return self.norm(super().forward(x, s))


class Pair(Projected):
    def forward(self, x, s):
        return super().forward(x, s), s


UNLIKE_PROJECTED = (Rescaled, Activated, Interleaved, CalledTwice, WithoutCall, WithSkip, NormLast, Pair)


class AffineInside(Projected):
    def __init__(self, channels):
        super().__init__(channels)
        self.norm = nn.InstanceNorm2d(channels, affine=True)


class StatisticsInside(Projected):
    def __init__(self, channels):
        super().__init__(channels)
        self.norm = nn.InstanceNorm2d(channels, track_running_stats=True)


class ConvolvedStyle(Projected):
    def __init__(self, channels):
        super().__init__(channels)
        self.fc = nn.Conv2d(STYLE, 2 * channels, 1)


class OneArgument(Projected):
    def forward(self, x):
        return self.norm(x)


class OptionalStyle(Projected):
    def forward(self, x, s=None):
        return self.norm(x) if s is None else super().forward(x, s)


# of another structure: not even tried
NOT_PROJECTED = (AffineInside, StatisticsInside, ConvolvedStyle, OneArgument, OptionalStyle)
