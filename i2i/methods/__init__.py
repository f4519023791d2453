"""The published systems, one file each."""

from i2i.config import suggestion
from i2i.errors import UsageError
from i2i.methods.base import Method
from i2i.methods.cut import CUT
from i2i.methods.cyclegan import CycleGAN
from i2i.methods.discogan import DiscoGAN
from i2i.methods.fastcut import FastCUT
from i2i.methods.matchgan import MatchGAN
from i2i.methods.munit import MUNIT
from i2i.methods.opgan import OPGAN
from i2i.methods.pix2pix import Pix2Pix
from i2i.methods.sincut import SinCUT
from i2i.methods.stargan import StarGAN

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (CUT, FastCUT, SinCUT, CycleGAN, Pix2Pix, MUNIT, StarGAN, MatchGAN, OPGAN, DiscoGAN)
}


def check_method(name: str) -> str:
    """`name`, if a method has it."""
    if name not in METHODS:
        raise UsageError(f"method must be one of {', '.join(METHODS)}, got {name}{suggestion(str(name), METHODS)}")
    return name


__all__ = [
    "CUT",
    "METHODS",
    "MUNIT",
    "OPGAN",
    "CycleGAN",
    "DiscoGAN",
    "FastCUT",
    "MatchGAN",
    "Method",
    "Pix2Pix",
    "SinCUT",
    "StarGAN",
    "check_method",
]
