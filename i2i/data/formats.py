"""Which files count as pictures: all that the installed Pillow reads, but for what is no picture or would be cut."""

from __future__ import annotations

from PIL import Image, features

# Formats of Pillow's registry that are not taken, and why.
NOT_TAKEN = {
    "BUFR": "no decoder",
    "GRIB": "no decoder",
    "HDF5": "no decoder",
    "MPEG": "a film, of which Pillow reads the header",
    "EPS": "a program that Ghostscript runs",
    "WMF": "a drawing, on Windows only",
    "FITS": "Pillow reads the first plane of a cube and does not say so",
    "PCD": "Pillow reads one of several resolutions",
}
# In the registry whether or not this Pillow was built with what decodes them.
DECODERS = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000"}

Image.init()
_ENDINGS = Image.registered_extensions()
FORMATS = tuple(
    name
    for name in sorted({*_ENDINGS.values()} & {*Image.OPEN})
    if name not in NOT_TAKEN and (name not in DECODERS or features.check(DECODERS[name]))
)
# MPO, the JPEG of several frames that telephones write, is opened by the reader of JPEG.
EXTENSIONS = tuple(sorted(ending for ending, name in _ENDINGS.items() if name in (*FORMATS, "MPO")))
