"""Which packages are installed; everything else is in pyproject.toml.

An install takes seconds and compiles nothing: the C++ operators are built at first use, against the torch that is
installed. Building them here would mean either a second torch in pip's isolated build environment (several GB) or an
install that fails where there is no compiler. Their sources, the folder csrc, travel as the package kernels._csrc.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["kernels*", "i2i*", "fused_i2i*"]), "kernels._csrc"],
    package_dir={"kernels._csrc": "csrc"},
    package_data={
        "kernels": ["py.typed"],
        "i2i": ["py.typed"],
        "fused_i2i": ["py.typed"],
        "kernels._csrc": ["cpu/*/*.h", "cpu/*/*.cpp", "cuda/*.cpp", "cuda/*/*.h", "cuda/*/*.cuh"],
    },
)
