"""A resumed run is the unbroken one, or it is refused with what has changed."""

import io
import random
import shutil

import pytest
import torch
from PIL import Image
from support.method_steps import in_float64
from support.tiny_runs import TINY, fails, losses, same

from benchmarks.zoo import batch
from i2i import UsageError
from i2i.__main__ import main
from i2i.data import open_training_data
from i2i.methods import METHODS
from i2i.methods.cut import CUTConfig
from i2i.methods.cyclegan import CycleGANConfig
from i2i.methods.stargan import StarGANConfig
from i2i.training import checkpoint
from i2i.training.loop import train
from i2i.training.resuming import check_data, facts, named
from i2i.training.schedule import Schedule

SMALL = TINY | {"load_size": 36, "n_epochs": 1, "n_epochs_decay": 3, "ema": 0.9}  # three images: four epochs, 12 steps

NARROW = {"crop_size": 32, "load_size": 32, "ngf": 4, "ndf": 4}
MOVED = {
    "cut": NARROW | {"generator": "resnet_5blocks", "num_patches": 8, "feature_width": 8},
    "cyclegan": NARROW | {"generator": "resnet_1blocks", "pool_size": 1},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(data, steps): a run of so many steps (0: all 12) on those pictures. Trained once for all
    tests: a run knows where its pictures are by its settings alone."""
    runs = {}

    def of(data, steps):
        if steps not in runs:
            runs[steps] = tmp_path_factory.mktemp("trained") / "run"
            train("cut", CUTConfig(**SMALL | {"data": (str(data),), "steps": steps}), runs[steps])
        return runs[steps]

    return of


def put(run, place, data):
    """A copy of a run at this place, trained on `data`."""
    shutil.copytree(run, place)
    state = checkpoint.read(place)
    state["config"]["data"] = (str(data),)
    torch.save(state, place / "checkpoint.pt")
    return place


@pytest.fixture
def begun(trained, folders, tmp_path, one_thread):
    """A run of which 8 of 12 steps are done."""
    return put(trained(folders, 8), tmp_path / "run", folders)


@pytest.fixture
def whole(trained, folders, tmp_path, one_thread):
    """The same run, unbroken."""
    return put(trained(folders, 0), tmp_path / "whole", folders)


def without_facts(run):
    """As versions before wrote it."""
    state = checkpoint.read(run)
    del state["made_with"]
    torch.save(state, run / "checkpoint.pt")


def change(folders, how):
    place = folders / "trainB"
    if how == "more":
        for i in range(3, 7):
            shutil.copy(place / "0.png", place / f"{i}.png")
    elif how == "fewer":
        (place / "0.png").unlink()
        (folders / "trainA" / "0.png").unlink()
    elif how == "renamed":
        (place / "0.png").rename(place / "z.png")
    else:
        Image.open(place / "0.png").resize((60, 60)).save(place / "0.png")


CHANGES = {
    "more": "B had 3 pictures and has 7 now",
    "fewer": "A had 3 pictures and has 2 now; B had 3 pictures and has 2 now",
    "renamed": "B has pictures of other names, sizes or labels than it had",
    "resized": "B has pictures of other names, sizes or labels than it had",
}


@pytest.mark.parametrize("how", CHANGES)
def test_other_pictures_are_refused(begun, folders, capsys, how):
    before = (begun / "checkpoint.pt").read_bytes(), losses(begun)
    change(folders, how)
    message = fails(capsys, "train", "--resume", begun, "steps=0", "--device", "cpu")
    assert f"the pictures of this run have changed ({CHANGES[how]})" in message
    assert ((begun / "checkpoint.pt").read_bytes(), losses(begun)) == before


@pytest.mark.parametrize("how", ["more", "fewer"])
def test_an_old_checkpoint_counts_its_epochs(begun, folders, capsys, how):
    """Of before the pictures were kept in it: its rates went below zero with more epochs than it was made for."""
    without_facts(begun)
    change(folders, how)
    message = fails(capsys, "train", "--resume", begun, "steps=0", "--device", "cpu")
    assert "the pictures of this run have changed (step 8 was in epoch 2 (from 0)" in message


@pytest.mark.parametrize("old", [False, True])
def test_moved_pictures_go_on_exactly(begun, whole, folders, tmp_path, old):
    if old:
        without_facts(begun)
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("trainA", "trainB"):
        (folders / name).rename(moved / name)
    assert main(["train", "--resume", str(begun), "--data", str(moved), "steps=0", "--device", "cpu"]) == 0
    assert losses(begun) == losses(whole)
    states = [checkpoint.read(run) for run in (begun, whole)]
    for state in states:
        del state["config"]["data"]
    assert same(*states)


def test_lists_of_moved_pictures_go_on(folders, tmp_path):
    def lists(root):
        for name in ("A", "B"):
            (root / f"{name}.txt").write_text("\n".join(str(root / f"train{name}" / f"{i}.png") for i in (2, 0, 1)))
        return tuple(str(root / f"{name}.txt") for name in ("A", "B"))

    run, moved = tmp_path / "run", tmp_path / "elsewhere"
    train("cut", CUTConfig(**SMALL | {"data": lists(folders), "steps": 1}), run)
    moved.mkdir()
    for name in ("trainA", "trainB"):
        (folders / name).rename(moved / name)
    assert main(["train", "--resume", str(run), "--data", *lists(moved), "steps=2", "--device", "cpu"]) == 0


def test_what_the_library_is_given_is_checked_as_well(begun, folders, tmp_path):
    state = checkpoint.read(begun)
    config = SMALL | {"data": (str(folders),)}
    with pytest.raises(
        UsageError, match="batch_size was 1 in this run and cannot become 2; what may change: cuda_graphs, data"
    ):
        train("cut", CUTConfig(**config | {"batch_size": 2}), begun, resume=state)
    with pytest.raises(UsageError, match="method was cut in this run and cannot become cyclegan"):
        train("cyclegan", CycleGANConfig(), begun, resume=state)
    with pytest.raises(UsageError, match="config of cut must be a CUTConfig, got CycleGANConfig"):
        train("cut", CycleGANConfig(), tmp_path / "new")
    with pytest.raises(UsageError, match="method must be one of cut"):
        train("cutt", CUTConfig(), tmp_path / "new")
    state["processes"] *= 2
    with pytest.raises(UsageError, match="trained by 2 processes and goes on exactly only with as many, got 1"):
        train("cut", CUTConfig(**config), begun, resume=state)


def test_another_version_is_said_or_refused(begun, capsys):
    state = checkpoint.read(begun)
    form = state["made_with"]["memory format"]
    state["made_with"] |= {"torch": "1.0", "threads": 99, "memory format": "of tomorrow"}
    torch.save(state, begun / "checkpoint.pt")
    assert main(["train", "--resume", str(begun), "steps=9", "--device", "cpu"]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("not bit for bit")]
    assert len(said) == 1 and "torch was 1.0 and is " in said[0] and "threads was 99 and is " in said[0]
    assert f"memory format was of tomorrow and is {form}" in said[0]
    state = checkpoint.read(begun)
    state["config"]["of_tomorrow"] = 1
    torch.save(state, begun / "checkpoint.pt")
    message = fails(capsys, "train", "--resume", begun, "steps=10")
    assert "made by another version of i2i, which has other settings: unknown option: of_tomorrow" in message


def test_leftovers_of_a_killed_run_are_cleared(begun, whole):
    with open(begun / "losses.csv", "ab") as file:
        file.write(b"9" + b",1" * 6 + b"\r\n10,1,1")  # after the checkpoint, and broken off
    half = (begun / "checkpoint.pt").read_bytes()[:1000]
    for name in ("checkpoint.pt.tmp", "latest_net_G.pth.tmp", "pictures/step_0000012.png.tmp", "losses.png.tmp"):
        (begun / name).write_bytes(half)
    shutil.copy(whole / "latest_net_G.pth", begun / "latest_net_G.pth")  # newer than the checkpoint
    (begun / "run.lock").write_text("process 1 on a machine")
    assert main(["train", "--resume", str(begun), "steps=0", "--device", "cpu"]) == 0
    assert losses(begun) == losses(whole)
    assert same(checkpoint.read(begun), checkpoint.read(whole))
    assert {p.relative_to(begun) for p in begun.rglob("*")} >= {p.relative_to(whole) for p in whole.rglob("*")}
    assert not [p for p in begun.rglob("*") if p.suffix in (".tmp", ".lock")]


@pytest.mark.parametrize("line", ["step;D_real", "8,1", "x,1,1,1,1,1,1"])
def test_a_table_of_someone_else_is_not_cut(begun, capsys, line):
    text = (begun / "losses.csv").read_text()
    table = line + "\n" + text if ";" in line else text + line + "\n" + text.splitlines()[-1] + "\n"
    (begun / "losses.csv").write_text(table)
    assert "is not as a run wrote it" in fails(capsys, "train", "--resume", begun, "steps=0", "--device", "cpu")
    assert (begun / "losses.csv").read_text() == table


def test_fuzzed_checkpoints_are_refused_and_kept(begun, capsys):
    """Cut short, with bits turned over, without parts, of another method, of an older format."""
    path = begun / "checkpoint.pt"
    good, rng = path.read_bytes(), random.Random(0)
    state = checkpoint.read(begun)
    bad = [good[: rng.randrange(len(good))] for _ in range(15)] + [b"", b"PK", b"\x80\x02."]
    for _ in range(60):
        flipped = bytearray(good)
        flipped[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        bad.append(bytes(flipped))
    for part in state.keys() - {"made_with"}:
        bad.append(packed({name: value for name, value in state.items() if name != part}))
        bad.append(packed(state | {part: 7.5}))
    bad += [packed(state | {"method": "cyclegan"}), packed(state | {"format": 1}), packed([state])]
    for name in ("networks", "optimizers", "ema"):
        first, *others = state[name]
        bad.append(packed(state | {name: {other: state[name][other] for other in others}}))
        bad.append(packed(state | {name: state[name] | {first: {}}}))
    refused = 0
    for content in bad:
        path.write_bytes(content)
        try:
            code = main(["train", "--resume", str(begun), "steps=9", "--device", "cpu"])
        except BaseException as error:
            raise AssertionError(f"a traceback: {error!r}") from error
        error = capsys.readouterr().err
        if code == 0:  # a bit that means nothing, such as one between two parts
            again = checkpoint.read(begun)
            path.write_bytes(good)
            assert again["step"] == 9 and len(content) == len(good)
            continue
        refused += 1
        assert code == 2 and error.count("error: ") == 1 and "Traceback" not in error, error
        assert path.read_bytes() == content  # nothing was lost
    assert refused >= len(bad) - 10


def packed(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_listing_reads_names_not_places(tmp_path):
    paths = [tmp_path / "x" / "a" / "1.png", tmp_path / "x" / "b" / "1.png"]
    moved = [tmp_path / "y" / "a" / "1.png", tmp_path / "y" / "b" / "1.png"]
    assert named(paths) == named(moved) == [("a/1.png", 0, 0, 0), ("b/1.png", 0, 0, 0)]
    assert named(paths[::-1]) != named(paths)


def test_labelled_pictures_are_listed_with_their_labels(tmp_path):
    def check_or(change: str) -> str:
        """What is said of them after they went from `before` to another folder and were changed."""
        config = StarGANConfig(data=(str(tmp_path / "before"),), label_kind="classes", selected_attrs=("happy", "sad"))
        state = {"made_with": facts(open_training_data(config), torch.device("cpu"), "float32")}
        shutil.copytree(tmp_path / "before", tmp_path / change)
        if change == "relabelled":
            (tmp_path / change / "train" / "sad" / "1.png").rename(tmp_path / change / "train" / "happy" / "1.png")
        config.data = (str(tmp_path / change),)
        try:
            check_data(state, facts(open_training_data(config), torch.device("cpu"), "float32"))
        except UsageError as error:
            return str(error)
        return ""

    for phase in ("train", "test"):
        for name, numbers in {"happy": (0,), "sad": (1, 2)}.items():
            (tmp_path / "before" / phase / name).mkdir(parents=True)
            for number in numbers:
                Image.new("RGB", (178, 218)).save(tmp_path / "before" / phase / name / f"{number}.png")
    assert check_or("moved") == ""
    assert "the data has pictures of other names, sizes or labels than it had" in check_or("relabelled")


@pytest.mark.parametrize("method", ["cut", "cyclegan"])
def test_a_run_goes_on_in_another_memory_format(method, tmp_path, monkeypatch):
    """On a machine whose convolutions prefer the other one: the weights are those of the checkpoint, and so are, up to
    rounding, those after more steps. In float64, where rounding is far below an update."""

    def built(capability):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        return in_float64(METHODS[method](METHODS[method].Config(**MOVED[method])))

    def steps(model, *numbers):
        for number in numbers:
            model.step(*(images.double() * (1 - 0.1 * number) for images in batch(model.config)))
        return [p.detach().clone() for net in model.networks.values() for p in net.parameters()]

    for written, read in (("AVX512", "AVX2"), ("AVX2", "AVX512")):
        there = built(written)
        weights = steps(there, 0, 1)
        checkpoint.save(tmp_path / "state.pt", there, Schedule(there.optimizers, there.config), 2)
        here = built(read)
        checkpoint.restore(checkpoint.read(tmp_path / "state.pt"), here, Schedule(here.optimizers, here.config))
        assert all(map(torch.equal, weights, steps(here)))
        own = {p.stride() for net in here.networks.values() for p in net.parameters() if p.dim() == 4}
        assert own != {p.stride() for net in there.networks.values() for p in net.parameters() if p.dim() == 4}
        for optimizer in here.optimizers.values():
            for weight, held in optimizer.state.items():
                assert held["exp_avg"].stride() == held["exp_avg_sq"].stride() == weight.stride()
        torch.testing.assert_close(steps(here, 2, 3), steps(there, 2, 3), rtol=1e-7, atol=1e-9)
