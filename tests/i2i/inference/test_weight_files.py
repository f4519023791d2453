"""Files and folders of weights as people have them: which networks are found in them, and which file is taken."""

import argparse
import sys

import pytest
import torch
from torch import nn

import i2i
from i2i.errors import UsageError
from i2i.inference.weights import load, save_published
from i2i.networks import PatchDiscriminator, ResnetGenerator, UnetGenerator

PLAIN = {"antialias_down": False, "antialias_up": False}


def resnet(seed=0, **options) -> ResnetGenerator:
    torch.manual_seed(seed)
    return ResnetGenerator(ngf=4, n_blocks=1, **options)


def nested(prefix: str, *nets: nn.Module) -> dict:
    return {prefix + key: tensor for net in nets for key, tensor in net.state_dict().items()}


class AttributeDict(dict):  # Lightning keeps its settings in such a class, which torch.load does not know
    pass


def lightning(state: dict) -> dict:
    return {
        "epoch": 3,
        "global_step": 5,
        "pytorch-lightning_version": "2.5",
        "state_dict": state,
        "hyper_parameters": AttributeDict(lr=1e-3, args=argparse.Namespace(ngf=4)),
        "optimizer_states": [torch.optim.Adam(resnet().parameters()).state_dict()],
        "callbacks": {"best": torch.tensor(1.0)},
    }


G, D = resnet(1), PatchDiscriminator(ndf=4)
OF_OTHERS = {
    "dict of networks": {"G": G.state_dict(), "D": D.state_dict(), "epoch": 7},
    "generator, discriminator": {"generator": G.state_dict(), "discriminator": D.state_dict()},
    "netG": {"netG": G.state_dict(), "netD": D.state_dict(), "optG": torch.optim.Adam(G.parameters()).state_dict()},
    "each with a dict of its own": {"G": {"state_dict": G.state_dict()}, "D": {"state_dict": D.state_dict()}},
    "Lightning": lightning(nested("netG.", G) | nested("netD.", D)),
    "Lightning, wrapped": lightning(nested("model.netG.", G) | nested("model.netD.", D)),
    "Lightning, compiled": lightning(nested("generator._orig_mod.", G) | nested("discriminator.", D)),
    "Lightning and what is no network here": lightning(nested("vgg.", nn.Linear(2, 2)) | nested("generator.", G)),
    "state_dict": {"state_dict": nested("module.", G), "epoch": 7},
    "model": {"model": G.state_dict()},
    "BasicSR": {"params": resnet(2).state_dict(), "params_ema": G.state_dict()},
    "one network of any name": {"anything": G.state_dict()},
    "with numbers beside the tensors": G.state_dict() | {"epoch": 3},
    "half precision": {key: tensor.half() for key, tensor in G.state_dict().items()},
}


@pytest.mark.parametrize("kind", OF_OTHERS)
def test_the_generator_in_what_others_save(kind, tmp_path):
    torch.save(OF_OTHERS[kind], tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt").state_dict()
    for key, tensor in G.state_dict().items():
        wanted = tensor.half().float() if kind == "half precision" else tensor
        assert torch.equal(found[key], wanted), key


@pytest.mark.parametrize("kind", list(OF_OTHERS)[:7])
def test_the_discriminator_by_its_name(kind, tmp_path):
    torch.save(OF_OTHERS[kind], tmp_path / "x.ckpt")
    found = load(tmp_path / "x.ckpt", network="D")
    assert isinstance(found, PatchDiscriminator) and torch.equal(found.model[0].weight, D.model[0].weight)


def test_objects_of_others_are_passed_over_and_their_code_is_not_run(tmp_path):
    """Also where the class cannot be imported: the file is read on a machine that does not have it."""
    ran = []

    class Gone(AttributeDict):
        def __setstate__(self, state):
            ran.append(state)

    Gone.__qualname__, Gone.__module__ = "Gone", "a_package_that_is_not_here"
    sys.modules["a_package_that_is_not_here"] = argparse.Namespace(Gone=Gone)
    try:
        torch.save(lightning(nested("netG.", G)) | {"more": Gone(x=1)}, tmp_path / "x.ckpt")
    finally:
        del sys.modules["a_package_that_is_not_here"]
    assert torch.equal(load(tmp_path / "x.ckpt").model[1].weight, G.model[1].weight)
    torch.save({"G": G}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="x.ckpt: holds a pickled i2i.networks.resnet.ResnetGenerator, not only tens"):
        load(tmp_path / "x.ckpt")
    assert not ran


def test_safetensors(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file(dict(G.state_dict()), tmp_path / "latest_net_G.safetensors")
    for path in (tmp_path, tmp_path / "latest_net_G.safetensors"):
        assert torch.equal(load(path).model[1].weight, G.model[1].weight)
    save_file(nested("netG.", G) | nested("netD.", D), tmp_path / "x.safetensors")
    assert isinstance(load(tmp_path / "x.safetensors", network="D"), PatchDiscriminator)
    whole = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="x.safetensors: damaged"):
        load(tmp_path / "x.safetensors")


def test_safetensors_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    (tmp_path / "x.safetensors").write_bytes((20).to_bytes(8, "little") + b'{"a": 1}' + bytes(30))
    with pytest.raises(UsageError, match="x.safetensors: .*pip install safetensors"):
        load(tmp_path / "x.safetensors")


@pytest.fixture
def cycle(tmp_path):
    nets = {"G_A": resnet(1, **PLAIN), "G_B": resnet(2, **PLAIN), "D_A": PatchDiscriminator(ndf=4, antialias=False)}
    save_published(tmp_path, "latest", nets)
    return tmp_path, nets


def test_network_of_a_published_folder_and_by_file(cycle):
    folder, nets = cycle
    files = {name: folder / f"latest_net_{name}.pth" for name in nets}
    for path, network, wanted in [
        (folder, None, "G_A"),
        (folder, "G_A", "G_A"),
        (folder, "G_B", "G_B"),
        (folder, "D_A", "D_A"),
        (files["G_B"], None, "G_B"),
        (files["G_B"], "G_B", "G_B"),
        (files["D_A"], None, "D_A"),
    ]:
        found = i2i.load(path, network=network).state_dict()
        assert all(torch.equal(found[key], tensor) for key, tensor in nets[wanted].state_dict().items())
    with pytest.raises(UsageError, match=r"must be one of G_A, got 'G_B'; G_B is in .*latest_net_G_B.pth"):
        load(files["G_A"], network="G_B")
    with pytest.raises(UsageError, match="network must be one of D_A, G_A, G_B, got 'G'"):
        load(folder, network="G")


def test_a_folder_with_numbered_weights_alone_offers_them(tmp_path):
    for number in ("5", "10", "200"):
        save_published(tmp_path, number, {"G": resnet(int(number)), "D": D})
    with pytest.raises(UsageError, match="no latest_net_G.pth in it; name one of its files: 200_net_D.pth, 200_net_G"):
        load(tmp_path)
    assert torch.equal(load(tmp_path / "10_net_G.pth").model[1].weight, resnet(10).model[1].weight)
    for path in (*tmp_path.glob("5_*"), *tmp_path.glob("10_*")):
        path.unlink()
    assert torch.equal(load(tmp_path).model[1].weight, resnet(200).model[1].weight)  # nothing to choose from


def test_the_moving_average_of_a_folder_is_taken_as_that_of_a_checkpoint_is(tmp_path):
    save_published(tmp_path, "latest", {"G": resnet(1), "D": D})
    save_published(tmp_path, "latest_ema", {"G": resnet(2)})
    found = load(tmp_path)
    assert torch.equal(found.model[1].weight, resnet(2).model[1].weight)
    assert found.found_in.endswith("latest_ema_net_G.pth")
    assert torch.equal(load(tmp_path / "latest_net_G.pth").model[1].weight, resnet(1).model[1].weight)
    assert isinstance(load(tmp_path, network="D"), PatchDiscriminator)


def test_files_of_stargan(tmp_path):
    from i2i.networks.stargan import StarGANDiscriminator, StarGANGenerator

    for number in (1000, 2000):
        torch.save(StarGANGenerator(4, 3, 1).state_dict(), tmp_path / f"{number}-G.ckpt")
        torch.save(StarGANDiscriminator(16, 4, 3, 3).state_dict(), tmp_path / f"{number}-D.ckpt")
    with pytest.raises(UsageError, match="name one of its files: 2000-D.ckpt, 2000-G.ckpt, 1000-D.ckpt, 1000-G.ckpt"):
        load(tmp_path)
    for path in tmp_path.glob("1000-*"):
        path.unlink()
    assert isinstance(load(tmp_path), StarGANGenerator)
    assert isinstance(load(tmp_path, network="D"), StarGANDiscriminator)


OPTIONS = """----------------- Options ---------------
               batch_size: 1                             
                   no_dropout: {no_dropout}                         	[default: False]
                    suffix:                               
----------------- End -------------------
"""


@pytest.mark.parametrize("no_dropout", [True, False])
def test_published_options_say_whether_a_unet_has_dropout(no_dropout, tmp_path):
    save_published(tmp_path, "latest", {"G": UnetGenerator(ngf=4, num_downs=6, norm="batch")})
    (tmp_path / "train_opt.txt").write_text(OPTIONS.format(no_dropout=no_dropout))
    found = load(tmp_path)
    assert any(isinstance(module, nn.Dropout) for module in found.modules()) is not no_dropout


WRONG = {
    "model.18.bias has shape 5, and 3 is wanted": {"model.18.bias": torch.zeros(5)},
    "model.1.bias is not finite": {"model.1.bias": torch.tensor([1.0, 2.0, torch.nan, 1.0])},
    "model.1.bias is of type int64": {"model.1.bias": torch.ones(4, dtype=torch.long)},
    "model.1.bias is of type complex64": {"model.1.bias": torch.ones(4, dtype=torch.cfloat)},
    "model.18.bias is missing": {"model.18.bias": torch.ones(3).to_sparse()},
    "model.99.other is no key of it": {"model.99.other": torch.ones(4)},
    "but not its shapes": {"model.1.weight": torch.ones(4)},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_weights_that_do_not_fit_are_told_by_key(sentence, tmp_path):
    torch.save(resnet(**PLAIN).state_dict() | WRONG[sentence], tmp_path / "x.pth")
    with pytest.raises(UsageError, match=f"x.pth: .*{sentence}"):
        load(tmp_path / "x.pth")


def test_a_filter_of_other_numbers_is_told(tmp_path):
    """Of CUT's antialiased sampling, whose filters are in the files and built in here."""
    torch.save(G.state_dict() | {"model.7.filt": 2 * G.state_dict()["model.7.filt"]}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="x.pth: .*model.7.filt: got other numbers than the published filter's"):
        load(tmp_path / "x.pth")


def test_a_file_cannot_ask_for_memory_that_it_does_not_have(tmp_path):
    """A tensor of one number, repeated: 4 TB of a network."""
    state = resnet().state_dict()
    torch.save(state | {"model.1.weight": torch.zeros(()).expand(10**5, 10**4, 7, 7)}, tmp_path / "x.pth")
    with pytest.raises(UsageError, match="x.pth: "):
        load(tmp_path / "x.pth")


def test_the_folder_of_a_munit_run_without_its_checkpoint(tmp_path):
    from i2i.networks.munit import MunitGenerator, MunitTranslator

    nets = {f"gen_{domain}": MunitGenerator(dim=4, n_res=1, mlp_dim=8) for domain in "ab"}
    save_published(tmp_path, "latest", nets)
    found = load(tmp_path, network="BtoA")
    assert isinstance(found, MunitTranslator)
    assert torch.equal(found.source.mlp.model[0].fc.weight, nets["gen_b"].mlp.model[0].fc.weight)
    assert isinstance(load(tmp_path, network="gen_a"), MunitGenerator)
    (tmp_path / "one").mkdir()
    torch.save({domain: nets[f"gen_{domain}"].state_dict() for domain in "ab"}, tmp_path / "one/gen_00000100.pt")
    assert isinstance(load(tmp_path / "one"), MunitTranslator)
    assert isinstance(load(tmp_path / "one/gen_00000100.pt", network="gen_b"), MunitGenerator)
