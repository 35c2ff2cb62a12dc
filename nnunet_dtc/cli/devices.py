"""The option ``--device``."""

from typing import TYPE_CHECKING

from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    import torch


def check_device(name: str | None) -> "torch.device":
    """The device of a name ("cpu", "cuda", "mps"), CUDA where there is one and the CPU elsewhere for None.

    Raises:
        NnunetDtcError: it is not there, or is none of these.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise NnunetDtcError(f"--device is cpu, cuda or mps (CUDA_VISIBLE_DEVICES chooses a GPU), got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise NnunetDtcError("--device cuda: torch finds no CUDA GPU here (nnunet-dtc doctor says what it finds)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise NnunetDtcError("--device mps: torch finds no Apple GPU here")
    return torch.device(name)
