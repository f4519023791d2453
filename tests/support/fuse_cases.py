"""Models that know nothing of this library, for the tests of kernels.fuse."""

import copy

import torch
from torch import nn

import kernels
from kernels.fusing import resampling


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(c, c, 3),
            nn.InstanceNorm2d(c),
            nn.ReLU(True),
            nn.ReflectionPad2d(1),
            nn.Conv2d(c, c, 3),
            nn.InstanceNorm2d(c),
        )

    def forward(self, x):
        return x + self.body(x)


class Foreign(nn.Module):
    """The shapes real models have: Sequentials, norms alone, shared activations, affine norms with statistics."""

    def __init__(self):
        super().__init__()
        shared = nn.ReLU(True)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), shared)
        self.down = nn.Sequential(
            nn.Conv2d(8, 16, 4, 2, 1), nn.InstanceNorm2d(16, affine=True, track_running_stats=True), nn.LeakyReLU(0.01)
        )
        self.blocks = nn.Sequential(Block(16), Block(16))
        self.alone = nn.InstanceNorm2d(16)
        self.head = nn.Sequential(nn.Conv2d(16, 16, 1), nn.InstanceNorm2d(16), shared, nn.Conv2d(16, 1, 1))

    def forward(self, x):
        return self.head(torch.tanh(self.alone(self.blocks(self.down(self.stem(x))))))


def gradients(model, x):
    """Output, and gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()], allow_unused=True)]


def check_same(fused, model, x, tolerance=1e-10):
    """Both modes; float64 makes every difference one of what is computed."""
    for training in (True, False):
        pairs = zip(gradients(fused.train(training), x), gradients(model.train(training), x), strict=True)
        for got, want in pairs:
            torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


def fused_copy(model):
    return kernels.fuse(copy.deepcopy(model))


def count_runs(monkeypatch):
    """(activation, padding) of every norm that runs from now on."""
    seen = []
    run = kernels.InstanceNorm2d.run

    def counted(self, x, residual, activation, negative_slope, padding):
        seen.append((activation, padding))
        return run(self, x, residual, activation, negative_slope, padding)

    monkeypatch.setattr(kernels.InstanceNorm2d, "run", counted)
    return seen


def count_blurs(monkeypatch):
    """A list that grows with every call of a blur operator by a fused module."""
    seen = []
    for name in ("blur_downsample", "blur_upsample"):
        blur = getattr(resampling, name)
        monkeypatch.setattr(
            resampling,
            name,
            lambda *args, blur=blur, name=name, **options: seen.append(name) or blur(*args, **options),
        )
    return seen


class Smaller(nn.Module):
    """Antialiased sampling in the manner of CUT; `size` and `scale` choose filters that are not its own."""

    def __init__(self, channels, size=3, stride=2, scale=1.0, pad=nn.ReflectionPad2d):
        super().__init__()
        row = torch.tensor({2: [1.0, 1.0], 3: [1.0, 2.0, 1.0], 5: [1.0, 4.0, 6.0, 4.0, 1.0]}[size])
        filt = torch.outer(row, row) / row.sum() ** 2 * scale
        self.register_buffer("filt", filt[None, None].repeat(channels, 1, 1, 1))
        self.stride = stride
        self.pad = pad([(size - 1) // 2, size // 2] * 2)

    def forward(self, x):
        return nn.functional.conv2d(self.pad(x), self.filt, stride=self.stride, groups=x.shape[1])


class Larger(nn.Module):
    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("filt", (torch.outer(row, row) / 16)[None, None].repeat(channels, 1, 1, 1))
        self.pad = nn.ReplicationPad2d([1, 1, 1, 1])

    def forward(self, x):
        y = nn.functional.conv_transpose2d(self.pad(x), self.filt, stride=2, padding=2, groups=x.shape[1])
        return y[:, :, 1:, 1:][:, :, :-1, :-1]


def sampling() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(3, 6, 7, bias=False),
        nn.InstanceNorm2d(6),
        nn.ReLU(True),
        Smaller(6),
        Smaller(6, 5),
        Larger(6),
        nn.InstanceNorm2d(6),
        nn.LeakyReLU(0.2),
        nn.ReflectionPad2d(2),
        nn.ReflectionPad2d((1, 2, 0, 1)),
        nn.Conv2d(6, 3, 3),
    )
