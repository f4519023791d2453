"""Labels of images: which attributes there are, and which of their combinations make sense."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from i2i.config import suggestion
from i2i.errors import UsageError

Label = tuple[int, ...]  # 0 or 1 for every attribute


class LabelSpace:
    """Vectors of 0 and 1 over `names`.

    exclusive: groups of names, each written "A+B+C", of which an image has at most one; names that are not among
    `names` are passed over. classes: an image has exactly one of all names.
    """

    def __init__(self, names: Sequence[str], exclusive: Sequence[str] = (), classes: bool = False):
        self.names, self.classes = tuple(names), classes
        if not self.names or len(set(self.names)) < len(self.names):
            raise UsageError(f"selected_attrs must be names, each once, got {', '.join(self.names) or 'none'}")
        groups = ["+".join(self.names)] if classes else exclusive
        self.groups = [[self.names.index(name) for name in group.split("+") if name in self.names] for group in groups]

    @property
    def vectors(self) -> list[Label]:
        """All labels that make sense, in the order of itertools.product."""
        return [vector for vector in product((0, 1), repeat=len(self.names)) if self.makes_sense(vector)]

    def makes_sense(self, vector: Sequence[int]) -> bool:
        return sum(vector) >= self.classes and all(sum(vector[i] for i in group) <= 1 for group in self.groups)

    def parse(self, text: str) -> Label:
        """The label that `text` writes down: the names that are 1, or a value for every name, separated by commas.

        UsageError: neither of these, or a label that makes no sense.
        """
        words = [word.strip() for word in text.split(",")]
        if len(words) == len(self.names) and set(words) <= {"0", "1"}:
            label = tuple(int(word) for word in words)
        else:
            for word in words:
                if word not in self.names:
                    raise UsageError(
                        f"label must be names among {', '.join(self.names)}, or a 0 or 1 for each of these "
                        f"{len(self.names)}, got {text}{suggestion(word, self.names)}"
                    )
            label = tuple(int(name in words) for name in self.names)
        if not self.makes_sense(label):
            group = next(group for group in self.groups if self.classes or sum(label[i] for i in group) > 1)
            rivals = ", ".join(self.names[i] for i in group)
            raise UsageError(f"label must have {'exactly' if self.classes else 'at most'} one of {rivals}, got {text}")
        return label

    def edits(self, labels: Tensor) -> dict[str, Tensor]:
        """By name, `labels` (N, len(names)) with that attribute turned over; one of a group is put in the place of the
        others of the group instead."""
        edited = {}
        for i, name in enumerate(self.names):
            new = labels.clone()
            rivals = sorted({rival for group in self.groups if i in group for rival in group})
            if rivals:
                new[:, rivals] = 0
                new[:, i] = 1
            else:
                new[:, i] = 1 - new[:, i]
            edited[name] = new
        return edited

    def table(self) -> Tensor:
        """`vectors` as (V, len(names)) float32."""
        return torch.tensor(self.vectors, dtype=torch.float32)
