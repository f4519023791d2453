"""`i2i export`."""

import argparse

import onnx
import onnxruntime
import pytest
import torch
from support import golden
from support.translators import filled

from i2i.cli.export import add_arguments, run


@pytest.mark.slow  # the exporter takes it 15 s; tests/i2i/inference has a file for one size
def test_a_file_for_any_size(tmp_path):
    weights, path = tmp_path / "latest_net_G.pth", tmp_path / "new/g.onnx"
    net = filled()
    torch.save(net.state_dict(), weights)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert run(parser.parse_args(["--weights", str(weights), "--onnx", str(path)])) == 0
    assert [p.name for p in path.parent.iterdir()] == ["g.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("InstanceNormalization") == 7 and kinds.count("Conv") == 10  # 8, and 2 that blur
    assert set(kinds) <= {"InstanceNormalization", "Conv", "Relu", "Pad", "Add", "Resize", "Tanh"}
    assert "multiples of 4" in model.doc_string and "ResNet" in model.doc_string
    assert str(tmp_path.cwd()).encode() not in path.read_bytes()  # no paths of this machine
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    x = golden.image("x", (3, 3, 40, 100))
    with torch.no_grad():
        wanted = net.eval()(x)
    got = session.run(["translated"], {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), wanted, atol=1e-4, rtol=0)
