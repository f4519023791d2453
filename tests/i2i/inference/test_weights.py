"""Published weights: what is read is what was written, whatever the architecture; what cannot be read says why."""

import re
from collections import OrderedDict

import pytest
import torch
from support import golden
from torch import nn

import i2i
from i2i.errors import UsageError
from i2i.inference.weights import load, save_published
from i2i.networks import (
    PatchDiscriminator,
    PatchFeatureNetwork,
    PixelDiscriminator,
    ResnetGenerator,
    SampledFeatures,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
    UnetGenerator,
)
from i2i.networks.recognise import RECOGNISERS

IMAGE = (1, 3, 32, 32)


def resnet(**options) -> ResnetGenerator:
    return ResnetGenerator(ngf=4, n_blocks=2, **options)


NETWORKS = {
    "ResNet generator, 2 blocks, width 4, instance norm, antialiased down and up, 3 -> 3 channels (CUT)": resnet(),
    "ResNet generator, 2 blocks, width 4, instance norm, 3 -> 3 channels (CycleGAN, pix2pix)": resnet(
        antialias_down=False, antialias_up=False
    ),
    "ResNet generator, 2 blocks, width 4, batch norm, dropout, antialiased down, 3 -> 3 channels (CUT)": resnet(
        norm="batch", dropout=True, antialias_up=False
    ),
    "ResNet generator, 2 blocks, width 4, batch norm, antialiased up, 3 -> 3 channels (CUT)": resnet(
        norm="batch", antialias_down=False
    ),
    "ResNet generator, 3 blocks, width 5, no norm, dropout, 3 -> 1 channels (CycleGAN, pix2pix)": ResnetGenerator(
        3, 1, 5, 3, norm="none", dropout=True, antialias_down=False, antialias_up=False
    ),
    "ResNet generator, 2 blocks, width 4, instance norm, dropout, 3 -> 3 channels (CycleGAN, pix2pix)": resnet(
        dropout=True, antialias_down=False, antialias_up=False
    ),
    "U-Net generator, 5 levels, width 4, instance norm, 3 -> 2 channels (pix2pix, CycleGAN)": UnetGenerator(3, 2, 4, 5),
    "U-Net generator, 5 levels, width 4, batch norm, dropout, 3 -> 3 channels (pix2pix, CycleGAN)": UnetGenerator(
        ngf=4, num_downs=5, norm="batch", dropout=True
    ),
    "PatchGAN discriminator, 3 layers, width 4, instance norm, antialiased, 3 channels (CUT)": PatchDiscriminator(
        ndf=4
    ),
    "PatchGAN discriminator, 1 layers, width 4, batch norm, 3 channels (CycleGAN, pix2pix)": PatchDiscriminator(
        ndf=4, n_layers=1, norm="batch", antialias=False
    ),
    "Pixel discriminator, width 4, no norm, 3 channels (CycleGAN, pix2pix)": PixelDiscriminator(ndf=4, norm="none"),
    "Feature network, MLPs 3, 5 -> 6 channels (CUT)": PatchFeatureNetwork((3, 5), width=6),
    "StyleGAN2 generator, 2 blocks, widths 4, 6, 3 -> 3 channels (SinCUT)": StyleGAN2Generator(3, 3, (4, 6), 2),
    "StyleGAN2 discriminator of 32 x 32, width 2, 3 channels (SinCUT)": StyleGAN2Discriminator(3, (2, 3, 4, 5)),
}


@pytest.mark.parametrize("sentence", NETWORKS)
def test_what_is_written_is_recognised_and_computes_the_same(sentence, tmp_path):
    net = NETWORKS[sentence].eval()
    save_published(tmp_path, "latest", {"X": net.to(memory_format=torch.channels_last)})
    assert [file.name for file in tmp_path.iterdir()] == ["latest_net_X.pth"]
    found = load(tmp_path / "latest_net_X.pth", impl="reference")
    assert found.recognised == sentence
    assert type(found) is type(net) and not found.training
    with torch.no_grad():
        if isinstance(net, PatchFeatureNetwork):
            maps = [golden.normal(str(c), (1, c, 4, 4)) for c in (3, 5)]
            outputs = [n.project([m.flatten(2).transpose(1, 2) for m in maps]) for n in (found, net)]
        else:
            outputs = [n(golden.image("x", IMAGE)) for n in (found, net)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)  # other implementations of the operators: else equal


PUBLISHED = [
    "cut_patchgan3",
    "cut_patchgan3_no_antialias",
    "cut_patchsample_mlp",
    "cut_resnet6_batch2",
    "cut_resnet9",
    "cyclegan_pixel",
    "cyclegan_resnet9",
    "pix2pix_patchgan3_batch",
    "pix2pix_unet128_batch",
    "pix2pix_unet256_batch",
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_keys_are_recognised(name):
    """At full size: the network found has exactly the published entries."""
    entries = golden.load(name)["keys"].tolist()
    with torch.device("meta"):
        state = {}
        for entry in entries:
            key, shape = entry.split(" ", 1)
            state[key] = torch.empty([int(n) for n in re.findall(r"\d+", shape)])
        found = [found for recogniser in RECOGNISERS if (found := recogniser(state, "auto", {}))]
    assert len(found) == 1
    net, _ = found[0]
    assert [f"{key} {tuple(tensor.shape)}" for key, tensor in net.state_dict().items()] == entries


def test_files_are_plain_and_whole(tmp_path):
    """What the published code reads: an OrderedDict of float32 CPU tensors in NCHW order, by plain keys."""
    net = nn.DataParallel(resnet().to(memory_format=torch.channels_last))
    save_published(tmp_path / "new", "5", {"G_A": net, "F": SampledFeatures([3])})
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["5_net_G_A.pth"]  # nothing to keep of `sample`
    state = torch.load(tmp_path / "new" / "5_net_G_A.pth", weights_only=True)
    assert type(state) is OrderedDict and list(state) == list(net.module.state_dict())
    for key, tensor in state.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous(), key
        assert torch.equal(tensor, net.module.state_dict()[key]), key


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "latest_net_G.pth").write_text("earlier")

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_published(tmp_path, "latest", {"G": resnet()})
    assert [file.read_text() for file in tmp_path.iterdir()] == ["earlier"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_wrappers_leave_no_trace(prefix, tmp_path):
    net = resnet()
    torch.save({prefix + key: tensor for key, tensor in net.state_dict().items()}, tmp_path / "x.pth")
    found = load(tmp_path / "x.pth")
    torch.testing.assert_close(found.state_dict(), net.state_dict(), atol=0, rtol=0)


def test_statistics_of_old_instance_norms_are_dropped_and_those_of_batch_norms_kept(tmp_path):
    state = resnet(antialias_down=False, antialias_up=False).state_dict()
    for norm in ("model.2", "model.10.conv_block.2"):
        state |= {f"{norm}.running_mean": torch.ones(4), f"{norm}.running_var": torch.ones(4)}
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    torch.save(state, tmp_path / "x.pth")
    assert "instance norm" in load(tmp_path / "x.pth").recognised
    net = resnet(norm="batch")
    net.model[2].running_mean.fill_(3.0)
    save_published(tmp_path, "latest", {"G": net})
    assert load(tmp_path / "latest_net_G.pth").model[2].running_mean.tolist() == [3.0] * 4


def checkpoint(**more) -> dict:
    return {"format": 2, "method": "cut", "config": {}, "networks": {"G": resnet().state_dict()}, **more}


def test_a_checkpoint_gives_the_network_asked_for(tmp_path):
    """The average of what is kept as one; by default the generator."""
    nets = {"D_A": PatchDiscriminator(ndf=4), "G_A": resnet(), "G_B": resnet()}
    average = torch.optim.swa_utils.AveragedModel(nets["G_A"])
    nn.init.ones_(average.module.model[1].bias)
    content = checkpoint(ema={"G_A": average.state_dict()})
    content["networks"] = {name: net.state_dict() for name, net in nets.items()}
    torch.save(content, tmp_path / "checkpoint.pt")
    assert i2i.load(tmp_path).model[1].bias.tolist() == [1.0] * 4
    assert i2i.load(tmp_path / "checkpoint.pt", network="D_A").recognised.startswith("PatchGAN")
    assert torch.equal(i2i.load(tmp_path, network="G_B").model[1].bias, nets["G_B"].model[1].bias)
    for network in ("G", "E"):
        with pytest.raises(UsageError, match=f"network must be one of D_A, G_A, G_B, got '{network}'"):
            i2i.load(tmp_path, network=network)


@pytest.mark.parametrize("dropout", [True, False])
def test_a_checkpoint_says_whether_a_unet_has_dropout(dropout, tmp_path):
    net = UnetGenerator(ngf=4, num_downs=6, norm="batch", dropout=dropout)
    content = checkpoint(networks={"G": net.state_dict()}, config={"dropout": dropout})
    torch.save(content, tmp_path / "checkpoint.pt")
    found = load(tmp_path)
    assert any(isinstance(module, nn.Dropout) for module in found.modules()) is dropout
    assert ("dropout" in found.recognised) is dropout


def affine() -> dict:
    return resnet().state_dict() | {"model.2.weight": torch.ones(4), "model.2.bias": torch.ones(4)}


def without(key: str) -> dict:
    state = resnet().state_dict()
    del state[key]
    return state


REFUSED = {
    "instance norms with weights of their own": affine,
    "holds a pickled i2i.networks.resnet.ResnetGenerator, not only tensors, and loading that could run code": resnet,
    "the state of an optimizer": lambda: torch.optim.Adam(resnet().parameters()).state_dict(),
    r"weights of no network known here \(its 2 keys begin with weight, bias\)": lambda: nn.Linear(2, 2).state_dict(),
    "neither the weights of one network nor a checkpoint of i2i": lambda: {"epoch": 3, "losses": [0.5]},
    "its keys begin with format, method, config": lambda: checkpoint(format=1),
    "holds list": lambda: [torch.ones(2)],
    "holds dict with nothing in it": dict,
    "taken for a ResNet generator, 2 blocks.*: model.23.bias is missing": lambda: without("model.23.bias"),
    "keys of a stylegan2 generator, but not all": lambda: {"encoder.convs.1.0.weight": torch.ones(4, 3, 1, 1)},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_other_files_are_refused_with_the_reason(sentence, tmp_path):
    torch.save(REFUSED[sentence](), tmp_path / "x.pth")
    with pytest.raises(UsageError, match=f"x.pth: .*{sentence}"):
        load(tmp_path / "x.pth")


def test_files_that_are_no_weights_are_refused(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(resnet().state_dict(), file)
    whole = file.read_bytes()
    for content in (b"", b"<html>not found</html>", b"hello", whole[: len(whole) // 2], bytes(range(256))):
        file.write_bytes(content)
        with pytest.raises(UsageError, match="x.pth: damaged, or no file of weights"):
            load(file)
    for path, named in ((tmp_path / "y.pth", "y.pth: no such file or folder"), (tmp_path, "there is x.pth")):
        with pytest.raises(UsageError, match=named):
            load(path)
    file.write_bytes(whole)
    with pytest.raises(UsageError, match="holds one network, so network must be left out, got 'G'"):
        load(file, network="G")


def test_a_folder_of_published_files(tmp_path):
    save_published(tmp_path, "latest", {"G": ResnetGenerator(ngf=4, n_blocks=1), "D": PatchDiscriminator(ndf=4)})
    assert load(tmp_path).recognised.startswith("ResNet generator, 1 block")
    (tmp_path / "latest_net_G.pth").unlink()
    with pytest.raises(
        UsageError, match=r"neither checkpoint.pt nor latest_net_G.pth in it; there is latest_net_D.pth"
    ):
        load(tmp_path)
