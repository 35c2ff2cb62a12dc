"""Where a data set comes from: an unpacked folder or the zip archive as it was downloaded, as one flat list of files.

An archive is read in place: its members are found by their names but never written under them, and one whose name or
kind points out of the archive (absolute, "..", a link) makes the whole archive refused.
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

__all__ = ["SourceError", "SourceFile", "open_source", "single"]


MOST_LINES = 100
"""Problems that a message lists."""


class SourceError(NnunetDtcError):
    """What is wrong with a source; `problems` are all of them, a line with a path each, the message has the first."""

    def __init__(self, source: Path, problems: list[str]) -> None:
        count = f"{len(problems)} problem" + "s" * (len(problems) > 1)
        more = [f"... and {len(problems) - MOST_LINES} more"] if len(problems) > MOST_LINES else []
        lines = [f"{count} in {source}, nothing was written:", *problems[:MOST_LINES], *more]
        super().__init__("\n  ".join(lines))
        self.problems = problems


@dataclass(frozen=True)
class SourceFile:
    """A file of a source: `name` is its path within the source, `shown` the one for messages, both with "/"."""

    name: str
    shown: str
    path: Path | None = None
    archive: zipfile.ZipFile | None = None
    member: zipfile.ZipInfo | None = None

    def open(self) -> BinaryIO:
        """Its content; the end of a damaged archive member raises `zipfile.BadZipFile`."""
        return self.path.open("rb") if self.archive is None else self.archive.open(self.member)

    def read(self) -> bytes:
        with self.open() as stream:
            return stream.read()

    def copy_to(self, file: Path) -> None:
        """Its bytes into a new file.

        Raises:
            WriteError: if it cannot be written, or is there already. Other errors are of reading.
        """
        with self.open() as stream:
            with writing(file):
                to = file.open("xb", buffering=0)
            with to:
                while part := stream.read(1 << 20):
                    with writing(file):
                        _write(to, part)

    @contextmanager
    def on_disk(self, beside: Path, name: str | None = None) -> Iterator[Path]:
        """A path to read it from, of that name if one is given.

        A member of an archive, or a file with another name, is copied into a temporary folder in `beside` meanwhile.

        Raises:
            WriteError: if `beside` cannot be written. Other errors are of reading.
        """
        if self.path is not None and name in (None, self.path.name):
            yield self.path
            return
        missing = [folder for folder in (beside, *beside.parents) if not folder.exists()]
        try:
            with writing(beside):
                beside.mkdir(parents=True, exist_ok=True)
            with work_folder(beside, "nnunet_dtc") as scratch:
                file = scratch / (name or self.name.rpartition("/")[2])
                try:
                    self.copy_to(file)
                except WriteError as error:
                    raise WriteError(beside, error) from error
                yield file
        finally:
            for folder in missing:  # the innermost first; only what was made here and is empty
                with suppress(OSError):
                    folder.rmdir()


@contextmanager
def open_source(source: Path, zips: Collection[str] = ()) -> Iterator[list[SourceFile]]:
    """All files of a folder or of a zip archive, sorted; hidden ones and macOS's `__MACOSX` left out.

    Args:
        source: the folder or the archive. Links in a folder are followed.
        zips: of a folder, archives `<name>.zip` directly in it are looked into where no folder `<name>` is beside
            them; their files count as lying in `<name>/`.

    Raises:
        FileNotFoundError: if there is no such folder or file.
        SourceError: if an archive cannot be read, is encrypted, or has members that point outside.
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
    """The only file of `files`; else None, and a problem is added that names `what` as missing or all of them."""
    if len(files) == 1:
        return files[0]
    if files:
        some = ", ".join(file.shown for file in files[:10]) + ", ..." * (len(files) > 10)
        problems.append(f"{what} is there {len(files)} times: {some}")
    else:
        problems.append(f"{what} is missing")
    return None


def _write(file: io.RawIOBase, data: bytes) -> None:
    """All of the data; a file without a buffer may take less at a time."""
    left = memoryview(data)
    while len(left):
        left = left[file.write(left) :]


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _folder(folder: Path) -> Iterator[SourceFile]:
    def fail(error: OSError) -> None:
        raise error

    seen = set()  # a link may lead back
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
    """Why a member of an archive is not acceptable."""
    if not member.filename:
        return "has no name"
    for name in (member.filename, member.orig_filename):
        if re.match(r"[/\\]|[A-Za-z]:", name) or ".." in re.split(r"[/\\]", name):
            return "points outside of the archive"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    return "is encrypted" if member.flag_bits & 1 else None
