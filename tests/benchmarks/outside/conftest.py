"""Checkouts are imported in this process, whose modules and paths are put back after each test."""

import sys

import pytest
import torch


@pytest.fixture(autouse=True)
def put_back():
    """Of a checkout nothing stays: the next one has modules of the same names."""
    paths, finders, modules = list(sys.path), list(sys.meta_path), set(sys.modules)
    tensor_cuda, module_cuda = torch.Tensor.cuda, torch.nn.Module.cuda
    yield
    sys.path[:], sys.meta_path[:] = paths, finders
    torch.Tensor.cuda, torch.nn.Module.cuda = tensor_cuda, module_cuda
    theirs = ("models", "options", "trainer", "networks", "utils", "solver", "model", "monai")
    stand_ins = ("dominate", "torchvision", "torch.utils.serialization")
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in (*theirs, "dominate", "torchvision") or name in stand_ins:
            del sys.modules[name]
