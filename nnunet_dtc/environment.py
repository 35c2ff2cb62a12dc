"""The machine around a command: its device, and environment variables for a while."""

import contextlib
import os
from collections.abc import Iterator

import torch

from nnunet_dtc.errors import NnunetDtcError


def check_device(name: str | None) -> torch.device:
    """The device of a name ("cpu", "cuda", "mps"), CUDA where there is one and the CPU elsewhere for None.

    Raises:
        NnunetDtcError: it is not there, or is none of these.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise NnunetDtcError(f"--device is cpu, cuda or mps (CUDA_VISIBLE_DEVICES chooses a GPU), got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise NnunetDtcError("--device cuda: torch finds no CUDA GPU here (nnunet-dtc doctor says what it finds)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise NnunetDtcError("--device mps: torch finds no Apple GPU here")
    return torch.device(name)


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """These environment variables until the block ends, then what was there before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
