"""Files: written whole or not at all; and reading those of others, whatever wrote them."""

from __future__ import annotations

import os
import re
import shutil
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from i2i.errors import UsageError

CHECKPOINT = "checkpoint.pt"  # of a run, in its folder
CHECKPOINT_FORMAT = 2
STAND_INS = 100  # classes of others that one file may name
# UTF-32 first: its little-endian mark begins with that of UTF-16.
OTHER_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
# A line of the published train_opt.txt: name, value, and the default if that is another.
PUBLISHED_LINE = re.compile(r"\s*(\w+): (.*?)\s*(?:\t\[default: .*\])?")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` in one go when the block ends; nothing is left if it fails.

    On disk before it is renamed: else a power cut can leave the new name on an empty file. OSError, in one sentence
    that names `path`, where it cannot be written, a full disk included.
    """
    if path.is_dir():
        raise OSError(f"{path} is a folder, where a file is to be written")
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise not_written(path, error) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error) and "inline_container" not in str(error):
            raise
        raise not_written(path, error) from error  # of torch.save, whose writer does not say why
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # no folder, no file
            pass


def not_written(path: Path, error: Exception) -> OSError:
    """What to tell of an `error` while `path` was written; with the error's number, if it has one."""
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = f"torch's writer failed; {shutil.disk_usage(path.parent).free // 2**20} MiB are free there"
    kept = "; the file that was there is unchanged" if path.is_file() else ""
    told = OSError(f"{path}: cannot be written ({reason}){kept}")
    told.errno = getattr(error, "errno", None)
    return told


def make_folder(folder: Path) -> None:
    """With its parents. OSError, in one sentence, where a file is in the way or there is no right to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        refuse_under_file(folder)
        raise OSError(f"{folder}: cannot be made a folder ({error.strerror})") from error


def refuse_under_file(folder: Path) -> None:
    """UsageError if `folder` cannot be one, because it, or what it is to lie in, is a file."""
    for place in (folder, *folder.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            kind = "a file" if place.exists() else "a link to nowhere"
            raise UsageError(f"{folder} cannot be a folder to write into: {place} is {kind}")


def refuse_folder(path: Path, option: str) -> None:
    """UsageError if `path`, given as `option`, cannot be a file to write."""
    refuse_under_file(path.parent)
    if path.is_dir():
        raise UsageError(f"{option} {path}: is a folder; name the file to write")


def write_atomically(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def save_tensors(path: Path, content: Any) -> None:
    """What torch.save writes, in one go (see `replacing`); through a file of Python's, because torch's own writer does
    not say why it fails."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # of torch's writer, which is unwound by what stopped it
            if isinstance(error.__context__, (OSError, KeyboardInterrupt)):
                raise error.__context__ from None
            raise


def read_tensors(path: Path, *, stand_ins: bool = False) -> Any:
    """The contents of a file that torch.save wrote, or of a safetensors file, on the CPU. It may be of anyone's making:
    nothing in it is run.

    `stand_ins`: objects of classes that torch does not know, such as the settings in Lightning's checkpoints, are read
    as empty OrderedDicts, with the name of their class as attribute `pickled`; nothing of the class is imported.

    UsageError: no such file, or a damaged one, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _read_safetensors(path)
    if head.startswith(b"PK"):
        _check_sums(path)
    names: list[str] = []
    while True:
        try:
            with warnings.catch_warnings(), torch.serialization.safe_globals(_stand_ins(names)):
                warnings.simplefilter("ignore")  # of pickles in another protocol than torch's own
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of any kind: bytes that are no pickle make the unpickler stumble in many ways
            refused = re.search(r"GLOBAL ([\w.]+)", str(error))
            name = refused and refused[1]
            if name and stand_ins and name not in names and len(names) < STAND_INS:
                names.append(name)
                continue
            if name:
                raise UsageError(f"{path}: {_is_pickled(name)}") from None
            if "TorchScript" in str(error):
                raise UsageError(f"{path}: a TorchScript program; save the network's state_dict() instead") from None
            raise UsageError(f"{path}: damaged, or no file of weights ({type(error).__name__})") from None


def _is_pickled(name: str) -> str:
    return (
        f"holds a pickled {name}, not only tensors, and loading that could run code of whoever wrote the file; "
        "save the network's state_dict() instead"
    )


def refuse_pickled(path: Path, content: Any) -> None:
    """UsageError if `content`, as `read_tensors` gives it with stand-ins, is one, or holds nothing but one."""
    parts = [content, *(content.values() if isinstance(content, dict) else ())]
    name = next((part.pickled for part in parts if hasattr(part, "pickled")), None)
    if name is not None:
        raise UsageError(f"{path}: {_is_pickled(name)}")


def _stand_ins(names: list[str]) -> list[Any]:
    made: list[Any] = []
    for name in names:
        # torch calls this instead of the class; the type it wants to fill is OrderedDict itself
        def new(cls: type, *_: Any, name: str = name, **__: Any) -> OrderedDict:
            empty: Any = OrderedDict()
            empty.pickled = name
            return empty

        kind = type("StandIn", (), {"__new__": new})
        made += [(kind, name), (kind, f"builtins.{name}")]  # torch leaves the latter's first word out of its message
    return made


def _check_sums(path: Path) -> None:
    """torch writes a checksum of every part and never reads it: a bit that fell over on the disk would be a weight."""
    try:
        with zipfile.ZipFile(path) as archive:
            # none of them with torch.serialization.set_crc32_options(False)
            damaged = archive.testzip() if any(part.CRC for part in archive.infolist()) else None
    except Exception as error:  # BadZipFile, and what a broken directory leads to
        raise UsageError(f"{path}: damaged, or no file of weights ({type(error).__name__})") from None
    if damaged is not None:
        raise UsageError(f"{path}: damaged: its part {damaged} is not what was written (its checksum is another)")


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UsageError(f"{path}: a safetensors file, which needs safetensors: pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # of any kind, as above
        raise UsageError(f"{path}: damaged, or no file of weights ({type(error).__name__})") from None


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


def published_options(path: Path) -> dict[str, str]:
    """Names, in lower case, and values in a file that the published code printed its options to; {} if it is none."""
    try:
        first, *lines = read_text(path).splitlines() or [""]
    except (OSError, UnicodeDecodeError):
        return {}
    if not re.fullmatch(r"-+ Options -+", first.strip()):
        return {}
    matches = (PUBLISHED_LINE.fullmatch(line) for line in lines)
    return {match[1].lower(): match[2] for match in matches if match and match[2] not in ("", "None")}
