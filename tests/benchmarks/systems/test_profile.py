"""Profiles of a step: kinds of operators, where our own time goes, the report."""

import json

import pytest
import torch

import kernels
from benchmarks import profile
from benchmarks.engine.work import FUSED
from benchmarks.systems.zoo_report import PLAIN

TINY = {"generator": "resnet_6blocks", "ngf": 4, "ndf": 4, "num_patches": 16, "feature_width": 16, "crop_size": 32}


@pytest.mark.parametrize(
    ("name", "kind"),
    {
        "aten::mkldnn_convolution": "convolutions",
        "autograd::engine::evaluate_function: ConvolutionBackward0": "convolutions",
        "kernels.norm": "kernels.norm",
        "aten::_fused_adam_": "optimiser",
        "aten::native_batch_norm_backward": "batch norm",
        "aten::leaky_relu_backward": "activations",
        "aten::addmm": "matrix products",
        "aten::copy_": "copies and casts",
        "aten::zeros_like": "fills",
        "aten::add_": "additions",
        "aten::linalg_vector_norm": "sums and means",
        "aten::mul": "arithmetic",
        "aten::view": "other operators",
        profile.STEP: "in no operator (Python)",
    }.items(),
)
def test_kinds(name, kind):
    assert profile.kind_of(name) == kind and kind in profile.KINDS


class Model:
    """Two steps: a norm of ours with gradients and one without, whose time no operator of torch has."""

    steps = 0

    def step(self, x):
        self.steps += 1
        kernels.instance_norm(x.requires_grad_(), activation="relu").sum().backward()
        with torch.no_grad():
            kernels.instance_norm(x)
            kernels.reflection_pad2d(x, 1)


def test_our_operators_have_ranges():
    model = Model()
    found = profile.profiled(model, [torch.randn(2, 3, 16, 16)], 2)
    assert model.steps == 4  # as many before
    assert found["kinds"]["kernels.norm"]["calls"] == 3 and found["kinds"]["kernels.resample"]["calls"] == 1
    assert found["ms"] == pytest.approx(sum(kind["ms"] for kind in found["kinds"].values()))
    assert found["kinds"]["sums and means"]["calls"] >= 1 and "kernels.norm" in found["operators"]


def test_the_report(tmp_path, capsys):
    given = ["--system", "fastcut", "--size", "48", "--output", str(tmp_path)]
    assert profile.main(given, TINY) == 0
    result = json.loads((tmp_path / "profile_fastcut_float32.json").read_text())
    assert [row["name"] for row in result["rows"]][:2] == [FUSED, PLAIN] and len(result["rows"]) == 4
    assert result["settings"]["crop_size"] == 48
    fused, plain = result["rows"][:2]
    assert "kernels.norm" in fused["kinds"] and "kernels.norm" not in plain["kinds"]
    assert fused["kinds"]["convolutions"]["calls"] > 10
    text = (tmp_path / "profile_fastcut_float32.md").read_text()
    assert "| convolutions | " in text and "crop_size=48" in text and "milliseconds by operator: " in text
    assert "| convolutions | " in capsys.readouterr().out


def test_a_gpu_is_told_where_to_go(capsys):
    assert profile.main(["--device", "cuda"]) == 2
    assert "benchmarks.launches" in capsys.readouterr().err
