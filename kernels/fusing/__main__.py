"""python -m kernels.fusing my_package.networks:make_generator [--input 1,3,256,256]

What `kernels.accelerate` would do to a model, and what it gains there: nothing is kept.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from typing import Any

import torch
from torch import nn

from kernels import _commands
from kernels.fusing.accelerating import accelerate
from kernels.fusing.gain import measured

_WHAT = "What kernels.accelerate would do to a model, and what it gains there. Nothing is kept."


class _Wrong(Exception):
    """What the user gave cannot be used; the text says why."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.fusing", description=_WHAT)
    parser.add_argument(
        "model", metavar="MODULE:FACTORY", help="a module of Python or a .py file, and what in it makes the model"
    )
    parser.add_argument(
        "--input",
        action="append",
        type=_shape,
        default=[],
        metavar="N,C,H,W",
        help="shape of an input, once for each argument of forward: measures a step with gradients, before and after",
    )
    parser.add_argument("--precision", choices=("bfloat16",), help="as in kernels.accelerate")
    parser.add_argument("--contiguous", action="store_true", help="leave the weights in the order they have")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")
    options = parser.parse_args()
    try:
        model = _made(options.model).to(_device(options.device))
        settings = {"precision": options.precision, "channels_last": False if options.contiguous else None}
        lines = measured(model, options.input, settings) if options.input else []
        print(accelerate(model, **settings).fuse_report)
        for line in lines:
            print(line)
    except (_Wrong, ValueError, TypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, want whole numbers with commas, such as 1,3,256,256") from None
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, want sizes of 1 and more")
    return shape


def _device(name: str) -> torch.device:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise _Wrong(f"--device: got {name!r}, want cpu or cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise _Wrong("--device cuda: torch sees no CUDA device")
    return torch.device(name)


def _made(where: str) -> nn.Module:
    path, colon, name = where.rpartition(":")
    if not colon or not path or not name:
        raise _Wrong(f"MODULE:FACTORY: got {where!r}, want such as my_package.networks:make_generator")
    factory: Any = _imported(path)
    for part in name.split("."):
        if not hasattr(factory, part):
            raise _Wrong(f"MODULE:FACTORY: {path} has no {name}")
        factory = getattr(factory, part)
    model = factory if isinstance(factory, nn.Module) else factory() if callable(factory) else factory
    if not isinstance(model, nn.Module):
        raise _Wrong(f"MODULE:FACTORY: {where} gives a {type(model).__name__}, want a torch.nn.Module")
    return model


def _imported(path: str) -> Any:
    if not path.endswith(".py"):
        try:
            return importlib.import_module(path)
        except ModuleNotFoundError as error:
            if error.name is None or not (path == error.name or path.startswith(error.name + ".")):
                raise  # something that the module itself wants
            raise _Wrong(f"MODULE:FACTORY: there is no module {path} here or among the installed ones") from None
    if not os.path.isfile(path):
        raise _Wrong(f"MODULE:FACTORY: there is no file {path}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))  # it may import what lies beside it
    spec = importlib.util.spec_from_file_location(os.path.splitext(os.path.basename(path))[0], path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.exit(_commands.run(main))
