"""`kernels` under the name of its distribution: `import fused_i2i` gives the same modules and objects.

Another distribution on the package index, Hugging Face's `kernels`, owns that import name too. Code that may run beside
it says `fused_i2i` and learns here, in one sentence, when the other one is what `import kernels` found.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Alias(MetaPathFinder, Loader):
    """Finds `fused_i2i.norm` as `kernels.norm`, the module itself: a copy would register every operator twice."""

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname.startswith("fused_i2i.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module("kernels" + spec.name.removeprefix("fused_i2i"))
        spec.loader_state = module.__spec__  # the import system is about to replace it
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = module.__spec__.loader_state


kernels = importlib.import_module("kernels")
if not hasattr(kernels, "fuse"):
    raise ImportError(
        f"fused_i2i: `import kernels` found {getattr(kernels, '__file__', kernels)}, a package of another distribution "
        "(pip uninstall kernels), want the one of fused-i2i-kernels"
    )
sys.meta_path.insert(0, _Alias())
sys.modules[__name__] = kernels
