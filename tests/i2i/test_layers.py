"""What may import what in i2i, and that loading weights imports little."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import i2i
from i2i.networks import ResnetGenerator
from i2i.training import loop

ROOT = Path(__file__).parents[2]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / "i2i").rglob("*.py")}
# The packages of i2i, each with those that it may import besides itself. Modules at the top are for all.
MAY_IMPORT = {
    "data": set(),
    "networks": {"data"},
    "methods": {"networks", "data"},
    "inference": {"networks", "data"},
    "training": {"inference", "methods", "networks", "data"},
    "cli": {"training", "inference", "methods", "networks", "data"},
}
TOP = {"config", "devices", "distributed", "errors", "files", "graphs", "multi_tensor"}


def imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path: Path) -> set[str]:
    """The packages and top modules of i2i that a file imports."""
    parts = (name.split(".") for name in imports(path))
    return {name[1] for name in parts if name[0] == "i2i" and len(name) > 1}


def test_the_top_holds_what_all_share():
    folders = {name.split(".")[1] for name in MODULES if name.count(".") > 1}
    assert folders == set(MAY_IMPORT)
    assert {path.stem for path in (ROOT / "i2i").glob("*.py")} == TOP | {"__init__", "__main__"}


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_downwards(package):
    allowed = MAY_IMPORT[package] | TOP | {package}
    wrong = {str(path): packages(path) - allowed for path in (ROOT / "i2i" / package).rglob("*.py")}
    assert wrong and not {path: names for path, names in wrong.items() if names}


@pytest.mark.parametrize("module", sorted(TOP))
def test_modules_at_the_top_import_no_package(module):
    assert packages(ROOT / "i2i" / f"{module}.py") <= TOP


def test_argparse_is_for_the_command_line():
    users = {name for name, path in MODULES.items() if any(word.split(".")[0] == "argparse" for word in imports(path))}
    assert users and all(name.startswith("i2i.cli.") for name in users)


LOAD = """
import sys
from i2i import load
load("latest_net_G.pth")
names = [name for name in sys.modules if name.startswith("i2i.") or name in ("matplotlib", "yaml")]
print(*names)
"""


def test_loading_weights_imports_neither_systems_nor_trainer(tmp_path, forked):
    torch.save(ResnetGenerator(ngf=2, n_blocks=1).state_dict(), tmp_path / "latest_net_G.pth")
    names = forked(LOAD, tmp_path).stdout.split()
    assert "i2i.inference.weights" in names and "i2i.networks.resnet" in names
    heavy = ("i2i.methods", "i2i.training", "i2i.cli", "matplotlib", "yaml")
    assert not [name for name in names if name.startswith(heavy)]


def test_train_is_the_function():
    assert i2i.train is loop.train and "i2i.train" not in MODULES
    assert {"METHODS", "Method", "load", "train"} <= set(dir(i2i))
    with pytest.raises(AttributeError, match="module 'i2i' has no attribute 'trian'"):
        _ = i2i.trian
