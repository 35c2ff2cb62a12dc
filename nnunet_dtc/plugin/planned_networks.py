"""Build the network of a trainer from plans that may have come from anywhere.

What plans name is checked before it is called, and what would not fit into the machine's memory is not tried: the
kernel may end the process that asks for it, without a word.
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
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, check_plans
from nnunet_dtc.plugin.plans_safety import check_names

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
    """The network that nnU-Net builds with this trainer, on the CPU, with random weights.

    Args:
        trainer: its class.
        plans: nnU-Net's plans, which stay as they are.
        configuration: the name of the configuration.
        dataset_json: of the data set, for the numbers of channels and classes.
        deep_supervision: whether the network gives an output per level.
        origin: the file of the plans, for messages.

    Raises:
        MalformedFileError: the plans or dataset.json are not as nnU-Net writes them.
        UnsafePlansError: the plans name something else than nnU-Net's classes.
        NetworkError: the trainer cannot build its network from these plans, or it does not fit into the memory.
    """
    check_plans(plans, origin, configuration)
    check_dataset_json(dataset_json, "dataset.json")
    check_names(plans, configuration, origin)
    shapes = build_without_memory(trainer, plans, configuration, dataset_json, deep_supervision)
    if shapes is not None:
        check_fits(_bytes_of(shapes), f"the network of {trainer.__name__} from {origin}")
    try:
        return _build(trainer, plans, configuration, dataset_json, deep_supervision)
    except Exception as error:  # of nnU-Net's networks and of any trainer's own code
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
    """The network with shapes and dtypes alone, on torch's device "meta", where no memory is allocated.

    Args:
        trainer, plans, configuration, dataset_json, deep_supervision: as :func:`build_network` takes them. What the
            plans name must have been checked.

    Returns:
        The network, or None where it cannot be built that way: :func:`build_network` says what is wrong. Some networks
        read numbers from tensors, which there are none of.
    """
    try:
        with torch.device("meta"):
            return _build(trainer, plans, configuration, dataset_json, deep_supervision)
    except Exception:  # of nnU-Net's networks and of any trainer's own code
        return None


def check_fits(needed: float, what: str) -> None:
    """Refuse what needs more bytes than the machine's memory has.

    Raises:
        NetworkError: with both numbers.
    """
    there = memory_of_machine()
    if there is not None and needed > there:
        raise NetworkError(f"{what} needs at least {gib(needed)} of memory, this machine has {gib(there)}")


def memory_of_machine() -> int | None:
    """Bytes of memory of the machine, or of the container where it has a limit; None where that is not known."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return None
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # "max" where there is none
            there = min(there, int(Path(limit).read_text()))
    return there


def gib(number: float) -> str:
    """Bytes in GiB, with three digits."""
    return f"{number / _GIB:,.3g} GiB" if number < 1000 * _GIB else f"{number / _GIB:,.0f} GiB"


def describe_error(error: BaseException) -> str:
    """The message of an error of other people's code, with its kind where the message alone says little."""
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
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # it says what it looks for
        warnings.simplefilter("ignore")
        planned = manager.get_configuration(configuration)
        return trainer.build_network_architecture(
            manager,
            planned,
            determine_num_input_channels(manager, planned, dict(dataset_json)),
            manager.get_label_manager(dict(dataset_json)).num_segmentation_heads,
            deep_supervision,
        )


def _bytes_of(network: nn.Module) -> int:
    """Of its parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))
