"""The option ``--device``."""

from typing import TYPE_CHECKING

from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    import torch


def check_device(name: str | None) -> "torch.device":
    """The device for ``--device``.

    Args:
        name: "cpu", "cuda" or "mps"; None for CUDA if available, otherwise the CPU.

    Raises:
        NnunetDtcError: it is another name, or the device is not available.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise NnunetDtcError(f"--device is cpu, cuda or mps (CUDA_VISIBLE_DEVICES selects a GPU), got {name}")
    if name == "cuda" and not torch.cuda.is_available():
        raise NnunetDtcError("--device cuda: torch finds no CUDA GPU here (see nnunet-dtc doctor)")
    if name == "mps" and not torch.backends.mps.is_available():
        raise NnunetDtcError("--device mps: torch finds no Apple GPU here")
    return torch.device(name)
