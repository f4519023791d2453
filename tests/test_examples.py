"""The examples that can be run are run; those for checkouts are what `benchmarks.foreign` runs (tests/benchmarks).

Skipped without the package, which is optional: MONAI's, and nnU-Net's with its networks.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path

import pytest
import torch

import kernels

EXAMPLES = Path(__file__).parents[1] / "examples"
CHECKOUTS = ("cut", "cyclegan", "munit", "stargan")


def load(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("kernels.fusing.accelerating.keep_freed_memory", lambda: False)  # for all tests of this process


def test_plain_loop(capsys):
    example = load("plain_loop")
    example.main(steps=2)
    printed = capsys.readouterr().out
    assert "ReLU merged" in printed and re.search(r"accelerated [\d.]+ \([\d.]+x\)", printed)


def test_plain_loop_sees_a_network_that_computes_something_else(monkeypatch):
    example = load("plain_loop")

    def broken(net):
        net[1].register_forward_hook(lambda module, given, result: result * 1.1)
        net.fuse_report = ""
        return net

    monkeypatch.setattr(kernels, "accelerate", broken)
    with pytest.raises(AssertionError, match="not close"):
        example.main(steps=2)


def test_monai():
    pytest.importorskip("monai")
    load("monai_dynunet").main()


def test_nnunet_trainer(monkeypatch):
    """On a stand-in of the trainer's class, which is nnU-Net's own package; the network is nnU-Net's where it is
    installed."""
    unet = pytest.importorskip("dynamic_network_architectures.architectures.unet")

    class nnUNetTrainer:
        @staticmethod
        def build_network_architecture(name, options, imports, inputs, outputs, enable_deep_supervision=True):
            torch.manual_seed(0)
            options = options | {"deep_supervision": enable_deep_supervision}
            return getattr(unet, name)(input_channels=inputs, num_classes=outputs, **options)

    module = types.ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
    module.nnUNetTrainer = nnUNetTrainer
    names = module.__name__.split(".")
    for i in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:i]), types.ModuleType(names[i - 1]))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    options = {
        "n_stages": 2,
        "features_per_stage": (4, 8),
        "conv_op": torch.nn.Conv3d,
        "kernel_sizes": 3,
        "strides": (1, 2),
        "n_conv_per_stage": 1,
        "n_conv_per_stage_decoder": 1,
        "norm_op": torch.nn.InstanceNorm3d,
        "norm_op_kwargs": {"affine": True},
        "nonlin": torch.nn.LeakyReLU,
    }
    given = ("PlainConvUNet", options, [], 1, 2)
    ours = load("nnunet_trainer").nnUNetTrainerAccelerated.build_network_architecture(
        *given, enable_deep_supervision=False
    )
    stock = nnUNetTrainer.build_network_architecture(*given, enable_deep_supervision=False)
    assert len(ours.fuse_report.replaced) >= 3
    volume = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(ours(volume), stock(volume))
    assert list(ours.state_dict()) == list(stock.state_dict())


@pytest.mark.parametrize("name", CHECKOUTS)
def test_pages_of_checkouts_name_their_command_and_valid_lines(name):
    """Whether the lines work is for `benchmarks.foreign` to say, which wants the checkout."""
    text = (EXAMPLES / f"{name}.md").read_text()
    assert (
        f"python -m benchmarks.foreign --{name} DIR" in text and f"({name}.md)" in (EXAMPLES / "README.md").read_text()
    )
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    for block in blocks:
        compile(block, name, "exec")
        for used in re.findall(r"kernels\.(\w+)\(", block) + re.findall(r"from kernels import (\w+)", block):
            assert hasattr(kernels, used)
