"""Open nnU-Net checkpoints that come from elsewhere, without running what is in them."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.nnunet_files import MalformedFileError, check_checkpoint

try:
    from numpy._core.multiarray import scalar as _numpy_scalar
except ImportError:  # numpy 1
    from numpy.core.multiarray import scalar as _numpy_scalar

# nnU-Net logs losses and Dice as numpy scalars; nothing else of numpy is in its files
_NUMPY_TYPES: list[Any] = [
    (_numpy_scalar, "numpy._core.multiarray.scalar"),
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "float16", "int64", "int32", "bool")),
]

_UNREADABLE = "{path} cannot be read; it is cut off or no checkpoint ({error})"


class CheckpointError(NnunetDtcError):
    """A checkpoint that cannot be used, with the reason and the path."""


def open_checkpoint(path: Path | str, *, to_build: bool = True) -> dict[str, Any]:
    """Read a checkpoint of an nnU-Net trainer onto the CPU, by torch's ``weights_only`` loader.

    Tensors, plain Python values and numpy scalars are read, everything else is refused: no code in the file is run.
    The structure of what nnU-Net writes is checked, with the plans and the dataset.json inside.
    The prefixes ``module.`` and ``_orig_mod.`` (DDP, torch.compile) are taken from the names of the weights.

    Args:
        path: the file.
        to_build: whether something is built from the plans inside. Then the classes that they name are checked, too:
            nnU-Net imports and calls what stands there, see :mod:`nnunet_dtc.plugin.plans_safety`.

    Raises:
        CheckpointError: no such file, cut off, holding other objects, or no checkpoint of nnU-Net v2.
        UnsafePlansError: with ``to_build``, the plans inside name something else than nnU-Net's classes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (reason := _refused_object(str(error))):
            raise CheckpointError(_UNREADABLE.format(path=path, error=_first_line(error))) from error
        raise CheckpointError(
            f"{path} is refused: it holds more than weights and plain values, and that could run code ({reason})"
        ) from error
    except Exception as error:  # torch's loaders raise anything for damaged files, AssertionError and struct.error too
        raise CheckpointError(_UNREADABLE.format(path=path, error=_first_line(error))) from error

    try:
        check_checkpoint(checkpoint, path)
    except MalformedFileError as error:
        raise CheckpointError(str(error)) from error
    if to_build:
        from nnunet_dtc.plugin.plans_safety import check_names

        arguments = checkpoint["init_args"]
        check_names(arguments["plans"], arguments["configuration"], path, "init_args.plans")
    checkpoint["network_weights"] = {
        key.removeprefix("module.").removeprefix("_orig_mod."): value
        for key, value in checkpoint["network_weights"].items()
    }
    return checkpoint


def is_second_name(key: str) -> bool:
    """Whether a weight's name is a second one: nnU-Net's networks hold some modules under two."""
    return key.startswith("decoder.encoder.") or re.search(r"\.all_modules\.\d+\.", key) is not None


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _refused_object(message: str) -> str:
    """The line in which torch's loader names what it does not open, empty where it stumbled over something else."""
    telling = ("GLOBAL", "unrecognized function", "Can only", "Cannot create")
    lines = (line.strip() for line in message.splitlines()[1:])
    return next((line for line in lines if any(words in line for words in telling)), "")
