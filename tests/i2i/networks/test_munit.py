"""MUNIT's networks against what the published ones returned, and in places where the published ones fail."""

import ast
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from support import golden
from torch import nn

from i2i.errors import UsageError
from i2i.files import CHECKPOINT_FORMAT
from i2i.inference import weights
from i2i.methods.losses import GANLoss
from i2i.networks.munit import MunitDiscriminator, MunitGenerator, MunitTranslator, sample_styles

IMPLS = ("auto", "reference")
# float32 on both sides: 2.4e-7 was measured on means, codes and images of at most 0.5. Four times that leaves room for
# other convolution algorithms.
CLOSE = dict(atol=1e-6, rtol=0)


def params(wanted: dict, *names: str) -> dict:
    given = ast.literal_eval(str(wanted["params"]))
    return {name: given[name] for name in names}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("name", ["munit_gen", "munit_gen_batch2"])
@torch.no_grad()
def test_generator_is_the_published_one(name, impl):
    wanted = golden.load(name)
    net = MunitGenerator(**params(wanted, "dim", "style_dim", "n_downsample", "n_res", "mlp_dim"), impl=impl)
    assert golden.fill(net) == wanted["keys"].tolist()
    content, style = net.encode(golden.image("x", tuple(wanted["input_shape"])))
    assert content.shape == tuple(wanted["content_shape"])
    found = {
        "content": content.mean((2, 3)),
        "style": style,
        "decode": net.decode(content, golden.normal("style", tuple(style.shape))),
        "recon": net.decode(content, style),
    }
    for key, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(wanted[key]), **CLOSE, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("impl", IMPLS)
@torch.no_grad()
def test_discriminator_is_the_published_one(impl):
    wanted = golden.load("munit_dis")
    net = MunitDiscriminator(**params(wanted, "dim", "n_layer", "num_scales"), impl=impl)
    assert golden.fill(net) == wanted["keys"].tolist()
    shape = tuple(wanted["input_shape"])
    fake, real = net(golden.image("x", shape)), net(golden.image("y", shape))
    for i, scores in enumerate(fake):
        torch.testing.assert_close(scores, torch.from_numpy(wanted[f"out_{i}"]), **CLOSE)
    gan = GANLoss("lsgan")
    d_loss = sum(gan(f, False) + gan(r, True) for f, r in zip(fake, real, strict=True))
    assert float(d_loss) == pytest.approx(float(wanted["dis_loss"]), rel=1e-6)
    assert float(sum(gan(f, True) for f in fake)) == pytest.approx(float(wanted["gen_loss"]), rel=1e-6)


def test_published_parameter_counts():
    with torch.device("meta"):
        gen, dis = MunitGenerator(), MunitDiscriminator()
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in [*gen.named_children(), ("dis", dis)]
    }
    assert counts == {
        "enc_style": 2_764_936,
        "enc_content": 5_385_856,
        "dec": 5_754_627,
        "mlp": 1_120_768,
        "dis": 8_271_171,
    }


def test_biases_in_front_of_instance_norms_make_no_difference():
    """They are in the files, are not added, and get no gradient; all other parameters get one."""
    net = MunitGenerator(dim=4, n_res=1).double()
    x = golden.wave((2, 3, 16, 16))
    before = net(x)
    before.square().sum().backward()
    without = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert without == {
        *(f"enc_content.model.{i}.conv.bias" for i in range(3)),
        *(f"{part}.model.0.model.{i}.conv.bias" for part in ("enc_content.model.3", "dec.model.0") for i in range(2)),
    }
    for name in without:
        nn.init.normal_(net.get_parameter(name))
    assert torch.equal(net(x), before)


@torch.no_grad()
def test_one_generator_serves_several_threads():
    """Scale and shift of the adaptive norms belong to a call. (Published: attributes of the modules, overwritten.)"""
    net = MunitGenerator(dim=8)
    content = net.encode_content(golden.image("x", (1, 3, 32, 32)))
    styles = sample_styles(16, 8, seed=1).split(1)
    alone = [net.decode(content, style) for style in styles]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(torch.no_grad()(lambda style: net.decode(content, style)), styles))
    assert all(map(torch.equal, alone, together))


@torch.no_grad()
def test_translator_compiles_and_exports():
    def translator(impl: str) -> MunitTranslator:
        return MunitTranslator(*(MunitGenerator(dim=4, n_res=1, impl=impl) for _ in range(2)))

    x, net = golden.image("x", (1, 3, 16, 16)), translator("auto")
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), net(x))
    net = translator("reference")
    torch.testing.assert_close(torch.export.export(net, (x,)).module()(x), net(x))


@torch.no_grad()
def test_translator_takes_content_of_one_and_style_of_the_other():
    source, target = MunitGenerator(dim=4, n_res=1), MunitGenerator(1, dim=4, n_res=1)
    images = golden.image("x", (2, 3, 16, 16))
    net, content = MunitTranslator(source, target), source.encode_content(images)
    styles = sample_styles(2, 8, seed=0)
    assert torch.equal(net.in_style(styles)(images), target.decode(content, styles))
    assert torch.equal(net.in_style(styles[:1])(images), target.decode(content, styles[:1].expand(2, -1, -1, -1)))
    several = target.decode(content[:1].expand(2, -1, -1, -1), styles)
    torch.testing.assert_close(net.in_style(styles)(images[:1]), several, **CLOSE)  # encoded in another batch
    assert torch.equal(net(images), target.decode(content, torch.zeros(2, 8, 1, 1)))
    assert net(images).shape == (2, 1, 16, 16)


def generators() -> list[MunitGenerator]:
    torch.manual_seed(0)
    options = dict(dim=4, style_dim=3, n_downsample=1, n_res=2, mlp_dim=5)
    return [MunitGenerator(channels, **options) for channels in (3, 1)]


@torch.no_grad()
def test_published_file_becomes_a_translator(tmp_path):
    """With keys as files of 2018 have them too: running statistics of norms that never read any."""
    a, b = generators()
    state = a.state_dict()
    for name in ("enc_content.model.0", "enc_content.model.2.model.1.model.0"):
        state |= {f"{name}.norm.running_mean": torch.zeros(4), f"{name}.norm.running_var": torch.ones(4)}
    torch.save({"a": state, "b": b.state_dict()}, tmp_path / "gen_00000001.pt")
    net = weights.load(tmp_path / "gen_00000001.pt")
    x = golden.image("x", (1, 3, 16, 16))
    assert torch.equal(net(x), MunitTranslator(a, b)(x))
    assert net.recognised == (
        "MUNIT translator, 3 channels, width 4, 3 numbers of style -> 1 channels, width 4, 3 numbers of style"
    )
    back = weights.load(tmp_path / "gen_00000001.pt", network="BtoA", impl="reference")
    torch.testing.assert_close(back(x[:, :1]), MunitTranslator(b, a)(x[:, :1]), **CLOSE)
    with pytest.raises(UsageError, match="network must be one of AtoB, BtoA, gen_a, gen_b, got 'G'"):
        weights.load(tmp_path / "gen_00000001.pt", network="G")


@torch.no_grad()
def test_own_files_load_and_have_all_published_keys(tmp_path):
    a, b = generators()
    discriminator, x = MunitDiscriminator(dim=4, n_layer=3, num_scales=2), golden.image("x", (1, 3, 32, 32))
    networks = {"gen_a": a, "gen_b": b, "dis_a": discriminator}
    weights.save_published(tmp_path, "latest", networks)
    for name, net in networks.items():
        path = tmp_path / f"latest_net_{name}.pth"
        assert torch.load(path, weights_only=True).keys() == net.state_dict().keys()
        loaded = weights.load(path)
        assert all(map(torch.equal, loaded.state_dict().values(), net.state_dict().values()))
    assert weights.load(tmp_path / "latest_net_dis_a.pth").recognised == (
        "MUNIT discriminator, 2 scales of 3 layers, width 4, 3 channels"
    )
    averages = {"gen_a": {"n_averaged": torch.tensor(3), **{f"module.{k}": v for k, v in a.state_dict().items()}}}
    other = {name: {key: tensor + 1 for key, tensor in net.state_dict().items()} for name, net in networks.items()}
    other["gen_b"] = b.state_dict()
    checkpoint = {"format": CHECKPOINT_FORMAT, "method": "munit", "config": {}, "networks": other, "ema": averages}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert torch.equal(weights.load(tmp_path)(x), MunitTranslator(a, b)(x))
    assert torch.equal(weights.load(tmp_path, network="gen_b")(x[:, :1]), b(x[:, :1]))
