"""The signals of a terminal, also where the tests run in a shell's background or under nohup."""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def default_signals() -> Iterator[None]:
    """Programs that are started within the block do not ignore SIGINT and SIGHUP.

    A shell without job control starts ``command &`` with SIGINT ignored, nohup with SIGHUP ignored, and programs
    inherit both.
    """
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
