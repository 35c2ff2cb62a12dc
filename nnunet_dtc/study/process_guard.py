"""Run a program, and end it with all of its processes when standard input ends, because the owner of the pipe is gone.

This file is run with the program and its arguments (see `nnunet_dtc.study.processes.guarded`). It imports only the
standard library, so that it starts at once. Its exit status is that of the program; if a signal ended the program, the
same signal ends this process.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 2.0  # for multiprocessing's resource tracker, which removes shared memory and then ends


def main() -> None:
    started: list[subprocess.Popen] = []
    asked_to_end = threading.Event()

    def on_sigterm(*_: object) -> None:
        asked_to_end.set()
        for process in started:
            _stop(process, kill=False)

    signal.signal(signal.SIGTERM, on_sigterm)  # before the program starts, which an earlier signal would leave running
    program = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=os.name == "posix")
    started.append(program)
    if asked_to_end.is_set():
        _stop(program, kill=False)
    threading.Thread(target=_watch, args=(program,), daemon=True).start()
    status = program.wait()
    _end_leftovers(program)
    if status < 0:
        with contextlib.suppress(ImportError):
            import resource

            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the program itself may have left a core file
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


def _watch(program: subprocess.Popen) -> None:
    os.read(0, 1)  # nothing is written to the pipe: this returns when it ends
    _stop(program, kill=False)
    time.sleep(PATIENCE_S)
    _stop(program, kill=True)


def _stop(program: subprocess.Popen, kill: bool) -> None:
    """Terminate or kill the program and its processes; on Windows they are always killed."""
    if os.name != "posix":
        if program.poll() is None:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(program.pid)], capture_output=True, check=False)
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses if only zombies are left
        os.killpg(program.pid, signal.SIGKILL if kill else signal.SIGTERM)


def _end_leftovers(program: subprocess.Popen) -> None:
    """End processes that the program has left behind, because they would keep its files and pipes open."""
    if os.name != "posix":
        return
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        try:
            os.killpg(program.pid, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.02)
    _stop(program, kill=True)


if __name__ == "__main__":
    main()
