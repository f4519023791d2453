"""What runs in a training step, to find maps that leave their memory format."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kernels._layout import is_channels_last


class Profiler(TorchDispatchMode):
    """Every operator that runs, forward and backward, with the memory format of the maps it takes and makes.

    No map may have as many rows as channels: then a permutation would look like a copy.
    """

    def __init__(self):
        super().__init__()
        self.operators, self.maps, self.channels_last, self.reordered = 0, 0, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.removeprefix("aten::")
        self.operators += 1
        given = [t for t in args if self.is_map(t)]
        made = [t for t in (result if isinstance(result, (tuple, list)) else [result]) if self.is_map(t)]
        self.maps += len(made)
        self.channels_last += sum(map(is_channels_last, made))
        for t in made:
            source = given[-1] if name == "copy_" else given[0] if given else None
            if source is not None and source.shape == t.shape and is_channels_last(source) != is_channels_last(t):
                self.reordered.append((name, tuple(t.shape)))
        return result

    def mostly(self, form: torch.memory_format) -> bool:
        """Whether maps were made in this format: none channels last, or four of five. (CUT asks a network of one
        channel, which is always contiguous, for the sizes of its maps.)"""
        return self.channels_last > 0.8 * self.maps if form == torch.channels_last else self.channels_last == 0

    @staticmethod
    def is_map(t: object) -> bool:
        if not isinstance(t, torch.Tensor) or t.dim() != 4 or 0 in t.stride():  # an expanded scalar has no format
            return False
        return t.shape[1] > 1 and t.shape[2] * t.shape[3] > 1
