"""The trainer class of a name, as nnU-Net finds it."""

import contextlib
import io

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.ext_trainer.nnunet_dtc_trainers import defined_by
from nnunet_dtc.trainers import trainer_class
from nnunet_dtc.trainers.names import TrainerNameError


class TrainerNotFoundError(NnunetDtcError):
    """A name of a trainer that nobody has, or that is not spelled as this package's trainers are."""


def find_trainer(name: str) -> type[nnUNetTrainer]:
    """The class that nnU-Net itself takes for this name; ours where nobody else has it, registered or not.

    Raises:
        TrainerNotFoundError: nobody has it, or it is a malformed name of ours; with the name to use or the grammar.
    """
    if not name.isidentifier():
        raise TrainerNotFoundError(f"a trainer's name is the name of a class, got {name!r}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # nnU-Net says where it looks
            found = trainer_class(name) if defined_by(name) is None else recursive_find_trainer_class_by_name(name)
    except (AttributeError, AssertionError, TrainerNameError, RuntimeError) as error:
        raise TrainerNotFoundError(f"there is no trainer {name}: {error}") from error
    except TypeError as error:  # nnU-Net's modules have a name like this, but it is no class
        raise TrainerNotFoundError(f"there is no trainer {name}: what nnU-Net finds is no class") from error
    return found
