"""Installs in seconds, compiles nothing: the C++ operators are built at first use, against the torch that is installed.

Building them here would mean either a second torch in pip's isolated build environment (several GB) or an install that
fails where there is no compiler.
"""

from pathlib import Path

from setuptools import setup

setup(
    name="fused-i2i-kernels",
    version="0.1.0",
    description="Fused instance norm, AdaIN and contrastive operators for image-to-image training, on CPU and GPU",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        "kernels",
        *(f"kernels.{room}" for room in ("norm", "nce", "patches", "resample", "sinkhorn")),
        "i2i",
        *(f"i2i.{part}" for part in ("data", "methods", "networks")),
        "benchmarks",
    ],
    install_requires=["torch>=2.11", "numpy", "ninja", "pillow", "matplotlib", "pyyaml"],
    extras_require={
        "samples": ["scikit-image"],
        "tiff": ["tifffile", "imagecodecs"],  # several channels of 16 bits, read and written, and compressed TIFFs
        "safetensors": ["safetensors"],  # weights in that format, read
        "export": ["onnx", "onnxscript", "onnxruntime"],
        "evaluate": ["torch-fidelity", "scikit-image"],
        "bench": ["pytest", "pytest-benchmark"],
        "tensorboard": ["tensorboard"],
        "test": [
            "pytest",
            "pytest-benchmark",
            "pytest-timeout",
            "scikit-image",
            "tensorboard",
            "tifffile",
            "imagecodecs",
            "safetensors",
            "onnx",
            "onnxscript",
            "onnxruntime",
            "triton; platform_system=='Linux'",
        ],
        "dev": ["ruff"],
    },
    entry_points={
        "console_scripts": [
            "i2i = i2i.__main__:main",
            "kernels-report = kernels.backends:main",
            "kernels-bench = benchmarks.__main__:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: C++",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
