"""Processes that do not outlive the one that started them, however that ends (SIGKILL and a crash included)."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

__all__ = ["end_with_parent", "guarded"]

GUARD = Path(__file__).with_name("process_guard.py")
PATIENCE_S = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """End this process, one of `multiprocessing`, as soon as its parent has ended; to be called first in it.

    On every system a thread waits for the parent; it needs Python's global lock, which a library may hold for long. On
    Linux the kernel kills this process in addition. What a terminal sends to both (SIGINT, SIGHUP) is left to the
    parent.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("end_with_parent must be called in a process of multiprocessing")
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_watch, args=(parent.sentinel,), daemon=True).start()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _watch(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


@contextlib.contextmanager
def guarded(command: Sequence[str | os.PathLike[str]], **options: Any) -> Iterator[subprocess.Popen]:
    """Start a program; when the block is left, or when this process ends, so do the program and all that it started.

    Between the two stands a small process, `process_guard`, which waits for the end of a pipe. On POSIX the program
    has a process group of its own, so Ctrl-C in a terminal reaches this process alone.

    Args:
        command: the program and its arguments; its standard input is empty.
        options: as of `subprocess.Popen`, but no `stdin`.

    Yields:
        The process; its `returncode` is the program's.
    """
    theirs, ours = os.pipe()
    process = None
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", GUARD, *command],
                stdin=theirs,
                start_new_session=os.name == "posix",
                **options,
            )
        finally:
            os.close(theirs)
        yield process
    finally:
        os.close(ours)  # the guard ends the program then
        if process is not None:
            with process:  # closes its pipes
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
