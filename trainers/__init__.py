"""nnU-Net trainer classes by name: ``from nnunet_dtc.trainers import nnUNetTrainerDTC``.

Every name of the grammar, which ``nnunet-dtc trainers`` prints, is an attribute of this module, and so are repetitions
of other trainers, such as ``nnUNetTrainerDA5_rep2``. Classes are created when they are first used; until then nnU-Net
is not imported.
"""

import contextlib
import functools
import io
from typing import TYPE_CHECKING

from nnunet_dtc.registry import OPTIMIZERS, load
from nnunet_dtc.trainers import names

if TYPE_CHECKING:
    from nnunet_dtc.trainers.planned_unet import nnUNetTrainerDTC as nnUNetTrainerDTC

_searched: set[str] = set()  # repetitions of others' trainers that nnU-Net is being asked for
hints_given: set[str] = set()  # not in the file that prints the hints, which nnU-Net imports again in every search


@functools.cache
def trainer_class(name: str) -> type:
    """The trainer class of a name; always the same object for the same name.

    Args:
        name: such as "nnUNetTrainerDTC_RF10", or that of another trainer with `_rep<k>`.

    Raises:
        AttributeError: the name is not one of this package, nor a repetition of a trainer that nnU-Net finds.
        TrainerNameError: the name is one of this package, but malformed.

    Example:
        >>> trainer_class("nnUNetTrainerDTC_RF10_7epochs").spec
        TrainerName(dtc=True, receptive_field=10.0, epochs=7)
    """
    try:
        if (spec := names.parse(name)) is None:
            raise AttributeError(f"{name} is not a trainer of nnunet-dtc; its names are {names.GRAMMAR}")
    except AttributeError:  # also of an unknown suffix
        if (repetition := _repetition_of_other(name)) is None:
            raise
        return repetition

    from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
        nnUNetTrainerNoMirroring,
    )

    from nnunet_dtc.trainers.base import NamedTrainer
    from nnunet_dtc.trainers.coordinates_record import CoordinatesRecord
    from nnunet_dtc.trainers.networks import network_trainer
    from nnunet_dtc.trainers.planned_unet import nnUNetTrainerDTC

    if spec == nnUNetTrainerDTC.spec:
        return nnUNetTrainerDTC
    if spec.dtc and not spec.network and not spec.upsampler:
        bases: list[type] = [nnUNetTrainerDTC]
    elif spec.dtc:
        bases = [CoordinatesRecord, network_trainer(spec.network)]
    elif spec.network or spec.upsampler:
        bases = [network_trainer(spec.network)]
    else:
        bases = [NamedTrainer]
    if spec.optimizer == names.PAPER2D:
        from nnunet_dtc.trainers.paper2d import Paper2DRecipe

        bases.append(Paper2DRecipe)
    else:
        if not spec.mirroring:
            bases.append(nnUNetTrainerNoMirroring)
        if spec.optimizer != names.DEFAULT_OPTIMIZER:
            bases.append(load(OPTIMIZERS[spec.optimizer].trainer))
    return type(name, tuple(bases), {"spec": spec, "__module__": __name__})  # pickle finds it in this module


def is_searching() -> bool:
    """Whether nnU-Net is being asked for a trainer of others, of which this is a repetition."""
    return bool(_searched)


def _repetition_of_other(name: str) -> type | None:
    """The class of a trainer of others whose name has `_rep<k>`: a subclass that differs in its name alone.

    A class that another file makes for this very name comes first.

    Returns:
        The class, or None if the name has no `_rep<k>`, does not begin with nnUNetTrainer, or nnU-Net finds no trainer
        without `_rep<k>`.
    """
    original, repetition = names.split_repetition(name)
    if repetition == 1 or not name.startswith(names.PREFIX) or name in _searched:  # nnU-Net's search comes back here
        return None
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    _searched.add(name)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints where it searches
            for candidate in (name, original):
                # there is none, it is not a trainer, or it is not a class
                with contextlib.suppress(RuntimeError, AssertionError, TypeError):
                    found = recursive_find_trainer_class_by_name(candidate)
                    return found if candidate == name else type(name, (found,), {"__module__": __name__})
    finally:
        _searched.remove(name)
    return None


def __getattr__(name: str) -> type:
    if not name.startswith(names.PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer_class(name)
