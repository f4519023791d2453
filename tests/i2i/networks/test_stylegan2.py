"""SinCUT's StyleGAN2 networks against their definitions in plain torch, and the second derivatives R1 needs."""

import pytest
import torch
import torch.nn.functional as F
from support import golden

from i2i.errors import UsageError
from i2i.networks import StyleGAN2Discriminator, StyleGAN2Generator, discriminator, generator

FILTER = torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])).double() / 64


def fill(net):
    """Closed-form weights of the size that equalised learning rates expect; no noise."""
    golden.fill_closed_form(net)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.mul_(0.0 if name.endswith("noise.weight") else 20.0 if name.endswith("weight") else 1.0)
    return net


class Plain:
    """From the definitions: blur plane by plane, modulated convolution by groups with styles of 1, gains where they
    stand in the papers."""

    def __init__(self, net):
        self.state = net.state_dict()

    def blur(self, x, padding, gain=1.0):
        n, c, h, w = x.shape
        y = F.conv2d(x.reshape(n * c, 1, h, w), gain * FILTER.flip(0, 1)[None, None], padding=padding)
        return y.view(n, c, *y.shape[2:])

    def activate(self, x, bias):
        return 2**0.5 * F.leaky_relu(x + bias, 0.2)

    def conv(self, key, x, size, down=False, activate=True):
        if down:
            x = self.blur(x, (size + 1) // 2)
        weight = self.state[f"{key}.{int(down)}.weight"]
        x = F.conv2d(x, weight / weight[0].numel() ** 0.5, stride=1 + down, padding=0 if down else size // 2)
        return self.activate(x, self.state[f"{key}.{int(down) + 1}.bias"]) if activate else x

    def block(self, key, x, down):
        skip = self.conv(f"{key}.skip", x, 1, down, activate=False) if down else x
        return (self.conv(f"{key}.conv2", self.conv(f"{key}.conv1", x, 3), 3, down) + skip) / 2**0.5

    def styled(self, key, x):
        n, c, h, w = x.shape
        weight = (self.state[f"{key}.conv.weight"] / (9 * c) ** 0.5).repeat(n, 1, 1, 1, 1)
        weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        y = F.conv_transpose2d(x.reshape(1, n * c, h, w), weight.transpose(1, 2).flatten(0, 1), stride=2, groups=n)
        y = self.blur(y.view(n, -1, 2 * h + 1, 2 * w + 1), 1, gain=4.0)
        return self.activate(y, self.state[f"{key}.activate.bias"])

    def generator(self, x, halvings, blocks):
        x = self.conv("encoder.convs.1", x, 1)
        features = [x]
        for i in range(halvings + blocks // 2):
            x = self.block(f"encoder.convs.{2 + i}", x, i < halvings)
            features.append(x)
        for i in range(blocks // 2):
            x = self.block(f"decoder.convs.{i}", x, False)
        for i in range(halvings):
            x = self.styled(f"decoder.convs.{blocks // 2 + i}", x)
        return self.conv(f"decoder.convs.{blocks // 2 + halvings}", x, 1), features

    def discriminator(self, x, halvings):
        x = self.conv("convs.0", x, 1)
        for i in range(halvings):
            x = self.block(f"convs.{1 + i}", x, True)
        x = self.conv("final_conv", x, 3).flatten(1)
        first, last = (self.state[f"final_linear.{i}.weight"] for i in (0, 1))
        x = self.activate(x @ first.T / first.shape[1] ** 0.5, self.state["final_linear.0.bias"])
        return x @ last.T / last.shape[1] ** 0.5 + self.state["final_linear.1.bias"]


@torch.no_grad()
def test_networks_are_their_definitions_in_float64():
    net = fill(StyleGAN2Generator(2, 3, (4, 6, 8), n_blocks=4))
    x = golden.wave((2, 2, 16, 24))
    wanted, features = Plain(net).generator(x, 2, 4)
    output, taps = net(x, (0, 1, 2, 3, 5))
    assert float(wanted.abs().max()) > 0.01  # not all faded
    torch.testing.assert_close(output, wanted, atol=0, rtol=1e-11)
    torch.testing.assert_close(taps, [x, *(features[i] for i in (0, 1, 2, 4))], atol=0, rtol=1e-11)
    net = fill(StyleGAN2Discriminator(3, (4, 6, 8)))
    x = golden.wave((2, 3, 16, 16))
    torch.testing.assert_close(net(x), Plain(net).discriminator(x, 2), atol=0, rtol=1e-11)


def test_shapes_and_taps_of_sincut():
    """Layers 0, 2 and 4, with one patch of each; the published widths."""
    net = generator("stylegan2", ngf=10, size=64)
    layers = (0, 2, 4)
    assert net.tap_channels(layers) == [3, 160, 160]
    x = golden.image("x", (2, 3, 64, 64))
    with torch.no_grad():
        maps = net(x, layers, encode_only=True)
        patches = net(x, layers, encode_only=True, ids=[torch.tensor([7])] * 3)
    assert [m.shape[2:] for m in maps] == [(64, 64), (32, 32), (32, 32)]
    torch.testing.assert_close(patches, [m.flatten(2)[:, :, 7:8].transpose(1, 2) for m in maps], atol=0, rtol=0)


def penalty(net, x):
    """R1's gradients: of the squared gradient of the scores with respect to the images."""
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return torch.autograd.grad(gradient.square().sum(), [p for p in net.parameters() if p.dim() > 1][:-1])


def test_second_derivatives():
    """Against finite differences, and channels last in float32 against that."""
    torch.manual_seed(0)
    exact = StyleGAN2Discriminator(1, (2, 3, 4)).double()
    x = golden.wave((2, 1, 16, 16))
    wanted = penalty(exact, x)
    direction = [torch.randn_like(g) for g in wanted]
    weights = [p for p in exact.parameters() if p.dim() > 1][:-1]

    def squared_gradient() -> float:
        y = x.clone().requires_grad_()
        return float(torch.autograd.grad(exact(y).sum(), y)[0].square().sum())

    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.add_(step * d)
        values.append(squared_gradient())
        with torch.no_grad():
            for weight, d in zip(weights, direction, strict=True):
                weight.sub_(step * d)
    slope = float(sum((g * d).sum() for g, d in zip(wanted, direction, strict=True)))
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-5)

    net = StyleGAN2Discriminator(1, (2, 3, 4))
    net.load_state_dict(exact.state_dict())
    net.to(memory_format=torch.channels_last)
    found = penalty(net, x.float().contiguous(memory_format=torch.channels_last))
    scale = max(float(g.abs().max()) for g in wanted)
    torch.testing.assert_close([g.double() for g in found], list(wanted), atol=1e-5 * scale, rtol=0)


def test_noise_is_one_value_per_place_from_the_global_generator():
    net = StyleGAN2Generator(3, 3, (4, 6), n_blocks=2)
    x = golden.image("x", (2, 3, 16, 16))
    noise = net.decoder.convs[1].noise
    with torch.no_grad():
        assert torch.equal(net(x), net(x))  # its weight starts at 0
        noise.weight.fill_(0.5)
        maps, outputs = torch.zeros(2, 5, 8, 8), []
        for _ in range(2):
            torch.manual_seed(3)
            outputs.append(net(x))
        assert torch.equal(*outputs) and not torch.equal(net(x), outputs[0])
        added = noise(maps)
    assert torch.equal(added, added[:, :1].expand_as(added))
    assert float(added.std()) == pytest.approx(0.5, rel=0.2)


def test_channels_follow_the_published_tables():
    with torch.device("meta"):
        for ngf, size, wanted in ((64, 256, [128, 256]), (64, 64, [512, 512]), (10, 72, [80, 160])):
            assert generator("stylegan2", ngf=ngf, size=size).tap_channels((1, 2)) == wanted
        wide = discriminator("stylegan2", ndf=64, size=256)
        assert [wide.convs[0][0].weight.shape[0], wide.final_linear[0].weight.shape] == [64, (384, 384 * 16)]
    with pytest.raises(UsageError, match="judges images of 16 x 16, got 16 x 32"):
        StyleGAN2Discriminator(3, (2, 2, 2))(torch.zeros(1, 3, 16, 32))
