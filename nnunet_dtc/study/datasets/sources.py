"""The source of a data set, an unpacked folder or the downloaded zip archive, as a flat list of files.

Archives are not unpacked. An archive with a member whose name or kind points outside of it (an absolute path, "..", a
link) is refused.
"""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError, writing
from nnunet_dtc.work_folders import work_folder

__all__ = ["SourceError", "SourceFile", "open_source", "single", "unreadable"]


MOST_LINES = 100
"""Maximum number of problems in a message."""


class SourceError(NnunetDtcError):
    """The problems of a source, a line with a path each; the message has the first ones, `problems` all of them."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        more = [f"... and {len(problems) - MOST_LINES} more"] if len(problems) > MOST_LINES else []
        lines = [f"{count} in {source}, nothing was written:", *problems[:MOST_LINES], *more]
        super().__init__("\n  ".join(lines))
        self.problems = problems


@dataclass(frozen=True)
class SourceFile:
    """A file of a source, on disk or in an archive.

    Attributes:
        name: path within the source, with "/".
        shown: path for messages, with "/".
        path: the file on disk; None in an archive.
        archive: the archive; None on disk.
        member: the member of the archive; None on disk.
    """

    name: str
    shown: str
    path: Path | None = None
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def open(self) -> BinaryIO:
        """Open the file; reading the end of a damaged archive member raises `zipfile.BadZipFile`."""
        return self.path.open("rb") if self.archive is None else self.archive.open(self.member)

    def read(self) -> bytes:
        """The content of the file."""
        with self.open() as stream:
            return stream.read()

    def copy_to(self, file: Path) -> None:
        """Copy the content to a new file.

        Raises:
            WriteError: the new file exists or cannot be written. All other errors are raised by reading.
        """
        with self.open() as stream:
            with writing(file):
                to = file.open("xb", buffering=0)
            with to:
                while part := stream.read(1 << 20):
                    with writing(file):
                        _write(to, part)

    @contextmanager
    def on_disk(self, folder: Path, name: str | None = None) -> Iterator[Path]:
        """A path from which the file can be read.

        A member of an archive, or a file with another name, is copied for this time.

        Args:
            folder: folder for the temporary copy; it is created for this time if it does not exist.
            name: required name of the file; None for its own name.

        Raises:
            WriteError: `folder` cannot be written. All other errors are raised by reading.
        """
        if self.path is not None and name in (None, self.path.name):
            yield self.path
            return
        missing = [each for each in (folder, *folder.parents) if not each.exists()]
        try:
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            with work_folder(folder, "nnunet_dtc") as scratch:
                file = scratch / (name or self.name.rpartition("/")[2])
                try:
                    self.copy_to(file)
                except WriteError as error:
                    raise WriteError(folder, error) from error
                yield file
        finally:
            for each in missing:  # the innermost one first; only empty folders that were created here
                with suppress(OSError):
                    each.rmdir()


@contextmanager
def open_source(source: Path, zips: Collection[str] = ()) -> Iterator[list[SourceFile]]:
    """All files of a folder or of a zip archive, sorted by name, without hidden files and macOS's `__MACOSX`.

    Args:
        source: the folder or the archive. Links in a folder are followed.
        zips: names of folders that may be archives `<name>.zip` in the source folder instead. The names of their files
            then begin with `<name>/`.

    Raises:
        FileNotFoundError: there is no such folder or file.
        SourceError: an archive cannot be read, is encrypted, or has members that point outside of it.
    """
    with ExitStack() as opened:
        if not source.exists():
            raise FileNotFoundError(f"the source must be a folder or a zip archive, there is no {source}")
        if source.is_dir():
            files = list(_folder(source))
            archives = {f"{file.stem}{file.suffix.lower()}": file for file in sorted(source.iterdir())}
            for name in zips:
                archive = archives.get(f"{name}.zip")
                if archive is not None and archive.is_file() and not (source / name).exists():
                    files += _archive(archive, opened, f"{name}/")
        else:
            files = _archive(source, opened)
        yield sorted((file for file in files if not _hidden(file.name)), key=lambda file: file.name)


def single(what: str, files: list[SourceFile], problems: list[str]) -> SourceFile | None:
    """The only one of `files`; otherwise None, and a problem is added: `what` is missing or exists several times."""
    if len(files) == 1:
        return files[0]
    if files:
        some = ", ".join(file.shown for file in files[:10]) + ", ..." * (len(files) > 10)
        problems.append(f"{what} exists {len(files)} times: {some}")
    else:
        problems.append(f"{what} is missing")
    return None


def unreadable(file: SourceFile, error: Exception) -> str:
    """The problem of a file that cannot be read because of an error."""
    return f"{file.shown}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})"


def _write(file: io.RawIOBase, data: bytes) -> None:
    """Write all of the data; a file without a buffer may write a part of it at a time."""
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(folder: Path) -> Iterator[SourceFile]:
    def fail(error: OSError) -> None:
        raise error

    seen = set()  # links can form a cycle
    for root, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(root) / name
            if path.is_file():
                yield SourceFile(path.relative_to(folder).as_posix(), str(path), path)


def _archive(file: Path, opened: ExitStack, prefix: str = "") -> list[SourceFile]:
    try:
        archive = opened.enter_context(zipfile.ZipFile(file))
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise SourceError(file, [f"{file}: must be a folder or a zip archive ({error})"]) from error
    problems = [f"{file}/{member.filename}: {why}" for member in archive.infolist() if (why := _refusal(member))]
    if problems:
        raise SourceError(file, problems)
    return [
        SourceFile(prefix + member.filename, f"{file}/{member.filename}", archive=archive, member=member)
        for member in archive.infolist()
        if not member.is_dir()
    ]


def _refusal(member: zipfile.ZipInfo) -> str | None:
    """Why a member of an archive is refused; None if it is not."""
    if not member.filename:
        return "has no name"
    for name in (member.filename, member.orig_filename):
        if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            return "points outside of the archive"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    return "is encrypted" if member.flag_bits & 1 else None
