"""nnU-Net trainer classes by their names: ``from nnunet_dtc.trainers import nnUNetTrainerDTC``.

Every name of the grammar (``nnunet-dtc trainers`` prints it) is an attribute of this module; a name asked for twice is
the same class object. Importing the module alone imports no nnU-Net.
"""

import functools
from typing import TYPE_CHECKING

from nnunet_dtc.registry import OPTIMIZERS, load
from nnunet_dtc.trainers import names

if TYPE_CHECKING:
    from nnunet_dtc.trainers.planned_unet import nnUNetTrainerDTC as nnUNetTrainerDTC

hints_given: set[str] = set()  # here, because nnU-Net imports the file that gives the hints anew at every search


@functools.cache
def trainer_class(name: str) -> type:
    """The trainer class of a name.

    Raises:
        AttributeError: the name is not ours.
        nnunet_dtc.trainers.names.TrainerNameError: a ValueError; the name is ours, but malformed.
    """
    spec = names.parse(name)
    if spec is None:
        raise AttributeError(f"{name} is no trainer of nnunet-dtc; its names are {names.GRAMMAR}")

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
    # under this module and name Python finds the class again
    return type(name, tuple(bases), {"spec": spec, "__module__": __name__, "__doc__": f"{name}: {spec!r}"})


def __getattr__(name: str) -> type:
    if not name.startswith(names.PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return trainer_class(name)
