"""Modules of a checkout that nobody here wrote, imported as they are, whatever else they would need installed."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from i2i.errors import UsageError

# What the published trainers import at their top and their training step does not use: web pages, plots, logs, weights
# in torch 0.x's file format, picture transforms of the data loader.
UNUSED = (
    "dominate",
    "visdom",
    "wandb",
    "GPUtil",
    "munch",
    "tensorboardX",
    "tensorflow",
    "torchfile",
    "torchvision",
    "scipy",
    "requests",
    "bs4",
    "packaging",
    "torch.utils.serialization",
)


def check(option: str, folder: Path, title: str, needed: Sequence[str]) -> None:
    """UsageError, in a sentence, where `folder` is no checkout that has the `needed` files."""
    if not folder.is_dir():
        raise UsageError(f"{option}: {folder} is no folder; wanted a checkout of {title}")
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{option}: {folder} is no checkout of {title}: it has no {' and no '.join(missing)}")


def enter(folder: str) -> None:
    """The modules of the checkout can be imported from now on, before all others; stand-ins take the places of those of
    UNUSED that are not installed. For a process that imports no other checkout: their modules have the same names."""
    sys.path.insert(0, folder)
    if not any(isinstance(finder, StandIns) for finder in sys.meta_path):
        sys.meta_path.append(StandIns())


def without_cuda_calls() -> None:
    """On a CPU `.cuda()` of tensors and modules does nothing: some trainers call it without asking."""
    torch.Tensor.cuda = lambda self, *args, **options: self
    torch.nn.Module.cuda = lambda self, *args, **options: self


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Asked last, when nothing is installed by the name."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if not any(name == unused or name.startswith(unused + ".") for unused in UNUSED):
            return None
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class Absent(type):
    """A class with every attribute one can ask for, each of them such a class; it cannot be called."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{cls.__name__}.{name}", (), {})

    def __call__(cls, *args: object, **options: object) -> Any:
        raise ImportError(f"{cls.__name__} was called, but it is not installed and was only thought to be imported")


class StandIn(types.ModuleType):
    """A module that is not installed and not used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}", (), {})
