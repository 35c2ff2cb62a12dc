"""Find the trainer class of a name, as nnU-Net does."""

import contextlib
import io

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.ext_trainer.nnunet_dtc_trainers import defined_by
from nnunet_dtc.trainers import trainer_class
from nnunet_dtc.trainers.names import TrainerNameError, is_class_name


class TrainerNotFoundError(NnunetDtcError):
    """There is no trainer of this name, or it is another spelling of one of this package's names."""


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The class that nnU-Net finds for this name, or this package's if no other has it, registered or not.

    Args:
        name: such as "nnUNetTrainer" or "nnUNetTrainerDTC_RF10".

    Raises:
        TrainerNotFoundError: there is no such trainer, or the name is a malformed one of this package. The message
            gives the name to use, or the grammar.
    """
    if not (name.isidentifier() or is_class_name(name)):
        raise TrainerNotFoundError(f"a trainer's name is the name of a class, got {name!r}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net prints where it searches
            found = _found(name)
    except (AttributeError, AssertionError, TrainerNameError, RuntimeError) as error:
        raise TrainerNotFoundError(f"there is no trainer {name}: {error}") from error
    except TypeError as error:  # one of nnU-Net's modules has an attribute of this name that is not a class
        raise TrainerNotFoundError(f"there is no trainer {name}: what nnU-Net finds is not a class") from error
    return found


def _found(name: str) -> type[nnUNetTrainer]:
    if defined_by(name) is not None:
        return recursive_find_trainer_class_by_name(name)
    try:
        return trainer_class(name)
    except AttributeError as error:  # a user's module may make classes by a __getattr__ of its own
        try:
            return recursive_find_trainer_class_by_name(name)
        except RuntimeError:
            raise error from None
