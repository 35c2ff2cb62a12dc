"""Image and label files: whether they are whole, and whether the numbers in them are labels."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    import nibabel
    import numpy as np

__all__ = [
    "ImageFileError",
    "check_complete",
    "is_nifti",
    "label_values",
    "last_line",
    "shown_values",
    "stored_values",
    "unknown_values",
]

_LONGEST_HEADER = 540
"""Bytes of the header of NIfTI-2; that of NIfTI-1 has 348."""


class ImageFileError(NnunetDtcError):
    """An image file that cannot be used. The message does not name it, which may be a copy."""


def check_complete(file: Path) -> None:
    """Check that all of a NIfTI file is there and that its header has a voxel size.

    SimpleITK reads a file that was cut off (a full disk, an interrupted copy) as if the rest were background, and takes
    1 mm where the voxel size is zero, infinite or not a number. Files with another ending are not checked: SimpleITK
    itself refuses them where they are incomplete.

    Raises:
        ImageFileError: the file is cut off, its compressed data is damaged (the checksum included), it cannot be read,
            or its voxel size is none. The message does not name the file, which may be a copy.
    """
    if not is_nifti(file):
        return
    try:
        with _opened(file) as stream:
            start = stream.read(_LONGEST_HEADER)
            header = _nifti_header(start)
            there = len(start)
            while part := stream.read(1 << 20):  # to the end, where the checksum is
                there += len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageFileError(last_line(error)) from error
    shape = header.get_data_shape()
    needed = float(header["vox_offset"]) + math.prod(shape) * int(header["bitpix"]) / 8
    if there < needed:
        raise ImageFileError(f"it is cut off: {needed:.0f} bytes are needed, {there} are there")
    steps = [float(step) for step in header["pixdim"][1 : len(shape) + 1]]
    if any(size > 1 and not (math.isfinite(step) and step != 0) for size, step in zip(shape, steps, strict=True)):
        raise ImageFileError(
            f"the voxel size must be a positive number along every axis, the header has pixdim {tuple(steps)}"
        )


def stored_values(file: Path) -> np.ndarray | None:
    """The numbers of a NIfTI file in the type in which they are stored, where that is a floating or complex one.

    SimpleITK reads NaN and infinity as 0, and readers that convert to single precision drop imaginary parts.

    Returns:
        The array in the order of the file's axes, scaled as the header says; None for integers and other formats.

    Raises:
        ImageFileError: the file cannot be read.
    """
    if not is_nifti(file):
        return None
    try:
        with _opened(file) as stream:
            header = _nifti_header(stream.read(_LONGEST_HEADER))
        if header.get_data_dtype().kind not in "fc":
            return None
        import nibabel
        import numpy as np

        return np.asanyarray(nibabel.load(file).dataobj)
    except Exception as error:  # of the file: whatever nibabel raises for it
        raise ImageFileError(last_line(error)) from error


def is_nifti(file: Path) -> bool:
    """Whether the file's name says that it is a NIfTI file, in one piece."""
    return str(file).lower().endswith((".nii", ".nii.gz"))


def label_values(array: np.ndarray) -> set[float]:
    """The different numbers in an array. Slice by slice: sorting a whole volume would copy it."""
    import numpy as np

    values: set[float] = set()
    for part in array:
        values.update(value if value == value else math.nan for value in np.unique(part).tolist())  # NaN once
    return values


def unknown_values(array: np.ndarray, known: Iterable[int]) -> list[float]:
    """The numbers in an array that are not among the known label values, in ascending order, NaN last.

    Floating numbers are compared in single precision, as nnU-Net reads them: what is rounded to 1 there is a 1.

    Raises:
        ImageFileError: the numbers are complex.
    """
    import numpy as np

    if array.dtype.kind == "c":
        raise ImageFileError(f"label values must be integers, the file holds complex numbers ({array.dtype})")
    known = set(known)
    strange = {value for value in label_values(array) if value not in known}
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond single precision is infinite
            strange = {value for value in strange if float(np.float32(value)) not in known}
    return sorted(strange, key=lambda value: (math.isnan(value), value))


def shown_values(values: Sequence[float], most: int = 5) -> str:
    """Numbers as a list for messages, each exactly: ``4, 1.0000001, nan, ...``."""
    texts = [
        str(int(value)) if math.isfinite(value) and value == int(value) else repr(value) for value in values[:most]
    ]
    return ", ".join(texts + ["..."] * (len(values) > most))


def last_line(error: Exception) -> str:
    """The last line of a message: ITK's have many. Addresses of objects are left out."""
    return re.sub(r" ?\(0x[0-9a-f]+\)", "", (str(error).strip().splitlines() or [type(error).__name__])[-1])


def _opened(file: Path) -> BinaryIO:
    """A file to be read, decompressed where it is compressed (some that are called .nii are, and the other way)."""
    with file.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if compressed else file.open("rb")


def _nifti_header(start: bytes) -> nibabel.Nifti1Header:
    """The header as it stands in a file; nibabel's and ITK's own reading replaces values that cannot be."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind in (Nifti1Header, Nifti2Header):
        if kind.may_contain_header(start):
            return kind(start[: kind.template_dtype.itemsize], check=False)
    raise ImageFileError("it has no header of a NIfTI file")
