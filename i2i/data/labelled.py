"""Which labelled images a run is shown when: all of them in turn, or by class and few of them with their label."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from i2i import distributed
from i2i.data.attributes import (
    PARTITION,
    Entries,
    LabelledPictures,
    find_attributes,
    find_classes,
    open_entries,
    split_official,
    split_published,
)
from i2i.data.labels import Label, LabelSpace
from i2i.data.listing import tell
from i2i.data.samples.attributes import SampleAttributes
from i2i.errors import UsageError

LABELLED_MODES = ("attributes", "few_labels")
# A batch of FewLabels: this many classes (labels that make sense), each of as many images, as MatchGAN wants them.
GROUP = 4
BATCH = GROUP * GROUP


class Shown(Protocol):
    """Labelled images."""

    @property
    def labels(self) -> Sequence[Label]: ...

    def image(self, index: int, rng: np.random.Generator | None) -> Tensor:
        """Image `index`, (C, H, W) in [-1, 1]; with a generator, changed at random as training wants it."""
        ...


class Source(Shown, Protocol):
    """Where labelled images come from."""

    def describe(self) -> str: ...


class InTurn:
    """(image, label) of all images, every pass in a new order. `test`: what to look at."""

    def __init__(self, source: Source, test: Shown, seed: int):
        self.source, self.test, self.seed = source, test, seed

    def __len__(self) -> int:
        return len(self.source.labels)

    def describe(self) -> str:
        return self.source.describe()

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """(C, H, W) in [-1, 1], (attributes,) of 0 and 1, float32."""
        index = index_in_turn(number, len(self), self.seed, 0)
        image = self.source.image(index, np.random.default_rng([self.seed, 1, number]))
        return image, torch.tensor(self.source.labels[index], dtype=torch.float32)

    def preview(self, count: int) -> tuple[Tensor, Tensor]:
        if self.test is not self.source:
            try:
                return sheet(self.test, count)
            except (UsageError, OSError) as error:  # pictures to look at are not worth a run
                tell(f"\npictures of the run are of training images from now on: {error}")
                self.test = self.source
        return sheet(self.source, count)

    @property
    def held_out(self) -> Callable[..., float]:
        # Only sample images have it, and the trainer asks whether it is there.
        return self.source.held_out  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def metric(self) -> str:
        return self.source.metric  # pyright: ignore[reportAttributeAccessIssue]


def sheet(source: Shown, count: int) -> tuple[Tensor, Tensor]:
    shown = range(min(count, len(source.labels)))
    images = torch.stack([source.image(index, None) for index in shown])
    return images, torch.tensor([source.labels[index] for index in shown], dtype=torch.float32)


class FewLabels(InTurn):
    """Batches of MatchGAN, GROUP classes of GROUP images; all other batches without labels, unless all have one.

    Only images whose label makes sense are used. Labels are known for `percentage` of them: taken round the classes,
    one image each, until that is reached. A class of fewer than GROUP known images shows some of them twice (the
    published code fails there). Classes take turns, and as published they do in batches without labels, too.
    per_step: images of one step, of all processes.
    """

    def __init__(self, source: Source, test: Shown, space: LabelSpace, percentage: float, per_step: int, seed: int):
        super().__init__(source, test, seed)
        self.per_step, self.everything = per_step, percentage == 100
        members: dict[Label, list[int]] = {vector: [] for vector in space.vectors}
        for index, label in enumerate(source.labels):
            if label in members:
                members[label].append(index)
        usable = {index for indices in members.values() for index in indices}
        self.total = len(usable)
        self.known = choose_labelled(list(members.values()), self.total * percentage / 100)
        self.count = sum(map(len, self.known))
        self.others = sorted(usable.difference(*self.known))
        if len(self.known) < GROUP:
            raise UsageError(
                f"labelled_percentage must leave {GROUP} classes or more with a known image, got {percentage}: "
                f"{len(self.known)} of {len(members)} classes among {self.total} images"
            )
        if not self.everything and not self.others:
            raise UsageError(
                f"labelled_percentage must be 100 when all {self.total} labels are known, got {percentage}"
            )

    def __len__(self) -> int:
        return self.total

    def describe(self) -> str:
        return f"{super().describe()}, {self.count} with their label, in {len(self.known)} classes"

    def item(self, number: int) -> tuple[Tensor, Tensor]:
        """As InTurn; without a label its values are not numbers, and the image is not mirrored."""
        step, place = divmod(number, self.per_step)
        if not self.everything and step % 2:
            other = index_in_turn(step // 2 * self.per_step + place, len(self.others), self.seed, 2)
            index = self.others[other]
            return self.source.image(index, None), torch.full((len(self.source.labels[index]),), torch.nan)
        batch, place = divmod(number, BATCH)
        passes, group = divmod(batch, len(self.known) // GROUP)
        order = permutation(len(self.known), self.seed, 3, passes)
        chosen = int(order[GROUP * group + place // GROUP])
        mine = self.known[chosen]
        index = mine[index_in_turn(GROUP * passes + place % GROUP, len(mine), self.seed, 4, chosen)]
        image = self.source.image(index, np.random.default_rng([self.seed, 1, number]))
        return image, torch.tensor(self.source.labels[index], dtype=torch.float32)


def choose_labelled(classes: Sequence[Sequence[int]], wanted: float) -> list[list[int]]:
    """`wanted` or just more of the images, taken round the classes one by one; those of a class together, classes of
    which there is none left out."""
    longest = max(map(len, classes))
    rounds = [
        (place, images[row]) for row in range(longest) for place, images in enumerate(classes) if row < len(images)
    ]
    taken: list[list[int]] = [[] for _ in classes]
    for place, index in rounds[: math.ceil(wanted)]:
        taken[place].append(index)
    return [images for images in taken if images]


def index_in_turn(number: int, count: int, *key: int) -> int:
    """Which of `count` comes at turn `number`: all of them, again and again, every time in a new order."""
    passes, place = divmod(number, count)
    return int(permutation(count, *key, passes)[place])


@lru_cache(maxsize=64)  # of 200,000 images it takes milliseconds, and every image of a pass asks
def permutation(count: int, *key: int) -> np.ndarray:
    return np.random.default_rng(key).permutation(count)


def open_labelled(config: Any) -> InTurn:
    """What a run is trained on whose dataset_mode is one of LABELLED_MODES; `config`: a StarGANConfig. Without
    `config.data`, sample photographs."""
    space = config.label_space()
    source, test = open_pictures(config, space) if config.data else open_samples(config, space)
    if config.dataset_mode == "attributes":
        return InTurn(source, test, config.seed)
    per_step = config.batch_size * distributed.world()
    return FewLabels(source, test, space, config.labelled_percentage, per_step, config.seed)


def open_samples(config: Any, space: LabelSpace) -> tuple[Source, Shown]:
    source = SampleAttributes(config.crop_size, config.flip, config.seed)
    if space.vectors != source.space.vectors or config.input_nc != 3:
        attributes = f"selected_attrs {','.join(source.space.names)}"
        raise UsageError(f"the sample photographs are for {attributes} and input_nc 3; name your own with --data")
    return source, source.test


def open_pictures(config: Any, space: LabelSpace) -> tuple[Source, Shown]:
    """(training, test). With few labels CelebA's official partition where its file is there, as MatchGAN takes it."""
    if config.label_kind == "classes":
        parts = find_classes(config.data, space.names)
    else:
        table, entries = find_attributes(config.data, space.names)
        partition = table.with_name(PARTITION)
        if config.dataset_mode == "few_labels" and partition.is_file():
            parts = split_official(entries, partition)
        else:
            parts = split_published(entries, config.test_images)
    shape = (config.center_crop, config.crop_size, config.input_nc, config.flip)
    place = Path(config.data[0])

    def opened(part: Entries) -> LabelledPictures:
        limited = part[: config.max_dataset_size or None]
        entries, pages = open_entries(place, limited, config.input_nc, config.pages)
        return LabelledPictures(entries, *shape, pages)

    train, test = parts
    source = opened(train)
    if not test:
        tell("pictures of the run are of training images: none are held out")
    if not test or test == train:
        return source, source
    try:
        return source, opened(test)
    except UsageError as error:
        tell(f"pictures of the run are of training images: {error}")
        return source, source
