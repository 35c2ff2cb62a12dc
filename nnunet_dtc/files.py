"""Write files completely or not at all, and check paths and folders before anything is computed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError

__all__ = [
    "WriteError",
    "check_outputs",
    "check_utf8",
    "check_writable",
    "output_files",
    "printable",
    "write_all",
    "write_whole",
    "writing",
]


class WriteError(OSError):
    """A file or folder cannot be written: "cannot write TARGET: REASON"."""

    def __init__(self, target: Path, error: OSError) -> None:
        super().__init__(error.errno, error.strerror or str(error))
        self.target = target

    def __str__(self) -> str:
        return f"cannot write {printable(self.target)}: {self.strerror}"


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn an OSError of the block into a WriteError that names the target.

    The system's own error may name a temporary file, or none.

    Raises:
        WriteError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(target, error) from error


def write_whole(file: Path, content: str | bytes) -> Path:
    """Write a file completely, or leave the present one unchanged.

    Args:
        file: the file.
        content: bytes, or text, which is written as UTF-8 with its own line ends.

    Returns:
        The file.

    Raises:
        WriteError: it cannot be written.
    """
    return write_all({file: content})[0]


def write_all(contents: Mapping[Path, str | bytes]) -> list[Path]:
    """Write several files as :func:`write_whole` does.

    All are written under temporary names before the first is renamed, so that a full disk changes none of them.

    Args:
        contents: the content of each file.

    Returns:
        The files.

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
    r"""A path for messages: bytes that are not UTF-8, which cannot be printed, become escapes such as ``\xff``.

    Example:
        >>> print(printable("scan_\udcff.nii.gz"))
        scan_\xff.nii.gz
    """
    try:
        return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # other lone surrogates, on Windows
        return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def check_utf8(path: Path, what: str = "a file or folder") -> Path:
    """Check that a path is UTF-8. SimpleITK, and so nnU-Net, ends the process for other paths.

    Args:
        path: the path.
        what: what it is the path of, for the message.

    Returns:
        The path.

    Raises:
        NnunetDtcError: it is not UTF-8.
    """
    if (shown := printable(path)) != str(path):
        raise NnunetDtcError(f"the path of {what} must be UTF-8, got {shown}")
    return path


def output_files(out: Path, endings: tuple[str, ...], overwrite: bool = False) -> tuple[Path, ...]:
    """The files to write, a path with each of several endings, if they can be written.

    Args:
        out: the path without ending, or with one of them.
        endings: such as ``(".json", ".csv")``.
        overwrite: whether existing files may be replaced.

    Raises:
        NotADirectoryError: their folder does not exist.
        IsADirectoryError, FileExistsError, NnunetDtcError: as in :func:`check_outputs`.
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
    """Check that files with these paths can be written.

    Args:
        files: the paths.
        overwrite: whether existing files may be replaced.

    Raises:
        IsADirectoryError: one of them is a folder.
        FileExistsError: one of them is a file, and ``overwrite`` is not set.
        NnunetDtcError: one of the paths is not UTF-8.
    """
    for file in files:
        check_utf8(file)
        if file.is_dir():
            raise IsADirectoryError(f"cannot write the file {file}: a folder has this name")
    existing = [str(file) for file in files if file.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"will not overwrite {' and '.join(existing)} unless overwrite is set")


def check_writable(folder: Path) -> None:
    """Check that files can be written into a folder, by writing one and removing it: the disk may be full.

    Raises:
        OSError: nothing can be written there.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror or error}): choose another output") from error
