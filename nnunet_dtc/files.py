"""What every room asks of files: written whole or not at all, known to be whole before they are believed."""

from __future__ import annotations

import gzip
import math
import os
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

__all__ = ["check_complete", "check_writable", "label_values", "output_files", "unknown_values", "write_whole"]


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file, text as UTF-8 with the line ends that it has: whole, or what was there stays as it was."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)
    return file


def output_files(out: Path, endings: tuple[str, ...], overwrite: bool = False) -> tuple[Path, ...]:
    """OUT with each of the endings; OUT itself may have one of them.

    Raises:
        FileExistsError: one of them is there, and `overwrite` is not asked for.
        NotADirectoryError: their folder is not there.
    """
    out = Path(out)
    if out.suffix in endings:
        out = out.with_suffix("")
    files = tuple(out.with_name(out.name + ending) for ending in endings)
    if not out.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {out.parent} to write {files[0].name} into")
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        raise FileExistsError(f"will not overwrite {' and '.join(there)} unless asked (--overwrite)")
    return files


def check_writable(folder: Path) -> None:
    """By a file that is gone again: what the permissions say is not all.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): give another place by -o") from error


def check_complete(file: Path) -> None:
    """Whether all of a NIfTI file is there: SimpleITK reads one that was cut off (a full disk, an interrupted copy) as
    if the rest were background. Files with another ending are not looked at: of those SimpleITK says so itself.

    Raises:
        ValueError: if it is cut off, its compressed data is damaged (its checksum included), or it cannot be read; the
            message does not name the file, which may be a copy.
    """
    import SimpleITK as sitk

    name = str(file).lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
        needed = float(reader.GetMetaData("vox_offset"))
        needed += math.prod(reader.GetSize()) * int(reader.GetMetaData("bitpix")) / 8
        with file.open("rb") as raw:
            compressed = raw.read(2) == b"\x1f\x8b"
        there = 0
        with (gzip.open if compressed else open)(file, "rb") as stream:  # to the end, where the checksum is
            while part := stream.read(1 << 20):
                there += len(part)
    except (RuntimeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(last_line(error)) from error
    if there < needed:
        raise ValueError(f"it is cut off: {needed:.0f} bytes are needed, {there} are there")


def label_values(array: np.ndarray) -> set[float]:
    """The different numbers in an array. Slice by slice: sorting a whole volume would copy it."""
    import numpy as np

    values: set[float] = set()
    for part in array:
        values.update(np.unique(part).tolist())
    return values


def unknown_values(array: np.ndarray, known: Iterable[int]) -> list[float]:
    """The numbers in an array that are not among the known ones, in ascending order, NaN last."""
    strange = label_values(array) - set(known)
    return sorted(strange, key=lambda value: (math.isnan(value), value))


def last_line(error: Exception) -> str:
    """What ITK's many lines come to."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
