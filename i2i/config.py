"""What determines a training run. Each method's file extends these dataclasses with its own fields and defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

from i2i.errors import UsageError

GAN_MODES = ("lsgan", "vanilla", "nonsaturating", "wgangp", "hinge")
PRECISIONS = ("float32", "bfloat16", "float16")
LR_POLICIES = ("linear", "step", "plateau", "cosine")
C = TypeVar("C", bound="Config")


def setting(default: Any, help: str) -> Any:
    """A field of a configuration, with what `i2i train --help` says of it."""
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    """Common to every method. Fields carry the names of the published options where those have one."""

    # data
    data: tuple[str, ...] = setting(
        (), "a folder with trainA and trainB, or two folders; empty: sample photographs (published: dataroot)"
    )
    dataset_mode: str = setting(
        "unaligned", "unaligned; aligned: A and B side by side in one picture; singleimage: one picture of each"
    )
    direction: str = setting("AtoB", "AtoB translates A to B, BtoA B to A")
    preprocess: str = setting(
        "resize_and_crop",
        "resize_and_crop, crop, scale_width or scale_shortside (these two also with _and_crop), none, zoom, ...",
    )
    load_size: int = setting(286, "pixels: images are scaled to this size first")
    crop_size: int = setting(256, "pixels: side of the random square that is cut out and trained on")
    flip: bool = setting(True, "mirror half of the images (published: no_flip)")
    input_nc: int = setting(3, "channels of the images of A, 1 to 4")
    output_nc: int = setting(3, "channels of the images of B, 1 to 4")
    serial_batches: bool = setting(False, "take images in the order of their names, not in a random one")
    max_dataset_size: int = setting(0, "images used of each folder; 0: all")
    pages: str = setting(
        "refuse", "of files with several pictures (multi-page TIFF, animated GIF): refuse, first or all of them"
    )
    num_threads: int = setting(4, "threads that read images; 0 counts as 1")
    batch_size: int = setting(1, "images per step and process")
    init_from: tuple[str, ...] = setting(
        (), "start from the weights of a run, of published files or of a folder of such files"
    )
    # optimisation
    lr: float = setting(2e-4, "learning rate of Adam at the start")
    beta1: float = setting(0.5, "decay of Adam's mean of gradients")
    beta2: float = setting(0.999, "decay of Adam's mean of squared gradients")
    lr_policy: str = setting("linear", "how the learning rate falls, epoch by epoch: linear, step, plateau or cosine")
    n_epochs: int = setting(200, "epochs at the full learning rate")
    n_epochs_decay: int = setting(200, "epochs during which the learning rate falls")
    lr_decay_iters: int = setting(50, "epochs between two steps of lr_policy=step")
    steps: int = setting(0, "end the run after this many updates, whatever the epochs; 0: after all epochs")
    seed: int = setting(0, "of the weights at the start, the order of images and everything else drawn at random")
    precision: str = setting(
        "float32", "float32, bfloat16 or float16 for convolutions and feature maps; weights and losses stay float32"
    )
    ema: float = setting(0.0, "decay per step of a moving average of the generators' weights; 0: no average")
    cuda_graphs: bool = setting(
        True, "on CUDA, record the device's part of a step and replay it; false: launch it one by one, step by step"
    )
    # bookkeeping
    save_every: int = setting(1000, "steps between checkpoints (published: save_latest_freq)")
    sample_every: int = setting(1000, "steps between sheets of pictures (published: display_freq)")
    keep_every: int = setting(
        5, "epochs between weight files that later ones do not replace (published: save_epoch_freq)"
    )
    tensorboard: bool = setting(False, "write losses to <output>/tensorboard as well")

    # (A, B); of labelled images StarGAN makes another choice.
    DATASET_MODES: ClassVar[tuple[str, ...]] = ("unaligned", "aligned", "singleimage")

    # What the run on sample photographs changes: about a minute on two CPU cores.
    SAMPLE: ClassVar[dict[str, Any]] = {
        "crop_size": 64,
        "n_epochs": 10,
        "n_epochs_decay": 10,
        "save_every": 200,
        "sample_every": 200,
    }

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name, value in asdict(self).items():
            setattr(self, name, convert(name, value, hints[name]))
        self.at_least(1, "load_size", "crop_size", "batch_size", "input_nc", "output_nc")
        self.at_least(1, "save_every", "sample_every", "keep_every", "lr_decay_iters")
        self.at_least(0, "steps", "seed", "n_epochs", "n_epochs_decay", "max_dataset_size", "num_threads")
        self.require(self.n_epochs + self.n_epochs_decay > 0, "n_epochs", "above 0 when n_epochs_decay is 0")
        self.require(self.lr > 0, "lr", "above 0")
        for name in ("beta1", "beta2", "ema"):
            self.require(0 <= getattr(self, name) < 1, name, "in [0, 1)")
        self.one_of("dataset_mode", self.DATASET_MODES)
        self.one_of("precision", PRECISIONS)
        self.one_of("lr_policy", LR_POLICIES)
        self.one_of("direction", ("AtoB", "BtoA"))
        self.require(len(self.data) <= 2, "data", "one folder with trainA and trainB, or two folders")

    def check_image(self, width: int, height: int) -> None:
        """UsageError, with the reason, where images of so many pixels, as `preprocess` leaves them, cannot be trained
        on. (Images of crop_size each way can: that is looked after when the configuration is made.)"""

    @property
    def one_size(self) -> bool:
        """Whether images of A and of B must all have the same size."""
        return False

    def require(self, right: bool, name: str, wanted: str) -> None:
        if not right:
            raise UsageError(f"{name} must be {wanted}, got {getattr(self, name)}")

    def at_least(self, least: int, *names: str) -> None:
        for name in names:
            self.require(getattr(self, name) >= least, name, "0 or more" if least == 0 else f"at least {least}")

    def one_of(self, name: str, choices: Iterable[str]) -> None:
        self.require(getattr(self, name) in choices, name, f"one of {', '.join(choices)}")

    @classmethod
    def help_of(cls, name: str) -> str:
        """Of a field: its own help, or that of the class which it takes the field from with another default."""
        found = (vars(part).get("__dataclass_fields__", {}).get(name) for part in cls.__mro__)
        return next((each.metadata["help"] for each in found if each and each.metadata.get("help")), "")

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        known = [f.name for f in fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"unknown option: {name}{suggestion(name, known)}")
        return cls(**values)


@dataclass
class NetworkConfig(Config):
    """The networks of the CUT and CycleGAN repositories (their options netG, netD, normG, no_dropout, ...)."""

    generator: str = setting("resnet_9blocks", "resnet_<n>blocks, unet_<n> or stylegan2 (published: netG)")
    discriminator: str = setting("basic", "basic, n_layers, pixel or stylegan2 (published: netD)")
    ngf: int = setting(64, "channels of the generator's first layer")
    ndf: int = setting(64, "channels of the discriminator's first layer")
    n_layers_d: int = setting(3, "strided convolutions of discriminator=n_layers")
    norm: str = setting("instance", "instance, batch or none, in both networks (published: normG, normD)")
    dropout: bool = setting(False, "dropout of 0.5 in the generator (published: no_dropout)")
    init_type: str = setting(
        "normal", "distribution of the weights at the start: normal, xavier, kaiming or orthogonal"
    )
    init_gain: float = setting(0.02, "scale of the weights at the start; kaiming takes it for batch norms only")
    gan_mode: str = setting("lsgan", "lsgan, vanilla, nonsaturating, wgangp (with gradient penalty) or hinge")

    # The moving average, because the networks of so small a game go around each other (see CUTConfig).
    SAMPLE: ClassVar[dict[str, Any]] = Config.SAMPLE | {
        "generator": "resnet_6blocks",
        "ngf": 16,
        "ndf": 16,
        "ema": 0.99,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(1, "ngf", "ndf", "n_layers_d")
        self.one_of("norm", ("instance", "batch", "none"))
        self.one_of("init_type", ("normal", "xavier", "kaiming", "orthogonal"))
        self.one_of("gan_mode", GAN_MODES)

    def check_image(self, width: int, height: int) -> None:
        layers = {"basic": 3, "n_layers": self.n_layers_d}.get(self.discriminator, 0)
        least = max(8, 3 * 2**layers if layers else 0)  # 8: of a ResNet, whose maps of a quarter are padded
        if min(width, height) < least:
            raise UsageError(f"too small for discriminator={self.discriminator}, which judges {least} pixels and more")
        size = min(self.load_size, self.crop_size)
        if self.discriminator == "stylegan2" and (width, height) != (size, size):
            raise UsageError(f"not of {size} x {size}, the one size that discriminator=stylegan2 judges")
        multiple = int(self.generator[5:]) if self.generator.startswith("unet_") else 4
        if width % multiple or height % multiple:
            raise UsageError(f"no multiples of {multiple}, as generator={self.generator} needs them")

    @property
    def one_size(self) -> bool:
        return self.gan_mode == "wgangp"  # whose penalty mixes real and translated images


def convert(name: str, value: Any, kind: Any) -> Any:
    """`value`, perhaps written as text, as the field `name` of type `kind` wants it."""
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise UsageError(f"{name} must be values separated by commas, got {value!r}")
        inner = get_args(kind)[0]
        return tuple(convert(name, part.strip() if isinstance(part, str) else part, inner) for part in parts)
    if kind is bool and isinstance(value, str):
        word = value.lower()
        if word not in WORDS:
            raise UsageError(f"{name} must be true or false, got {value!r}")
        return WORDS[word]
    if kind in (int, float) and not isinstance(value, bool):
        try:
            number = kind(value)
            if number == float(value):  # int(2.5) would be 2
                return number
        except (TypeError, ValueError, OverflowError):
            pass
        raise UsageError(f"{name} must be {'a whole' if kind is int else 'a'} number, got {value!r}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{name} must be {KINDS[kind]}, got {value!r}")
    return value


WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
KINDS = {bool: "true or false", str: "a word", int: "a whole number", float: "a number"}


def suggestion(word: str, known: Iterable[str]) -> str:
    names = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {names[close[0]]}?)" if close else ""
