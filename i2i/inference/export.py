"""A trained network as an ONNX file, for runtimes without this library."""

from __future__ import annotations

import copy
import importlib
import logging
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from i2i.data.images import one_line
from i2i.errors import UsageError
from i2i.files import write_atomically
from i2i.inference.translate import channels_in, least_side, size_multiple

OPSET = 18
MARK = "i2i"  # of a file's metadata: what it is an export of (see i2i.inference.outputs.mark)
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Largest difference allowed between onnxruntime and torch on outputs in [-1, 1]: an eighth of an 8-bit level. A ResNet
# generator of 9 blocks differs by 1e-5, from rounding.
TOLERANCE = 1e-3


class PlainNorm(nn.Module):
    """A `kernels.InstanceNorm2d` in torch's own operators, which ONNX has counterparts of: InstanceNormalization, Relu,
    Add, Pad, where the reference implementation would become some ten nodes of arithmetic."""

    def __init__(self, norm: kernels.InstanceNorm2d):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        norm = self.norm
        y = nn.InstanceNorm2d.forward(norm, x)
        if norm.activation == "relu":
            y = F.relu(y)
        elif norm.activation == "leaky_relu":
            y = F.leaky_relu(y, norm.negative_slope)
        elif norm.activation == "tanh":
            y = torch.tanh(y)
        if residual is not None:
            y = y + residual
        return F.pad(y, (norm.padding,) * 4, mode="reflect") if norm.padding else y


def portable(network: nn.Module) -> nn.Module:
    """A copy of `network` that computes the same with torch's operators alone, on the CPU in float32 and eval mode."""
    plain = copy.deepcopy(network).cpu().float().eval()
    module: Any  # many have an impl
    for name, module in list(plain.named_modules()):
        if isinstance(module, kernels.InstanceNorm2d):
            owner, _, leaf = name.rpartition(".")
            setattr(plain.get_submodule(owner), leaf, PlainNorm(module))
        elif hasattr(module, "impl"):
            module.impl = "reference"
    return plain


def export_onnx(network: nn.Module, path: Path, size: tuple[int, int] | None = None, of: str = "") -> float:
    """Write `network` to `path` as it is in eval mode: batch norm with trained statistics, no dropout.

    The file takes `images` (N, C, H, W), float32 in [-1, 1], and gives `translated` (N, C', H, W). It is run by
    onnxruntime on noise of two sizes and compared with torch before it is written, in one go.

    Args:
        network: (N, C, H, W) -> (N, C', H, W), on any device; not changed.
        path: of the file; folders are made.
        size: (height, width) for a file that takes one image of this size; else N, H and W are free, within what the
            network takes.
        of: written into the file as the value of MARK.

    Returns:
        The largest absolute difference between onnxruntime and torch.

    Raises:
        UsageError: a missing package, a size that the network does not take, or a difference above TOLERANCE. Nothing
            is written then.
    """
    onnxruntime = require_packages(*PACKAGES)[-1]
    plain = portable(network)
    multiple = size_multiple(plain)
    least = least_side(plain, multiple)
    if size is None:
        side = max(-(-64 // multiple) * multiple, least)
        # torch.export would take a batch of 1, or equal sides, for a property of the network
        shapes = [(2, side, side + multiple), (1, side + 2 * multiple, side)]
        dynamic = ({0: "batch", 2: "height", 3: "width"},)
    else:
        if any(s < least or s % multiple for s in size):
            takes = f"sides that are multiples of {multiple}, at least {least}"
            raise UsageError(f"--size: this network takes {takes}, got {size[0]} x {size[1]}")
        shapes, dynamic = [(1, *size)], None
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.rand(n, channels_in(plain), *sides, generator=generator) * 2 - 1 for n, *sides in shapes]
    model = _onnx_model(plain, inputs[0], dynamic)
    model.doc_string = (
        f"{getattr(network, 'recognised', type(network).__name__)}; images: float32 in [-1, 1], sides multiples of "
        f"{multiple}; in eval mode (trained statistics of batch norm, no dropout)"
    )
    if of:
        model.metadata_props.add(key=MARK, value=of)
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    worst = 0.0
    for x in inputs:
        with torch.no_grad():
            wanted = plain(x)
        got = torch.from_numpy(session.run(None, {"images": x.numpy()})[0])
        worst = max(worst, float((got - wanted).abs().max()) if got.shape == wanted.shape else float("inf"))
    if not worst <= TOLERANCE:  # a NaN is no success either
        raise UsageError(
            f"onnxruntime's result is up to {worst:.1e} away from torch's (allowed: {TOLERANCE:.0e}); nothing written"
        )
    write_atomically(path, data)
    return worst


def require_packages(*names: str) -> list[ModuleType]:
    """These packages, imported; UsageError that says what to install."""
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise UsageError(
            f"export needs packages that are not installed ({error}): pip install {' '.join(names)}"
        ) from None


def _onnx_model(network: nn.Module, image: Tensor, dynamic: tuple[dict[int, str]] | None):
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)  # it names operators of torchvision, which nobody here wants
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program: Any = torch.onnx.export(
                network,
                (image,),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=["images"],
                output_names=["translated"],
                verbose=False,
            )
    except Exception as error:  # of many kinds
        reason = one_line(error).partition(" Traceback")[0][:300]
        raise UsageError(f"torch's ONNX exporter does not take this network ({reason})") from error
    finally:
        log.setLevel(level)
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the folders of this machine
    return model
