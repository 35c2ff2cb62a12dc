"""Hidden folders for what is not finished yet, beside the place where it will be.

They are removed when their block ends, however it ends. Only a process that is killed (SIGKILL, a power failure) leaves
its folder behind; the next one that makes such a folder in the same place removes it. Whether the process of a folder
is alive shows in a lock on a file in it, which the system releases when the process ends. In addition the file must
name this machine, because on some network file systems a lock holds on one machine only. In doubt a folder is left
alone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nnunet_dtc.files import writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

__all__ = ["REPLACED", "work_folder"]

MARK = "nnunet_dtc.lock"

REPLACED = "replaced"
"""Subfolder for what is moved aside before something new takes its place: it is put back, unless its place is taken."""

_TRIES, _PAUSE_S = 50, 0.1

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""What file systems without locks answer."""


@contextlib.contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder `.NAME.<random>` in `parent`, removed when the block ends.

    What lies in its subfolder `REPLACED` by then is moved into `parent` first if nothing has its name there.

    Raises:
        WriteError: nothing can be written there.
    """
    with writing(parent):
        _remove_dead(parent)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=parent))
    lock = None
    try:
        with writing(parent):
            lock = _lock(folder)
        yield folder
    finally:
        try:
            _clear(folder)
        finally:
            if lock is not None:
                os.close(lock)


def _lock(folder: Path) -> int | None:
    """Mark a folder as that of this process; the descriptor holds the lock. None where files cannot be locked."""
    if fcntl is None:
        return None
    unlocked = folder / f"{MARK}.new"
    descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, platform.node().encode())
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(folder / MARK)  # nobody finds it before it is locked
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError) or error.errno in _NO_LOCKS:
            return None
        raise
    return descriptor


def _remove_dead(parent: Path) -> None:
    """Remove the folders of processes of this machine that are gone."""
    if fcntl is None:
        return
    for mark in parent.glob(f".*/{MARK}"):
        if mark.is_symlink() or mark.parent.is_symlink():
            continue  # not made here
        with contextlib.suppress(OSError):
            descriptor = os.open(mark, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(descriptor, 1000) == platform.node().encode():
                    _clear(mark.parent)
            finally:
                os.close(descriptor)


def _clear(folder: Path) -> None:
    """Put back what was moved aside, then remove the folder, its mark last."""
    replaced = folder / REPLACED
    for old in replaced.iterdir() if replaced.is_dir() else ():
        if not (folder.parent / old.name).exists():
            with writing(folder.parent / old.name):
                old.rename(folder.parent / old.name)
    for _ in range(_TRIES):
        with contextlib.suppress(OSError):
            for entry in folder.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.name != MARK:
                    entry.unlink()
            if not [entry for entry in folder.iterdir() if entry.name != MARK]:
                shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_PAUSE_S)  # threads that were interrupted may still be writing their last file
