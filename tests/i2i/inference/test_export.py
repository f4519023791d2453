"""ONNX files: checked against torch by onnxruntime, self-describing, and not there when something is wrong."""

import sys

import onnx
import pytest
import torch
from support import golden
from support.translators import filled

from i2i.errors import UsageError
from i2i.inference import export
from i2i.inference.export import export_onnx, portable
from i2i.networks import UnetGenerator


@pytest.mark.parametrize("options", [{}, {"antialias_down": False, "antialias_up": False}, {"norm": "batch"}])
@torch.no_grad()
def test_portable_networks_compute_the_same(options):
    net = filled(dropout=True, **options)
    x = golden.image("x", (1, 3, 24, 32))
    plain = portable(net)
    assert net.training and not plain.training
    net.eval()
    torch.testing.assert_close(plain(x), net(x), atol=1e-5, rtol=0)


def test_a_file_for_one_size(tmp_path):
    net = UnetGenerator(ngf=2, num_downs=5, norm="batch", dropout=True)
    assert export_onnx(net, tmp_path / "u.onnx", (32, 64)) < 1e-5
    shape = onnx.load(tmp_path / "u.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in shape.dim] == [1, 3, 32, 64]


def test_a_difference_is_an_error_and_leaves_no_file(tmp_path, monkeypatch):
    def wrong(*_):
        values = [onnx.helper.make_tensor_value_info(name, 1, ["n", 3, "h", "w"]) for name in ("images", "translated")]
        graph = onnx.helper.make_graph(
            [onnx.helper.make_node("Identity", ["images"], ["translated"])], "g", values[:1], values[1:]
        )
        return onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 18)])

    monkeypatch.setattr(export, "_onnx_model", wrong)
    with pytest.raises(UsageError, match="away from torch's.*nothing written"):
        export_onnx(torch.nn.Conv2d(3, 3, 1), tmp_path / "g.onnx")
    assert not list(tmp_path.iterdir())


def test_a_size_that_the_network_does_not_take(tmp_path):
    with pytest.raises(UsageError, match="multiples of 4, at least 8, got 30 x 64"):
        export_onnx(filled(), tmp_path / "g.onnx", (30, 64))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match="pip install onnx onnxscript onnxruntime"):
        export_onnx(filled(), tmp_path / "g.onnx")
