"""The networks that trainers build from plans which may come from anywhere.

A network that does not fit into the machine's memory is refused before it is built, because the system may kill a
process that runs out of memory without any message.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
    from torch import nn

__all__ = [
    "NetworkError",
    "build_network",
    "build_without_memory",
    "check_fits",
    "describe_error",
    "gib",
    "memory_of_machine",
]

_GIB = 1024**3


class NetworkError(NnunetDtcError):
    """A network that cannot be built from plans, with the reason."""


def build_network(
    trainer: type[nnUNetTrainer],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    deep_supervision: bool,
    origin: object = "the plans",
) -> nn.Module:
    """Build the network of a trainer on the CPU, with random weights.

    Nothing is checked here: nnU-Net imports and calls what plans name, so plans of unknown origin must have passed
    :func:`nnunet_dtc.plugin.nnunet_files.check_plans` and :func:`nnunet_dtc.plugin.plans_safety.check_names`.

    Args:
        trainer: class of the trainer.
        plans: nnU-Net's plans; they are not changed.
        configuration: name of the configuration.
        dataset_json: content of dataset.json, for the numbers of channels and classes.
        deep_supervision: whether the network returns an output for each level of its decoder.
        origin: the file of the plans, for messages.

    Raises:
        NetworkError: the trainer cannot build its network from these plans, or it does not fit into the memory.
    """
    shapes = build_without_memory(trainer, plans, configuration, dataset_json, deep_supervision)
    if shapes is not None:
        tensors = (*shapes.parameters(), *shapes.buffers())
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        check_fits(needed, f"the network of {trainer.__name__} from {origin}")
    try:
        return _build(trainer, plans, configuration, dataset_json, deep_supervision)
    except Exception as error:  # nnU-Net's networks and users' trainers may raise anything
        raise NetworkError(
            f"{trainer.__name__} cannot build its network from {origin}: {describe_error(error)}"
        ) from error


def build_without_memory(
    trainer: type[nnUNetTrainer],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    deep_supervision: bool,
) -> nn.Module | None:
    """Build the network of a trainer on torch's device "meta": shapes and dtypes without memory.

    Args:
        trainer, plans, configuration, dataset_json, deep_supervision: as for :func:`build_network`.

    Returns:
        The network, or None if it cannot be built on that device. Either the plans are wrong, which
        :func:`build_network` reports, or the network reads values of tensors while it is built.
    """
    try:
        with torch.device("meta"):
            return _build(trainer, plans, configuration, dataset_json, deep_supervision)
    except Exception:  # nnU-Net's networks and users' trainers may raise anything
        return None


def check_fits(needed: float, what: str) -> None:
    """Refuse what does not fit into the machine's memory.

    Args:
        needed: number of bytes.
        what: what needs them, for the message.

    Raises:
        NetworkError: the machine has less memory.
    """
    available = memory_of_machine()
    if available is not None and needed > available:
        raise NetworkError(f"{what} needs at least {gib(needed)} of memory, this machine has {gib(available)}")


def memory_of_machine() -> int | None:
    """Bytes of memory of the machine, or of the container if that has a limit; None if unknown."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # the file says "max" if there is no limit
            memory = min(memory, int(Path(limit).read_text()))
    return memory


def gib(number: float) -> str:
    """Bytes in GiB with three digits.

    Example:
        >>> gib(5 * 2**29)
        '2.5 GiB'
    """
    return f"{number / _GIB:,.3g} GiB" if number < 1000 * _GIB else f"{number / _GIB:,.0f} GiB"


def describe_error(error: BaseException) -> str:
    """The message of an error raised by other libraries, with the error's class if the message alone is not clear."""
    text = str(error).strip()
    clear = type(error) in (RuntimeError, ValueError) or isinstance(error, NnunetDtcError)
    return text if text and clear else f"{type(error).__name__} {text}".strip()


def _build(
    trainer: type[nnUNetTrainer],
    plans: Mapping[str, Any],
    configuration: str,
    dataset_json: Mapping[str, Any],
    deep_supervision: bool,
) -> nn.Module:
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(deepcopy(dict(plans)))  # nnU-Net changes plans of the old format
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # nnU-Net prints what it searches for
        warnings.simplefilter("ignore")
        planned = manager.get_configuration(configuration)
        return trainer.build_network_architecture(
            manager,
            planned,
            determine_num_input_channels(manager, planned, dict(dataset_json)),
            manager.get_label_manager(dict(dataset_json)).num_segmentation_heads,
            deep_supervision,
        )
