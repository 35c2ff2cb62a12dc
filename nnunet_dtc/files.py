"""Files: written whole or not at all, and checked to be whole before they are used."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    import nibabel
    import numpy as np

__all__ = [
    "ImageFileError",
    "WriteError",
    "check_complete",
    "check_outputs",
    "check_utf8",
    "check_writable",
    "is_nifti",
    "label_values",
    "last_line",
    "output_files",
    "printable",
    "shown_values",
    "stored_values",
    "unknown_values",
    "write_all",
    "write_whole",
    "writing",
]

_LONGEST_HEADER = 540
"""Bytes of the header of NIfTI-2; that of NIfTI-1 has 348."""


class ImageFileError(NnunetDtcError):
    """An image file that cannot be used. The message does not name it, which may be a copy."""


class WriteError(OSError):
    """A file or folder cannot be written: "cannot write TARGET: REASON"."""

    def __init__(self, target: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.target = target

    def __str__(self) -> str:
        return f"cannot write {printable(self.target)}: {self.strerror}"


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Name the target in the errors of a block that writes it: the system names a temporary file, or none at all.

    Raises:
        WriteError: instead of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(target, error) from error


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file, text as UTF-8 with the line ends that it has: whole, or what was there stays as it was.

    Raises:
        WriteError: it cannot be written.
    """
    return write_all({file: content})[0]


def write_all(contents: Mapping[Path, str | bytes]) -> list[Path]:
    """Write several files as `write_whole` does. All of them are written under other names before the first one gets
    its own, so that a full disk leaves what was there.

    Raises:
        WriteError: one of them cannot be written.
    """
    unfinished = {file: file.with_name(f".{file.name}.{os.getpid()}") for file in contents}
    try:
        for file, content in contents.items():
            with writing(file):
                unfinished[file].write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        for file in contents:
            with writing(file):
                unfinished[file].replace(file)
    finally:
        for file in unfinished.values():
            with contextlib.suppress(OSError):
                file.unlink()
    return list(contents)


def printable(path: Path | str) -> str:
    r"""A path for messages: bytes that are not UTF-8, which cannot be printed, are shown as escapes such as \xff."""
    try:
        return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other lone surrogates, of Windows
        return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def check_utf8(path: Path, what: str = "a file or folder") -> Path:
    """The path, if it can be handed to SimpleITK and to nnU-Net's commands: SimpleITK ends the process where it is not
    UTF-8.

    Args:
        what: it is, for the message.

    Raises:
        NnunetDtcError: it is not UTF-8; names it.
    """
    if (shown := printable(path)) != str(path):
        raise NnunetDtcError(f"the path of {what} must be UTF-8, got {shown}")
    return path


def output_files(out: Path, endings: tuple[str, ...], overwrite: bool = False) -> tuple[Path, ...]:
    """OUT with each of the endings; OUT itself may have one of them.

    Raises:
        NotADirectoryError: their folder is not there.
        IsADirectoryError, FileExistsError, NnunetDtcError: see `check_outputs`.
    """
    out = Path(out)
    if out.suffix in endings:
        out = out.with_suffix("")
    files = tuple(out.with_name(out.name + ending) for ending in endings)
    if not out.parent.is_dir():
        raise NotADirectoryError(f"there is no folder {out.parent} to write {files[0].name} into")
    check_outputs(files, overwrite)
    return files


def check_outputs(files: Sequence[Path], overwrite: bool = False) -> None:
    """Check that files can be given these names.

    Raises:
        IsADirectoryError: a folder has one of them.
        FileExistsError: a file has one of them, and `overwrite` is not asked for.
        NnunetDtcError: one of the paths is not UTF-8.
    """
    for file in files:
        check_utf8(file)
        if file.is_dir():
            raise IsADirectoryError(f"cannot write the file {file}: a folder has this name")
    there = [str(file) for file in files if file.exists()]
    if there and not overwrite:
        raise FileExistsError(f"will not overwrite {' and '.join(there)} unless asked (--overwrite)")


def check_writable(folder: Path) -> None:
    """Write a file and remove it again, because permissions do not say everything: the disk may be full.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): give another place by -o") from error


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
