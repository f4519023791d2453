"""From what a user names to a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

from i2i.config import Config, suggestion
from i2i.data.folders import TEST_PHASES, Folder, find_domains, find_pairs, list_images
from i2i.data.labelled import LABELLED_MODES, open_labelled
from i2i.data.layouts import Aligned, Dataset, Layout, SingleFolder, SingleImage, Unaligned
from i2i.data.listing import tell
from i2i.data.preprocess import ImageOptions
from i2i.data.samples.photographs import SamplePhotographs
from i2i.data.sizes import check_sizes
from i2i.errors import UsageError

DATASET_MODES = ("unaligned", "aligned", "single", "singleimage")


def open_dataset(
    mode: str,
    data: Sequence[str],
    *,
    phase: str = "train",
    options: ImageOptions | None = None,
    batch_size: int = 1,
) -> Layout:
    """The data set of one of DATASET_MODES.

    `data`: one folder or two; wherever a folder of images is meant, a text file with a path per line or a single
    picture will do. `phase`: the folders of a root to take (<phase>A and <phase>B, or <phase>); in any but "train",
    images come in the order of their names, not mirrored, loaded at crop_size. `batch_size` matters to singleimage.
    """
    if mode not in DATASET_MODES:
        known = ", ".join(DATASET_MODES)
        raise UsageError(f"dataset_mode must be one of {known}; got {mode}{suggestion(mode, DATASET_MODES)}")
    options = options or ImageOptions()
    training = phase == "train"
    if not training:
        options = options.at_test()
    if mode == "single":
        if len(data) != 1:
            raise UsageError(f"data must be one folder for dataset_mode single, got {len(data)}")
        return SingleFolder(list_images(data[0], options.pages), options)
    if mode == "singleimage":
        folders = open_folders(find_domains(data, phase), options)
        if training:
            return SingleImage(folders, options, batch_size)
        return SingleImage(folders, replace(options, preprocess="none"), crops=1)
    find, kind = (find_pairs, Aligned) if mode == "aligned" else (find_domains, Unaligned)
    places = find(data, phase)
    dataset = kind(open_folders(places, options), options)
    if training:
        try:
            shown = find(data, "test")
            if shown != places:
                dataset.test = kind(open_folders(shown, options), options.for_preview())
        except (UsageError, OSError) as error:
            # The sheets of the run are then of training images. Without any folder for them, nothing else is expected.
            if any(Path(data[0], name + side).is_dir() for name in TEST_PHASES for side in ("", "A", "B")):
                tell(f"pictures of the run are of training images: {error}")
    return dataset


def open_folders(places: Sequence[Path], options: ImageOptions) -> list[Folder]:
    """In the order of translation: what direction BtoA calls A is B's folder."""
    return [list_images(place, options.pages) for place in (places[::-1] if options.direction == "BtoA" else places)]


def open_training_data(config: Config) -> Dataset:
    """What a run is trained on; without `config.data`, sample photographs."""
    if config.dataset_mode in LABELLED_MODES:
        return open_labelled(config)
    if config.data:
        options = ImageOptions(**{field.name: getattr(config, field.name) for field in fields(ImageOptions)})
        dataset = open_dataset(config.dataset_mode, config.data, options=options, batch_size=config.batch_size)
        check_sizes(dataset.sides(), options, config)
        return dataset
    if (config.input_nc, config.output_nc, config.direction) != (3, 3, "AtoB"):
        raise UsageError("the sample photographs are for input_nc 3, output_nc 3 and direction AtoB only")
    return SamplePhotographs(config.crop_size, config.flip, config.seed, config.dataset_mode)
