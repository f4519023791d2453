"""Text that people wrote with whatever editor they have."""

from __future__ import annotations

from pathlib import Path

from i2i.errors import UsageError

# UTF-32 first: its little-endian mark begins with that of UTF-16.
OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def read_text(path: Path, errors: str = "strict") -> str:
    """The text of a UTF-8 file, without the byte order mark that Windows puts before it, lines ended by "\\n" alone.

    errors: as of `bytes.decode`. UsageError for UTF-16 and UTF-32, by that name; UnicodeDecodeError for other bytes.
    """
    data = path.read_bytes()
    for mark, name in OTHER_MARKS.items():
        if data.startswith(mark):
            raise UsageError(f"{path} is written in {name}: save it as UTF-8")
    # Without a mark, every other byte of Latin text is 0 in UTF-16, and none ever is in UTF-8.
    if data[:2].count(0) == 1 and data[:64][data.index(0) % 2 :: 2].strip(b"\0") == b"":
        raise UsageError(f"{path} is written in UTF-16: save it as UTF-8")
    return data.decode("utf-8-sig", errors).replace("\r\n", "\n").replace("\r", "\n")
