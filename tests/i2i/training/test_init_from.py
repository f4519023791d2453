"""`init_from`: runs that start from earlier weights, ours and published, of every method; what does not fit is told."""

import re

import pytest
import torch
from torch import nn

from i2i.__main__ import main
from i2i.errors import UsageError
from i2i.files import CHECKPOINT
from i2i.inference.weights import save_published
from i2i.methods import METHODS
from i2i.training import checkpoint
from i2i.training.init_from import initialise
from i2i.training.schedule import Schedule

SMALL = {  # settings of the smallest networks that each method takes
    **dict.fromkeys(("cut", "fastcut"), {"generator": "resnet_5blocks", "ngf": 4, "ndf": 4, "feature_width": 8}),
    "sincut": {"ngf": 2, "ndf": 2, "crop_size": 32, "load_size": 32, "feature_width": 8},
    **dict.fromkeys(("cyclegan", "opgan"), {"generator": "resnet_1blocks", "ngf": 4, "ndf": 4}),
    "pix2pix": {"generator": "unet_32", "ngf": 4, "ndf": 4},
    "munit": {"ngf": 4, "ndf": 4, "n_res": 1, "mlp_dim": 8},
    **dict.fromkeys(("stargan", "matchgan"), {"g_conv_dim": 4, "d_conv_dim": 4, "g_repeat_num": 1, "d_repeat_num": 2}),
    "discogan": {"ngf": 4, "ndf": 4},
}
SMALL["opgan"] = SMALL["opgan"] | {"nsf": 2}


def build(method: str, **options):
    kind = METHODS[method]
    return kind(kind.Config.from_dict(kind.Config.SAMPLE | SMALL[method] | options))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_from_the_folder_of_a_run_and_from_published_files(method, tmp_path):
    old = build(method, seed=1)
    checkpoint.save(tmp_path / CHECKPOINT, old, Schedule(old.optimizers, old.config), 1)
    save_published(tmp_path / "published", "latest", old.networks)
    for source in (tmp_path, tmp_path / CHECKPOINT, tmp_path / "published"):
        new = build(method, seed=2, init_from=[str(source)])
        assert not same(new.networks[new.generators[0]], old.networks[new.generators[0]])
        told = initialise(new)
        for name, net in new.networks.items():
            assert same(net, old.networks[name]), name
            assert not net.state_dict() or f"{name} from " in told
            assert name not in new.averages or same(new.averages[name].module, old.networks[name])
        assert "from chance" not in told and new.config.init_from == (str(source),)


def test_published_files_of_munit_and_stargan(tmp_path):
    old = build("munit", seed=1)
    for kind in ("gen", "dis"):
        state = {domain: old.networks[f"{kind}_{domain}"].state_dict() for domain in "ab"}
        torch.save(state, tmp_path / f"{kind}_00100000.pt")
    torch.save({"gen": {}, "dis": {}}, tmp_path / "optimizer.pt")
    for paths in ([tmp_path], [tmp_path / f"{kind}_00100000.pt" for kind in ("gen", "dis")]):
        new = build("munit", init_from=[str(path) for path in paths])
        initialise(new)
        assert all(same(net, old.networks[name]) for name, net in new.networks.items())
    (tmp_path / "star").mkdir()
    old = build("stargan", seed=1)
    for name, net in old.networks.items():
        torch.save(net.state_dict(), tmp_path / "star" / f"200000-{name}.ckpt")
    new = build("stargan", init_from=[str(tmp_path / "star")])
    initialise(new)
    assert all(same(net, old.networks[name]) for name, net in new.networks.items())


def test_one_file_says_what_it_is_for(tmp_path):
    """By its name; without one, by what it fits; the rest starts from chance, and that is said."""
    old = build("cut", seed=1)
    save_published(tmp_path, "200", old.networks)
    for name in "GD":
        new, before = build("cut", seed=2, init_from=[str(tmp_path / f"200_net_{name}.pth")]), build("cut", seed=2)
        told = initialise(new)
        assert re.fullmatch(f"starting weights: {name} from .*200_net_{name}.pth; ., . from chance", told)
        for each, net in new.networks.items():
            assert same(net, (old if each == name else before).networks[each])
    (tmp_path / "200_net_F.pth").rename(tmp_path / "features.pth")
    assert "F from" in initialise(build("cut", init_from=[str(tmp_path / "features.pth")]))
    torch.save({"state_dict": {f"netD.{key}": x for key, x in old.D.state_dict().items()}}, tmp_path / "x.ckpt")
    several = build("cut", init_from=[str(tmp_path / "features.pth"), str(tmp_path / "x.ckpt")])
    assert initialise(several).endswith("; G from chance")


def settings(paths: list, **options) -> dict:
    return options | {"init_from": [str(path) for path in paths]}


def test_what_does_not_fit_is_refused_and_nothing_is_changed(tmp_path):
    wide, cycle = build("cut", ngf=8, ndf=4), build("cyclegan", seed=1)
    save_published(tmp_path / "wide", "latest", wide.networks)
    save_published(tmp_path / "cycle", "latest", cycle.networks)
    one = tmp_path / "one.pth"
    torch.save(cycle.G_A.state_dict(), one)
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    for number in (1, 2):
        save_published(tmp_path / "numbers", str(number), wide.networks)
    filtered = wide.G.state_dict() | {"model.7.filt": 2 * wide.G.state_dict()["model.7.filt"]}
    torch.save({"G": filtered, "D": wide.D.state_dict()}, tmp_path / "filtered.pth")
    wrong = [
        ("cut", [tmp_path / "filtered.pth"], "does not fit this run's G: model.1.weight has shape 8"),
        ("cut", [tmp_path / "filtered.pth"], "model.7.filt: got other numbers", {"ngf": 8}),
        (
            "cut",
            [tmp_path / "wide"],
            r"init_from: .*latest_net_G.pth does not fit this run's G: model.1.weight has shape 8 x 3 x 7 x 7, and 4 x "
            r"3 x 7 x 7 is wanted; the file holds a ResNet generator, 5 blocks, width 8",
        ),
        ("cut", [tmp_path / "cycle"], "holds D_A, D_B, G_A, G_B, and cut has G, D, F"),
        ("cyclegan", [one], "one.pth: is of G_A or G_B; its name must tell, as latest_net_G_A.pth"),
        ("cut", [tmp_path / "linear.pth"], "linear.pth: none of its keys is of one of G, D, F"),
        ("cut", [tmp_path / "nowhere"], "nowhere: no such file or folder"),
        ("cut", [tmp_path / "numbers"], "name one of its files: 2_net_D.pth, 2_net_F.pth, 2_net_G.pth, 1_net_D"),
        ("cut", [tmp_path / "wide", tmp_path / "numbers/1_net_G.pth"], "are both of G"),
    ]
    for method, paths, sentence, *options in wrong:
        options = options[0] if options else {}
        model, before = build(method, **settings(paths, **options)), build(method, **options)
        with pytest.raises(UsageError, match=sentence):
            initialise(model)
        assert all(same(net, before.networks[name]) for name, net in model.networks.items())


def words(**options) -> list[str]:
    small = METHODS["cut"].Config.SAMPLE | SMALL["cut"] | {"crop_size": 32, "num_patches": 16, "device": "cpu"}
    return ["train", *(f"{name}={value}" for name, value in (small | options).items())]


def test_a_run_from_the_command_line(tmp_path, capsys, monkeypatch):
    """It says what it starts from before it makes its folder, remembers it, and goes on without it."""
    monkeypatch.chdir(tmp_path)
    old = build("cut", seed=1)
    save_published(tmp_path / "old", "latest", {"G": old.G, "D": old.D})
    broken = [*words(output="new", steps=2, lr=1e-30), "--init_from", "old/latest_net_G.pth", "old/nothing.pth"]
    assert main(broken) == 2 and not (tmp_path / "new").exists()
    assert "init_from: " in capsys.readouterr().err
    assert main([*broken[:-1], "old/latest_net_D.pth"]) == 0
    printed = capsys.readouterr().out
    assert f"starting weights: G from {tmp_path / 'old/latest_net_G.pth'}, D from" in printed and "F from ch" in printed
    state = checkpoint.read(tmp_path / "new")
    now = state["networks"]["G"]  # after two steps at so low a rate
    assert all(torch.allclose(x, now[key], atol=1e-20, rtol=0) for key, x in old.G.state_dict().items())
    files = tuple(str(tmp_path / f"old/latest_net_{name}.pth") for name in "GD")
    assert checkpoint.config(state).init_from == files
    for file in files:
        (tmp_path / file).unlink()
    assert main(["train", "--resume", "new", "--device", "cpu", "steps=3"]) == 0
    assert "starting weights" not in capsys.readouterr().out
    # a checkpoint of before the setting existed
    del state["config"]["init_from"]
    torch.save(state, tmp_path / "new" / CHECKPOINT)
    assert main(["train", "--resume", "new", "--device", "cpu", "steps=3"]) == 0
