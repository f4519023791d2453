"""What the keys of a state dict tell of its network: for the recognisers (see recognise.py)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from i2i.errors import UsageError

State = Mapping[str, Tensor]
Settings = Mapping[str, Any]  # what a checkpoint of ours says beside its weights, {} for a published file
Recognised = tuple[nn.Module, str]  # a network, and what it is in one sentence


def indices(state: State, pattern: str) -> list[int]:
    """What the group of `pattern` holds at the start of keys, each once, ascending."""
    return sorted({int(match[1]) for key in state if (match := re.match(pattern, key))})


def norm_behind(state: State, convolution: str, norm: str) -> str:
    """The norm behind a convolution, from their keys: a published convolution has a bias before instance norm only."""
    biased, affine = f"{convolution}.bias" in state, f"{norm}.weight" in state
    if biased and affine:
        raise UsageError(
            f"{norm}.weight beside {convolution}.bias means instance norms with weights of their own, which the "
            "published code had only in early 2017; such networks are not supported"
        )
    return "instance" if biased else "batch" if affine else "none"


def norm_name(norm: str) -> str:
    return "no norm" if norm == "none" else f"{norm} norm"
