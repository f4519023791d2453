"""Images in files -> batches of tensors, for every published layout of data sets."""

from i2i.data.folders import Folder, list_images
from i2i.data.images import EXTENSIONS, Picture, inspect_image, read_image, to_tensor
from i2i.data.layouts import Aligned, Dataset, SingleFolder, SingleImage, Unaligned
from i2i.data.loader import batches
from i2i.data.opening import DATASET_MODES, open_dataset, open_training_data
from i2i.data.preprocess import MODES as PREPROCESS_MODES
from i2i.data.preprocess import ImageOptions, preprocess, resize

__all__ = [
    "DATASET_MODES",
    "EXTENSIONS",
    "PREPROCESS_MODES",
    "Aligned",
    "Dataset",
    "Folder",
    "ImageOptions",
    "Picture",
    "SingleFolder",
    "SingleImage",
    "Unaligned",
    "batches",
    "inspect_image",
    "list_images",
    "open_dataset",
    "open_training_data",
    "preprocess",
    "read_image",
    "resize",
    "to_tensor",
]
