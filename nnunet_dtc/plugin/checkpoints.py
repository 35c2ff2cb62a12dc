"""Checkpoints that may come from anywhere are read without running code that they contain."""

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import MalformedFileError
from nnunet_dtc.plugin.nnunet_files import check_checkpoint
from nnunet_dtc.plugin.plans_safety import check_names
from nnunet_dtc.torch_internals import COMPILED_PREFIX

# nnU-Net logs losses and Dice as numpy scalars; its files contain nothing else of numpy. What unpickles a scalar has no
# public name, and numpy 1 and 2 write different ones.
_numpy_scalar = np.float64(0).__reduce__()[0]
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
    """Read a checkpoint of an nnU-Net trainer to the CPU with torch's ``weights_only`` loader.

    Tensors, plain Python values and numpy scalars are read; everything else is refused, so no code in the file is run.
    The structure of the checkpoint is checked, with the plans and the dataset.json in it. The prefixes ``module.`` and
    ``_orig_mod.`` (DistributedDataParallel, ``torch.compile``) are removed from the names of the weights.

    Args:
        path: the file.
        to_build: whether a network is built from the plans in the checkpoint. If so, the classes that they name are
            checked too, because nnU-Net imports and calls them (:mod:`nnunet_dtc.plugin.plans_safety`).

    Raises:
        CheckpointError: there is no such file, it is cut off, contains other objects, or is not a checkpoint of
            nnU-Net v2.
        UnsafePlansError: with ``to_build``, the plans name something other than nnU-Net's classes.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}")
    try:
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not (reason := _refused_object(str(error))):
            raise CheckpointError(_UNREADABLE.format(path=path, error=first_line(error))) from error
        raise CheckpointError(
            f"{path} is refused: it contains more than weights and plain values, which could run code ({reason})"
        ) from error
    except Exception as error:  # torch raises all kinds for damaged files, AssertionError and struct.error among them
        raise CheckpointError(_UNREADABLE.format(path=path, error=first_line(error))) from error

    try:
        check_checkpoint(checkpoint, path)
    except MalformedFileError as error:
        raise CheckpointError(str(error)) from error
    if to_build:
        arguments = checkpoint["init_args"]
        check_names(arguments["plans"], arguments["configuration"], path, "init_args.plans")
    checkpoint["network_weights"] = {
        key.removeprefix("module.").removeprefix(COMPILED_PREFIX): value
        for key, value in checkpoint["network_weights"].items()
    }
    return checkpoint


def is_second_name(key: str) -> bool:
    """Whether a weight is registered under another name too: nnU-Net's networks register some modules twice.

    Example:
        >>> is_second_name("decoder.encoder.stages.0.0.convs.0.conv.weight")
        True
        >>> is_second_name("encoder.stages.0.0.convs.0.conv.weight")
        False
    """
    return key.startswith("decoder.encoder.") or re.search(r"\.all_modules\.\d+\.", key) is not None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _refused_object(message: str) -> str:
    """The line in which torch's loader names the object that it refuses; empty if the message names none."""
    signs = ("GLOBAL", "unrecognized function", "Can only", "Cannot create")
    lines = (line.strip() for line in message.splitlines()[1:])
    return next((line for line in lines if any(words in line for words in signs)), "")
