"""What jobs on one machine must not use at the same time: a fold's folder, a GPU, a CPU core.

Locks are the system's (`flock`): they end with the process that holds them, however it ends, so a lock is never stale.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.processes import find_program
from nnunet_dtc.work_folders import NO_LOCKS

__all__ = ["Lock", "device_of_its_own", "scheduler_job", "visible_gpus"]

RETRY_S = 2.0
PATIENCE_S = 900.0
"""How long a job of a scheduler waits for another job: it keeps a node, and Snakemake's `--retries` can try again."""

_JOB_VARIABLES = ("SLURM_JOB_ID", "LSB_JOBID", "PBS_JOBID")


class BusyError(NnunetDtcError):
    """Another job does not end what this one waits for."""


class Lock:
    """A lock on a file, for the time of a `with` block of `waiting`; or until `release`.

    Attributes:
        file: the file.
        descriptor: descriptor of the open file. A process that inherits it also keeps the lock.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError as error:  # another user has made it
            try:
                self.descriptor = os.open(file, os.O_RDONLY)
            except FileNotFoundError:
                raise error from None
        else:
            with contextlib.suppress(OSError):  # whoever may write into the folder may lock
                os.fchmod(self.descriptor, file.parent.stat().st_mode & 0o666)

    def taken(self) -> bool:
        """Try to take the lock. Returns whether this process has it now; True where the file system has no locks."""
        import fcntl  # not on Windows

        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EBADF:  # NFS locks for those alone who may write
                raise PermissionError(errno.EACCES, "a lock of another user", str(self.file)) from error
            if error.errno not in NO_LOCKS:
                raise
        return True

    def release(self) -> None:
        os.close(self.descriptor)

    @classmethod
    @contextlib.contextmanager
    def waiting(
        cls, file: Path, tell: Callable[[str], None], what: str, beat: Callable[[], None] = lambda: None
    ) -> Iterator[Lock]:
        """Hold the lock within the block, which begins when nobody else holds it.

        Args:
            tell: is given a line if it has to wait.
            what: is waited for, for that line.
            beat: is called while it waits.

        Raises:
            BusyError: in a job of a scheduler, somebody else still holds it after `PATIENCE_S`.
        """
        lock = cls(file)
        try:
            if not lock.taken():
                tell(f"waiting: {what}")
                for _ in _waits(what):
                    if lock.taken():
                        break
                    beat()
            yield lock
        finally:
            lock.release()


def scheduler_job() -> str:
    """The number of the scheduler's job that this process is in; "" for none."""
    return next((value for name in _JOB_VARIABLES if (value := os.environ.get(name))), "")


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() and gpu.strip() != "-1"]
    import torch

    return list(map(str, range(torch.cuda.device_count())))


@contextlib.contextmanager
def device_of_its_own(
    device: str, tell: Callable[[str], None], beat: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, list[int]]]:
    """Wait for a free GPU (or CPU core), and keep it for this process and those that it starts.

    It is chosen by CUDA_VISIBLE_DEVICES, or the CPU affinity. Only jobs of this user are kept apart; within a job of a
    scheduler, only those of this job, which may number its GPUs from 0.

    Args:
        device: `cuda`, `cpu` or `mps`.
        tell: is given what is waited for.
        beat: is called while it waits.

    Yields:
        What it is called, such as "GPU 3", and the descriptors of its lock.

    Raises:
        BusyError: in a job of a scheduler, all are still in use after `PATIENCE_S`.
    """
    names = _names(device)
    if not names:
        yield device, []
        return
    lock, name = _first_free(device, names, tell, beat)
    try:
        _use(device, name)
        yield f"{'CPU' if device == 'cpu' else 'GPU'} {name}", [lock.descriptor]
    finally:
        lock.release()


def _names(device: str) -> list[str]:
    if device == "cuda":
        return visible_gpus()
    if device == "mps":
        return ["0"]
    if device == "cpu" and hasattr(os, "sched_getaffinity") and not scheduler_job():  # which gives cores itself
        return list(map(str, sorted(os.sched_getaffinity(0))))
    return []


def _first_free(
    device: str, names: Sequence[str], tell: Callable[[str], None], beat: Callable[[], None]
) -> tuple[Lock, str]:
    folder = Path(tempfile.gettempdir(), f"nnunet_dtc_devices_{os.getuid()}", scheduler_job() or "none")
    files = {name: re.sub(r"[^\w.-]", "_", f"{device}_{_identity(device, name)}") for name in names}
    reported = False
    for _ in _waits(f"{device} {', '.join(names)}"):
        for name, file in files.items():
            lock = Lock(folder / file)
            if lock.taken():
                return lock, name
            lock.release()
        if not reported:
            tell(f"waiting: all of {device} {', '.join(names)} are in use by other jobs")
            reported = True
        beat()
    raise AssertionError  # _waits ends by an exception


def _waits(what: str) -> Iterator[None]:
    """Tries, with pauses between them."""
    until = time.monotonic() + PATIENCE_S
    while True:
        yield
        if scheduler_job() and time.monotonic() > until:
            raise BusyError(
                f"still waiting after {PATIENCE_S / 60:.0f} min for {what}; with --retries, Snakemake tries again"
            )
        time.sleep(RETRY_S)


def _identity(device: str, name: str) -> str:
    """The UUID of a GPU that CUDA_VISIBLE_DEVICES names by its number or by the beginning of its UUID.

    Two studies may name the same GPU differently. Without nvidia-smi, the name itself.
    """
    if device != "cuda":
        return name
    for number, uuid in _uuids().items():
        if name == number or (name.startswith("GPU-") and uuid.startswith(name)):
            return uuid
    return name


def _uuids() -> dict[str, str]:
    """The UUIDs of all GPUs of this machine, by number."""
    program = find_program("nvidia-smi")
    if program is None:
        return {}
    query = [program, "--query-gpu=index,uuid", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = (line.split(",") for line in listed.splitlines() if "," in line)
    return {number.strip(): uuid.strip() for number, uuid in rows}


def _use(device: str, name: str) -> None:
    if device == "cuda":
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # nvidia-smi's, whose numbers `_uuids` reads
        os.environ["CUDA_VISIBLE_DEVICES"] = name
    elif device == "cpu":
        os.sched_setaffinity(0, {int(name)})
