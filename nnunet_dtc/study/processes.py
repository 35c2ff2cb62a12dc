"""Processes that do not outlive the process that started them, even if it is killed or crashes."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

__all__ = ["end_with_parent", "find_program", "guarded", "usable_cores"]

GUARD = Path(__file__).with_name("process_guard.py")
PATIENCE_S = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def find_program(command: str) -> str | None:
    """A command of this Python's environment, else the one on PATH, else None."""
    return shutil.which(command, path=str(Path(sys.executable).parent)) or shutil.which(command)


def usable_cores() -> int:
    """The number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this process of `multiprocessing` when its parent ends; call it first in the process.

    On every system a thread waits for the end of the parent. The thread needs Python's global lock, which a library may
    hold for long, so that on Linux the kernel also kills this process. Signals that a terminal sends to both processes
    (SIGINT, SIGHUP) are ignored here and handled by the parent.

    Raises:
        RuntimeError: this process was not started by `multiprocessing`.
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
    """Run a program that ends with all of its processes when the block is left or this process ends.

    A small process, `process_guard`, starts the program and waits for the end of a pipe from this process. On POSIX the
    program has its own process group, so that Ctrl-C in a terminal reaches only this process.

    Args:
        command: the program and its arguments; its standard input is empty.
        options: options of `subprocess.Popen` except `stdin`.

    Yields:
        The process; its `returncode` is that of the program.
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
        os.close(ours)  # then the guard ends the program
        if process is not None:
            with process:  # closes its pipes
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
