"""nnU-Net's folders: trained models, and the names and places that lead to them.

nnU-Net keeps a trained model in ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``, with plans.json, dataset.json
and a folder ``fold_<k>`` for each fold. Names are composed, split and looked up by nnU-Net's own helpers, which read
the environment variables when they are called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import find_candidate_datasets, maybe_convert_to_dataset_name
from nnunetv2.utilities.file_path_utilities import (
    convert_identifier_to_trainer_plans_config,
    convert_trainer_plans_config_to_identifier,
)

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import is_printable, read_json, shown
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, check_plans

__all__ = ["ModelFolder", "ModelFolderError", "dataset_name", "environment_folder", "model_path"]


class ModelFolderError(NnunetDtcError):
    """A folder that is not a trained model's, or a data set or an environment variable that leads to none."""


@dataclass(frozen=True, eq=False)
class ModelFolder:
    """The folder of a trained model, ``.../TRAINER__PLANS__CONFIGURATION``.

    Attributes:
        path: the folder, absolute.
        plans: the content of plans.json, whose structure is checked; for a configuration see `check_configuration`.
        dataset_json: the content of dataset.json, checked.
    """

    path: Path
    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path | str) -> ModelFolder:
        """Read plans.json and dataset.json of a model.

        Args:
            path: the folder, which may have any name, as for ``nnUNetv2_predict_from_modelfolder``.

        Raises:
            ModelFolderError: there is no such folder, or it has no plans.json or no dataset.json.
            MalformedFileError: one of the files is not as nnU-Net writes it.
        """
        path = Path(os.path.abspath(path))  # not resolved: the name of a link counts
        if not path.is_dir():
            raise ModelFolderError(f"there is no folder {path}")
        files = [path / name for name in ("plans.json", "dataset.json")]
        if missing := [file.name for file in files if not file.is_file()]:
            hint = "; give the folder that contains the folds" if path.name.startswith("fold_") else ""
            raise ModelFolderError(
                f"a trained model is a folder such as nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; there is "
                f"no {' and no '.join(missing)} in {path}{hint}"
            )
        plans, dataset_json = map(read_json, files)
        check_plans(plans, files[0])
        check_dataset_json(dataset_json, files[1])
        return cls(path, plans, dataset_json)

    def check_configuration(self, configuration: str | None = None, needed: Sequence[str] = ()) -> None:
        """Check that a configuration of the plans is complete.

        Args:
            configuration: name of the configuration; None for that in the folder's name.
            needed: additional keys that it must have, as for :func:`nnunet_dtc.plugin.nnunet_files.check_plans`.

        Raises:
            ModelFolderError: ``configuration`` is None and the folder is not named TRAINER__PLANS__CONFIGURATION.
            MalformedFileError: the configuration is missing or incomplete.
        """
        name = self.configuration if configuration is None else configuration
        check_plans(self.plans, self.path / "plans.json", name, needed=needed)

    @property
    def dataset_name(self) -> str:
        """The name of the data set that the model was planned for."""
        return self.plans["dataset_name"]

    @property
    def trainer(self) -> str:
        """The trainer in the folder's name."""
        return self._names()[0]

    @property
    def plans_name(self) -> str:
        """The plans in the folder's name."""
        return self._names()[1]

    @property
    def configuration(self) -> str:
        """The configuration in the folder's name."""
        return self._names()[2]

    def _names(self) -> Sequence[str]:
        name = self.path.name
        if not is_printable(name):
            raise ModelFolderError(f"the name of a model's folder must be printable, got {shown(name)}")
        names = convert_identifier_to_trainer_plans_config(name)
        if len(names) != 3 or not all(names):
            raise ModelFolderError(f"a model's folder is named TRAINER__PLANS__CONFIGURATION, got {self.path}")
        return names

    @property
    def folds(self) -> tuple[str, ...]:
        """The folds that have a folder: numbers in ascending order, then "all" and any others."""
        names = [folder.name.removeprefix("fold_") for folder in self.path.glob("fold_*") if folder.is_dir()]
        return tuple(sorted(names, key=lambda name: (not _is_number(name), int(name) if _is_number(name) else 0, name)))

    def fold_path(self, fold: int | str) -> Path:
        """The folder of a fold, which need not exist."""
        return self.path / f"fold_{fold}"

    def folds_with(self, name: str) -> tuple[int, ...]:
        """The numbers of the folds with a file or folder of this name. ``fold_all`` has no number."""
        return tuple(int(fold) for fold in self.folds if _is_number(fold) and (self.fold_path(fold) / name).exists())

    def checkpoint(self, fold: int | str, name: str = "checkpoint_final.pth") -> Path:
        """The file of a checkpoint.

        Args:
            fold: the number of the fold, or "all".
            name: file name of the checkpoint.

        Raises:
            ModelFolderError: there is no such fold, or no such checkpoint in it.
        """
        folder = self.fold_path(fold)
        if not folder.is_dir():
            raise ModelFolderError(f"{self.path} has no fold {fold}; it has {', '.join(self.folds) or 'none'}")
        if not (folder / name).is_file():
            others = ", ".join(sorted(file.name for file in folder.glob("checkpoint_*.pth")))
            raise ModelFolderError(f"there is no checkpoint {folder / name}; the fold has {others or 'none'}")
        return folder / name


def dataset_name(dataset: str) -> str:
    """The name of a data set, from its number or its name, as nnU-Net's commands take it.

    Args:
        dataset: such as "17", which is looked up in nnUNet_raw, nnUNet_preprocessed and nnUNet_results as far as these
            are set, or "Dataset017_BTCV".

    Raises:
        ModelFolderError: there is no data set of this number, or there are several, or it is neither of the two.

    Example:
        >>> dataset_name("Dataset017_BTCV")
        'Dataset017_BTCV'
    """
    if dataset.isdecimal() and len(found := find_candidate_datasets(int(dataset))) != 1:
        there = f"several: {', '.join(found)}; give the name" if len(found) else "none"
        raise ModelFolderError(
            f"dataset {dataset}: there must be one data set of this number, found {there} (in nnUNet_raw, "
            "nnUNet_preprocessed and nnUNet_results)"
        )
    try:
        return str(maybe_convert_to_dataset_name(dataset))
    except (RuntimeError, ValueError) as error:
        raise ModelFolderError(
            f"a data set is given by its number such as 17 or its name such as Dataset017_BTCV, got {dataset!r}"
        ) from error


def model_path(dataset: str, trainer: str, plans_name: str, configuration: str, fold: int | str | None = None) -> Path:
    """Where nnU-Net keeps a model, or a fold of it, relative to ``nnUNet_results``.

    Args:
        dataset: the name of the data set.
        trainer, plans_name, configuration: the three names.
        fold: the number of a fold, or "all"; None for the folder of the model.

    Example:
        >>> model_path("Dataset017_BTCV", "nnUNetTrainerDTC", "nnUNetPlans", "3d_fullres", 4).as_posix()
        'Dataset017_BTCV/nnUNetTrainerDTC__nnUNetPlans__3d_fullres/fold_4'
    """
    path = Path(dataset, convert_trainer_plans_config_to_identifier(trainer, plans_name, configuration))
    return path if fold is None else path / f"fold_{fold}"


def environment_folder(variable: str, needed_for: str) -> Path:
    """The folder that one of nnU-Net's environment variables names.

    Args:
        variable: such as "nnUNet_results".
        needed_for: what it is needed for, for the message.

    Raises:
        ModelFolderError: the variable is not set, or there is no such folder.
    """
    value = os.environ.get(variable)
    if not value:
        raise ModelFolderError(f"{variable} is not set, which is needed for {needed_for}: export {variable}=/a/folder")
    if not Path(value).is_dir():
        raise ModelFolderError(f"there is no folder {variable}={value}, which is needed for {needed_for}")
    return Path(value)


def _is_number(fold: str) -> bool:
    return re.fullmatch(r"0|[1-9]\d*", fold) is not None
