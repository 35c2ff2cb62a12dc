"""Files that are written whole or not at all, and paths and folders that are checked before anything is computed."""

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
