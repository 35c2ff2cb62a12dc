"""Hidden folders for unfinished output, in the folder where it will be moved.

A work folder is removed when its block ends, also after an error. Only a process that is killed (SIGKILL, a power
failure) leaves its folder behind; the next process that creates a work folder in the same place removes it. Each folder
contains a locked file, whose lock the system releases when the process ends. The file also names the machine, because
on some network file systems a lock is only known to the machine that holds it. In doubt a folder is kept.
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

__all__ = ["NO_LOCKS", "REPLACED", "work_folder"]

MARK = "nnunet_dtc.lock"

REPLACED = "replaced"
"""Subfolder for files and folders that are about to be replaced: they are moved back unless the new ones exist."""

_TRIES, _PAUSE_S = 50, 0.1

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""Errors of file systems that have no locks."""


@contextlib.contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """Create a folder ``.NAME.<random>`` in ``parent``, and remove it when the block ends.

    First, what is in its subfolder ``REPLACED`` is moved into ``parent`` unless something has the same name there.

    Args:
        parent: an existing folder.
        name: part of the new folder's name.

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
    """Mark a folder as used by this process. Returns the descriptor of the locked file, None without locks."""
    if fcntl is None:
        return None
    unlocked = folder / f"{MARK}.new"
    descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        os.write(descriptor, platform.node().encode())
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unlocked.rename(folder / MARK)  # no other process can find it before it is locked
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError) or error.errno in NO_LOCKS:
            return None
        raise
    return descriptor


def _remove_dead(parent: Path) -> None:
    """Remove the work folders of this machine's processes that no longer run."""
    if fcntl is None:
        return
    for mark in parent.glob(f".*/{MARK}"):
        if mark.is_symlink() or mark.parent.is_symlink():
            continue  # not created by this module
        with contextlib.suppress(OSError):
            descriptor = os.open(mark, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.read(descriptor, 1000) == platform.node().encode():
                    _clear(mark.parent)
            finally:
                os.close(descriptor)


def _clear(folder: Path) -> None:
    """Move back what was not replaced, then remove the folder, its locked file last."""
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
        time.sleep(_PAUSE_S)  # interrupted threads may still be writing their last file
