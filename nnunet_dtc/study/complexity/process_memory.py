"""How much memory a process takes, as its operating system sees it. MiB are 1024 * 1024 bytes.

Meant for a process that does one thing: what one used cannot hide in another. Start it with ``MALLOC`` in its
environment; glibc then gives freed blocks back at once. By default it keeps many of them, and how many depends on
chance: the peaks of one training then differed by a tenth from run to run.
"""

import signal
import subprocess
import sys
from pathlib import Path

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}  # bytes


def forget_peak() -> None:
    """Let Linux's peak be that of what follows, where it lets itself be reset."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def resident_mib() -> float | None:
    """Resident memory of this process now, in MiB; where only its peak is known, that; None where neither is."""
    return _of_proc("VmRSS") or _getrusage()


def peak_resident_mib() -> float | None:
    """The largest since the process began, or since :func:`forget_peak`, in MiB; None where it is not known."""
    # not getrusage on Linux: there a process inherits the peak of the one that started it
    return _of_proc("VmHWM") or _getrusage()


def why_ended(done: subprocess.CompletedProcess) -> str:
    """Why a process that was to measure did not end well: a signal, or the last line of its errors (text)."""
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
