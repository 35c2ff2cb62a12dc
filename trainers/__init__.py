"""nnU-Net trainer classes by name: ``from nnunet_dtc.trainers import nnUNetTrainerDTC``.

Every name of the grammar, which ``nnunet-dtc trainers`` prints, is an attribute of this module. Classes are created
when they are first used; until then nnU-Net is not imported.
"""

import functools
from typing import TYPE_CHECKING

from nnunet_dtc.registry import OPTIMIZERS, load
from nnunet_dtc.trainers import names

if TYPE_CHECKING:
    from nnunet_dtc.trainers.planned_unet import nnUNetTrainerDTC as nnUNetTrainerDTC

hints_given: set[str] = set()  # not in the file that prints the hints, which nnU-Net imports again in every search


@functools.cache
def trainer_class(name: str) -> type:
    """The trainer class of a name; always the same object for the same name.

    Args:
        name: such as "nnUNetTrainerDTC_RF10".

    Raises:
        AttributeError: the name is not one of this package.
        TrainerNameError: the name is one of this package, but malformed.

    Example:
        >>> trainer_class("nnUNetTrainerDTC_RF10_7epochs").spec
        TrainerName(dtc=True, receptive_field=10.0, epochs=7)
    """
    spec = names.parse(name)
    if spec is None:
        raise AttributeError(f"{name} is not a trainer of nnunet-dtc; its names are {names.GRAMMAR}")

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


def __getattr__(name: str) -> type:
    if not name.startswith(names.PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer_class(name)
