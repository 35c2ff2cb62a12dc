"""Run a program, and end it with all that it started when standard input ends: when whoever holds the pipe is gone.

Run as a file, with the program and its arguments (see `nnunet_dtc.study.processes.guarded`); it imports the standard
library alone, so that it starts at once. Its exit status is the program's; a program that a signal ended, ends it
likewise.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 2.0  # for multiprocessing's resource tracker, which removes shared memory and ends by itself


def main() -> None:
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=os.name == "posix")
    signal.signal(signal.SIGTERM, lambda *_: _tell(program, end=True))
    threading.Thread(target=_watch, args=(program,), daemon=True).start()
    status = program.wait()
    _end_leftovers(program)
    if status < 0:
        with contextlib.suppress(ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program has left its core, if it should
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _watch(program: subprocess.Popen) -> None:
    os.read(0, 1)  # nothing is ever written: it returns when the pipe ends
    _tell(program, end=True)
    time.sleep(PATIENCE_S)
    _tell(program, end=False)


def _tell(program: subprocess.Popen, end: bool) -> bool:
    """Ask the program and all that it started to end, or kill them; whether any of them was there."""
    if os.name != "posix":
        if program.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(program.pid)], capture_output=True, check=False)
        return False
    try:
        os.killpg(program.pid, signal.SIGTERM if end else signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # macOS refuses where only dead ones are left
        return False
    return True


def _end_leftovers(program: subprocess.Popen) -> None:
    """The program has ended; what it left behind would keep its files and pipes open for ever."""
    if os.name != "posix":
        return
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.killpg(program.pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)
    _tell(program, end=False)


if __name__ == "__main__":
    main()
