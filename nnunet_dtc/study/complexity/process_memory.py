"""The memory of a process as its operating system reports it. MiB are 1024 * 1024 bytes.

Use it in a process that does one task, started with ``MALLOC`` in its environment, so that glibc returns freed blocks
to the system at once. By default glibc retains a varying number of them: the peaks of one training differed by a tenth
from run to run.
"""

import signal
import subprocess
import sys
from pathlib import Path

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes


def forget_peak() -> None:
    """Reset the peak of this process, on Linux systems that allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_mib() -> float | None:
    """Current resident memory of this process in MiB, its peak if only that is known, or None."""
    return _of_proc("VmRSS") or _getrusage()


def peak_resident_mib() -> float | None:
    """Peak of the resident memory since the start or :func:`forget_peak` in MiB; None if it is not known."""
    # on Linux getrusage is not used, because a process inherits the peak of its parent there
    return _of_proc("VmHWM") or _getrusage()


def why_ended(done: subprocess.CompletedProcess) -> str:
    """Why a measuring process failed: the signal that ended it, or the last line of its standard error."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"its process was ended by {name}" + ", perhaps out of memory" * (name == "SIGKILL")
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"its process ended with {done.returncode}"


def _of_proc(key: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024  # given in kB, which are KiB
    return None


def _getrusage() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024**2 if sys.platform == "darwin" else peak / 1024
