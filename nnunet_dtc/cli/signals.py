"""Signals that end a command: it removes its unfinished output first, and prints why it ended."""

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
    """A signal arrived.

    It is a ``SystemExit``, so ``finally`` blocks and context managers run, and handlers of errors do not catch it.

    Attributes:
        name: name of the signal, such as "SIGTERM".
        code: the exit code, 128 plus the number of the signal, as in shells.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.name = signal.Signals(number).name


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Within the block, SIGINT, SIGTERM and SIGHUP raise :class:`Interrupted` in the main thread.

    Signals that are ignored already (by ``nohup``, for example) remain ignored. At the end, empty folders that
    importing torch has created in the folder for temporary files are removed.

    Raises:
        SystemExit: after a signal and one line on stderr, with the exit code of the signal.
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
    if interrupted is not None:  # outside of the except block, so that what its traceback referred to is closed
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
        if os.getpid() != owner:  # a fork must not remove the files of this process
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
    """Redirect output that goes to a closed terminal: errors on writing would prevent the cleaning up."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, descriptor)
                os.close(null)


def _inductor_caches() -> list[Path]:
    """The folders of torch's compiler caches. torch creates one when it is imported, even if it is not used."""
    with contextlib.suppress(OSError):
        return list(Path(tempfile.gettempdir()).glob("torchinductor_*"))
    return []
