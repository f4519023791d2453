"""Broken files of weights, thousands of them by hand (BROKEN_WEIGHTS=5000) and some in every run: what is read is
right, or it is refused in one sentence; nothing crashes, runs code or is lost."""

import io
import os
import pickle
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import i2i
from i2i.__main__ import main
from i2i.errors import UsageError
from i2i.methods.cut import CUT, CUTConfig
from i2i.networks import ResnetGenerator
from i2i.training import checkpoint
from i2i.training.init_from import initialise
from i2i.training.schedule import Schedule

COUNT = int(os.environ.get("BROKEN_WEIGHTS", 60))
SMALL = CUTConfig.SAMPLE | {
    "generator": "resnet_1blocks",
    "ngf": 2,
    "ndf": 2,
    "feature_width": 4,
    "nce_layers": (0, 4),
    "ema": 0.0,
}


def resnet() -> ResnetGenerator:
    torch.manual_seed(0)
    return ResnetGenerator(ngf=2, n_blocks=1)


STATE = resnet().state_dict()


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def of_a_run() -> bytes:
    torch.manual_seed(0)
    model = CUT(CUTConfig(**SMALL))
    model.G.load_state_dict(STATE)
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"broken-{os.getpid()}.pt"
    try:
        checkpoint.save(path, model, Schedule(model.optimizers, model.config), 1)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    """Files that hold the weights STATE, each of another kind. With checksums and (the last) without."""
    lightning = {"state_dict": {f"netG.{key}": tensor for key, tensor in STATE.items()}, "epoch": 3}
    return {
        "latest_net_G.pth": saved(STATE),
        "last.ckpt": saved(lightning),
        "checkpoint.pt": of_a_run(),
        "2018_net_G.pth": saved(STATE, _use_new_zipfile_serialization=False),
    }


def same_weights(network: torch.nn.Module) -> bool:
    state = network.state_dict()
    return state.keys() == STATE.keys() and all(torch.equal(tensor, STATE[key]) for key, tensor in state.items())


def one_sentence(error: Exception) -> bool:
    text = str(error)
    return "\n" not in text and "Traceback" not in text and len(text) < 900


def broken(data: bytes, rng: random.Random) -> bytes:
    """Truncated, bits turned over, stretches zeroed, repeated, taken out or filled with noise."""
    data, kind = bytearray(data), rng.randrange(7)
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 8, 100, 5000)))
    if kind == 0:
        return bytes(data[:start])
    if kind <= 2:
        for _ in range(rng.choice((1, 1, 1, 5, 50))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 3:
        data[start:end] = bytes(end - start)
    elif kind == 4:
        data[start:end] = data[start:end] * 2
    elif kind == 5:
        del data[start:end]
    else:
        data[start:end] = rng.randbytes(end - start)
    return bytes(data)


def try_all(path: Path, exact: bool) -> tuple[int, int]:
    """(read, refused) of what reads weights in a process: `i2i.load` and `init_from`."""
    read = 0
    try:
        network = i2i.load(path, impl="reference")
        read += 1
        assert not exact or same_weights(network), path
    except UsageError as error:
        assert one_sentence(error) and str(path) in str(error), error
    model = CUT(CUTConfig(**SMALL | {"init_from": (str(path),)}))
    before = {key: tensor.clone() for key, tensor in model.G.state_dict().items()}
    try:
        initialise(model)
        read += 1
        assert not exact or same_weights(model.G), path
    except UsageError as error:
        assert one_sentence(error) and str(path) in str(error), error
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.G.state_dict().items())
    return read, 2 - read


@pytest.mark.parametrize("name", ["latest_net_G.pth", "last.ckpt", "checkpoint.pt", "2018_net_G.pth"])
def test_damaged_files_are_read_right_or_refused(whole, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(whole[name])
    assert try_all(path, exact=True) == (2, 0)
    rng, refused = random.Random(name), 0
    for _ in range(COUNT // 4):
        path.write_bytes(broken(whole[name], rng))
        # a file of before 2020 has no checksums: of a number in it that became another nobody can know
        refused += try_all(path, exact=name != "2018_net_G.pth")[1]
    assert refused > COUNT // 8


def test_every_bit_of_a_weight_is_under_a_checksum(whole, tmp_path):
    """torch reads the file with a bit of its numbers turned over as if nothing were."""
    data, path = bytearray(whole["latest_net_G.pth"]), tmp_path / "x.pth"
    number = STATE["model.1.weight"].numpy().tobytes()
    data[data.index(number) + 41] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path)["model.1.weight"], STATE["model.1.weight"])
    with pytest.raises(UsageError, match="x.pth: damaged: its part .* is not what was written"):
        i2i.load(path)
    (tmp_path / "checkpoint.pt").write_bytes(data)
    with pytest.raises(UsageError, match="damaged"):
        checkpoint.read(tmp_path)


def test_files_without_checksums_are_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, tmp_path / "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_weights(i2i.load(tmp_path / "x.pth"))


class Runs:
    """A pickle that makes a file when it is read as one."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return open, (str(self.place), "w")


def odd_contents(place: Path) -> dict[str, bytes]:
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("latest_net_G.pth", saved(STATE))
    arrays = io.BytesIO()
    np.savez(arrays, **{key: tensor.numpy() for key, tensor in STATE.items()})
    deep: dict = {}
    for _ in range(300):
        deep = {"model": deep}
    spread = torch.zeros(1).as_strided((10**6, 3, 7, 7), (0, 0, 0, 0))
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), script)
    contents = {
        "pickled module": resnet(),
        "list": [STATE],
        "tensor": torch.ones(3),
        "number": 3,
        "text": "hello",
        "None": None,
        "empty": {},
        "numbers as keys": {0: torch.ones(2), 1: torch.ones(2)},
        "None as key": {None: STATE, "G": STATE["model.1.weight"]},
        "tuples as keys": {("a", "b"): torch.ones(2)},
        "one key": {"model.1.weight": STATE["model.1.weight"]},
        "half of the keys": dict(list(STATE.items())[::2]),
        "networks that are none": {"format": 2, "method": "cut", "config": {}, "networks": {"G": 3, "D": None}},
        "networks are a list": {"format": 2, "method": "cut", "networks": [STATE]},
        "networks without keys": {"format": 2, "method": "cut", "networks": {"G": {}}},
        "checkpoint of another time": {"format": 7, "networks": {"G": STATE}},
        "optimizer": torch.optim.Adam(resnet().parameters()).state_dict(),
        "scalars": {key: torch.tensor(1.0) for key in STATE},
        "no numbers": {key: torch.empty(0) for key in STATE},
        "no channels": STATE | {"model.1.weight": torch.empty(0, 3, 7, 7)},
        "seven dimensions": STATE | {"model.1.weight": torch.ones(2, 3, 7, 7, 1, 1, 1)},
        "integers": {key: tensor.long() for key, tensor in STATE.items()},
        "truth": {key: tensor > 0 for key, tensor in STATE.items()},
        "complex": {key: tensor.to(torch.cfloat) for key, tensor in STATE.items()},
        "not a number": STATE | {"model.1.bias": torch.tensor([torch.nan, 1.0])},
        "infinite": STATE | {"model.1.bias": torch.tensor([torch.inf, 1.0])},
        "beyond float32": {key: tensor.double() * 1e300 for key, tensor in STATE.items()},
        "sparse": STATE | {"model.1.bias": torch.ones(2).to_sparse()},
        "meta": STATE | {"model.1.bias": torch.ones(2, device="meta")},
        "quantized": STATE | {"model.1.bias": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        "nested": STATE | {"model.1.bias": torch.nested.nested_tensor([torch.ones(2)])},
        "one number, spread": STATE | {"model.1.weight": spread},
        "everything from one number": {key: torch.zeros(1).expand(2) for key in STATE},
        "deep": deep,
        "billions of scales": {f"cnns.{n}.{10**9}.conv.weight": torch.ones(2, 3, 4, 4) for n in (0, 10**9)},
        "billions of blocks": STATE | {f"model.{10**12}.conv_block.1.weight": torch.ones(2)},
    }
    return {kind: saved(content) for kind, content in contents.items()} | {
        "nothing": b"",
        "zeros": bytes(5000),
        "web page": b"<!DOCTYPE html><html>not found</html>",
        "pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 45\n",
        "picture": _png(),
        "zip of a file of weights": zipped.getvalue(),
        "zip of nothing": b"PK\x05\x06" + bytes(18),
        "arrays": arrays.getvalue(),
        "script": script.getvalue(),
        "deep list": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
        "code": pickle.dumps({"state_dict": STATE | {"model.1.weight": Runs(place)}}),
        "code in torch's file": saved({"state_dict": STATE, "more": Runs(place)}),
        "protocol 4": pickle.dumps({"a.b": 1}, protocol=4),
        "safetensors with a wrong header": (40).to_bytes(8, "little")
        + b'{"a":{"dtype":"F32","shape":[99999999]}}'
        + bytes(9),
        "claims of a huge header": (2**62).to_bytes(8, "little") + b"{" + bytes(100),
    }


def _png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    return file.getvalue()


READ_RIGHT = ("code in torch's file",)  # without its code


def test_other_things_are_refused_or_read_right(tmp_path):
    place, path = tmp_path / "made by a pickle", tmp_path / "x.pth"
    for kind, data in odd_contents(place).items():
        path.write_bytes(data)
        read, _ = try_all(path, exact=True)
        assert read == (2 if kind in READ_RIGHT else 0), kind
        assert not place.exists(), kind


@pytest.mark.parametrize("command", ["translate", "export", "train"])
def test_the_command_line_tells_in_one_line(whole, command, tmp_path, monkeypatch, capsys):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    rng = random.Random(command)
    half = len(whole["latest_net_G.pth"]) // 2  # without its end, where a zip archive's directory is, nothing is right
    files = {f"broken {n}": broken(whole["latest_net_G.pth"][:half], rng) for n in range(max(4, COUNT // 20))}
    odd = odd_contents(tmp_path / "code ran")
    files |= {kind: odd[kind] for kind in ("nothing", "pickled module", "not a number", "integers", "web page", "deep")}
    (tmp_path / "weights").mkdir()
    for number, data in enumerate(files.values()):
        (tmp_path / "weights" / f"{number}.pth").write_bytes(data)
    settings = [f"{k}={v}" for k, v in SMALL.items() if k != "nce_layers"]
    words = {
        "translate": ["translate", "--input", "a.png", "--output", "out", "--device", "cpu", "--weights"],
        "export": ["export", "--onnx", "g.onnx", "--weights"],
        "train": ["train", "output=run", "device=cpu", "impl=reference", *settings],
    }[command]
    monkeypatch.chdir(tmp_path)
    for number in range(len(files)):
        weights = f"weights/{number}.pth"
        given = [*words, weights] if command != "train" else [*words, "--init_from", weights]
        assert main(given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ") and weights in line
    left = {"a.png", "weights"}
    assert {p.name for p in tmp_path.iterdir()} == left
