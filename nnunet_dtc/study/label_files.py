"""Check whether image files are complete, and whether the numbers in them are labels."""

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
    "last_line",
    "shown_values",
    "stored_values",
    "unknown_values",
]

_LONGEST_HEADER = 540
"""The length of NIfTI-2's header in bytes; NIfTI-1's has 348."""


class ImageFileError(NnunetDtcError):
    """An image file that cannot be used. The message does not name the file, which may be a temporary copy."""


def check_complete(file: Path) -> None:
    """Check that a NIfTI file is complete and that its header has a voxel size.

    If a file was cut off (a full disk, an interrupted copy), SimpleITK reads the rest as background. It takes 1 mm for
    a voxel size that is zero, infinite or not a number. Files with other endings are not checked: SimpleITK refuses
    them if they are incomplete.

    Raises:
        ImageFileError: the file is cut off, its compressed data or their checksum is damaged, it cannot be read, or its
            voxel size is not a positive number.
    """
    if not is_nifti(file):
        return
    try:
        with _opened(file) as stream:
            start = stream.read(_LONGEST_HEADER)
            header = _nifti_header(start)
            present = len(start)
            while part := stream.read(1 << 20):  # to the end, where the checksum is
                present += len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise ImageFileError(last_line(error)) from error
    shape = header.get_data_shape()
    needed = float(header["vox_offset"]) + math.prod(shape) * int(header["bitpix"]) / 8
    if present < needed:
        raise ImageFileError(f"it is cut off: {needed:.0f} bytes are needed, got {present}")
    steps = [float(step) for step in header["pixdim"][1 : len(shape) + 1]]
    if any(size > 1 and not (math.isfinite(step) and step != 0) for size, step in zip(shape, steps, strict=True)):
        raise ImageFileError(
            f"the voxel size must be a positive number along every axis, got pixdim {tuple(steps)} in its header"
        )


def stored_values(file: Path) -> np.ndarray | None:
    """Read the numbers of a NIfTI file as they are stored, if they are floating-point or complex numbers.

    SimpleITK reads NaN and infinity as 0, and readers that convert to single precision drop imaginary parts.

    Returns:
        The array in the order of the file's axes, with the header's scaling; None for integers and other formats.

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
    except Exception as error:  # nibabel raises many kinds of errors for damaged files
        raise ImageFileError(last_line(error)) from error


def is_nifti(file: Path) -> bool:
    """Whether the file has the ending of a single-file NIfTI image."""
    return str(file).lower().endswith((".nii", ".nii.gz"))


def unknown_values(array: np.ndarray, known: Iterable[int]) -> list[float]:
    """The numbers in an array that are not known label values, in ascending order, NaN last.

    Floating-point numbers are compared in single precision, in which nnU-Net reads them.

    Raises:
        ImageFileError: the numbers are complex.
    """
    import numpy as np

    if array.dtype.kind == "c":
        raise ImageFileError(f"label values must be integers, got complex numbers ({array.dtype})")
    known = set(known)
    strange = {value for value in _distinct(array) if value not in known}
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # numbers beyond single precision become infinite
            strange = {value for value in strange if float(np.float32(value)) not in known}
    return sorted(strange, key=lambda value: (math.isnan(value), value))


def shown_values(values: Sequence[float], most: int = 5) -> str:
    """A list of numbers for messages, each with all digits: ``4, 1.0000001, nan, ...``."""
    texts = [
        str(int(value)) if math.isfinite(value) and value == int(value) else repr(value) for value in values[:most]
    ]
    return ", ".join(texts + ["..."] * (len(values) > most))


def last_line(error: Exception) -> str:
    """The last line of an error's message without addresses of objects: ITK's messages have many lines."""
    return re.sub(r" ?\(0x[0-9a-f]+\)", "", (str(error).strip().splitlines() or [type(error).__name__])[-1])


def _distinct(array: np.ndarray) -> set[float]:
    """The distinct numbers in an array, found slice by slice: sorting a whole volume would copy it."""
    import numpy as np

    values: set[float] = set()
    for part in array:
        values.update(value if value == value else math.nan for value in np.unique(part).tolist())  # one NaN
    return values


def _opened(file: Path) -> BinaryIO:
    """Open a file for reading, decompressed if its content is compressed, whatever its ending."""
    with file.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if compressed else file.open("rb")


def _nifti_header(start: bytes) -> nibabel.Nifti1Header:
    """The header as it is in the file; nibabel's and ITK's readers replace impossible values."""
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for kind in (Nifti1Header, Nifti2Header):
        if kind.may_contain_header(start):
            return kind(start[: kind.template_dtype.itemsize], check=False)
    raise ImageFileError("it has no header of a NIfTI file")
