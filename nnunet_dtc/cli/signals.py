"""Signals that end a command: what it has begun is cleared away first, and one line says why it ended."""

import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["Interrupted", "ending_in_order"]

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
PATIENCE_S = 5.0
"""A signal that follows the first one within this time is ignored: terminals and schedulers often send several."""


class Interrupted(SystemExit):
    """A signal arrived. It is a ``SystemExit``, so ``finally`` blocks and context managers run, and no handler for
    errors takes it for one.

    Attributes:
        name: of the signal, such as "SIGTERM".
        code: the exit code, 128 and the number of the signal, as shells have it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread.

    A signal that is ignored already (by ``nohup``, for example) stays ignored. Empty folders that importing torch
    leaves in the folder for temporary files are removed in the end.

    Raises:
        SystemExit: with the exit code of the signal, after one line on stderr.
    """
    caches = set(_inductor_caches())
    before = {number: signal.getsignal(number) for number in _numbers()}
    handler = _handler()
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    interrupted = None
    try:
        yield
    except Interrupted as end:
        interrupted = end.name, end.code
    finally:
        for folder in set(_inductor_caches()) - caches:
            with contextlib.suppress(OSError):
                folder.rmdir()  # only if it is empty
        if interrupted is None:
            for number, old in before.items():
                signal.signal(number, old)
    if interrupted is not None:  # outside of the handler: what the traceback still held is closed by now
        name, code = interrupted
        with contextlib.suppress(OSError):
            print(f"Interrupted by {name}.", file=sys.stderr, flush=True)
        sys.exit(code)


def _numbers() -> list[int]:
    return [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


def _handler() -> Callable[[int, object], None]:
    owner, first = os.getpid(), None

    def handle(number: int, frame: object) -> None:
        nonlocal first
        if os.getpid() != owner:  # a fork of this process must not clear away what is this one's
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if first is not None and time.monotonic() - first < PATIENCE_S:
            return
        first = time.monotonic()
        _leave_dead_terminal()
        raise Interrupted(number)

    return handle


def _leave_dead_terminal() -> None:
    """After a hang-up, writing to the terminal is an error, and clearing away would end in it."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _inductor_caches() -> list[Path]:
    """torch makes the folder of its compiler's cache when it is imported, used or not."""
    with contextlib.suppress(OSError):
        return list(Path(tempfile.gettempdir()).glob("torchinductor_*"))
    return []
