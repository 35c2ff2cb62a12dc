"""A trained model with DTC blocks: one fold of it, loaded by torch's safe loader."""

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import nn

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.coordinates import axis_names
from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.plugin.checkpoints import open_checkpoint
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.model_folder import ModelFolder
from nnunet_dtc.plugin.planned_networks import build_network, describe_error
from nnunet_dtc.plugin.plans_safety import check_names

# keys of a configuration that preprocessing needs in addition
_NEEDED = ("spacing", "preprocessor_name", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data")


class CoordinatesError(NnunetDtcError):
    """A model or an image whose coordinates cannot be shown."""


@dataclass(frozen=True)
class TrainedModel:
    """One fold of a trained model with DTC blocks.

    Attributes:
        folder: the model's folder.
        fold: the fold, a number or "all".
        checkpoint: file name of the checkpoint.
        trainer: name of the trainer.
        configuration: name of the configuration.
        epochs: number of epochs before the checkpoint was written.
        predictor: nnU-Net's predictor with the network, the plans and the labels.
    """

    folder: ModelFolder
    fold: str
    checkpoint: str
    trainer: str
    configuration: str
    epochs: int
    predictor: nnUNetPredictor

    @property
    def network(self) -> nn.Module:
        return unwrap(self.predictor.network)

    @property
    def channels(self) -> int:
        """Channels of the model's images."""
        description = self.folder.dataset_json
        return len(description.get("channel_names") or description["modality"])

    @property
    def spacing_mm(self) -> tuple[float, ...]:
        """Spacing of the network's input per axis."""
        return tuple(float(step) for step in self.predictor.configuration_manager.spacing)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the network's axes."""
        return axis_names(self.predictor.plans_manager.transpose_forward, len(self.spacing_mm))

    @property
    def has_spacing(self) -> bool:
        """Whether the model's images have a spacing in mm. Photographs have none; nnU-Net gives their pixels 1 mm."""
        return self.folder.plans["image_reader_writer"] != "NaturalImage2DIO"


def load_model(folder: Path, fold: str = "0", checkpoint: str = "checkpoint_final.pth") -> TrainedModel:
    """Load one fold of a trained model into nnU-Net's predictor.

    The trainers need not be registered.

    Args:
        folder: the model's folder, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.
        fold: a number, or "all".
        checkpoint: file name of the checkpoint.

    Raises:
        ModelFolderError: the folder is not that of a trained model, or has no such fold or checkpoint.
        CoordinatesError: the model has no DTC block, or its weights do not fit the network of its plans.
        NetworkError: the network cannot be built from the plans.
        TrainerNotFoundError: there is no such trainer.
        CheckpointError: the checkpoint cannot be read safely.
        MalformedFileError: plans.json or dataset.json is not as nnU-Net writes it.
        UnsafePlansError: the plans name a class that is not nnU-Net's.
    """
    model = ModelFolder.read(folder)
    file = model.checkpoint(fold, checkpoint)
    content = open_checkpoint(file)
    weights = content["network_weights"]
    trainer, configuration = content["trainer_name"], content["init_args"]["configuration"]
    if not any(key.endswith(".coords.weight") for key in weights):
        raise CoordinatesError(f"the model in {folder} has no DTC block (its trainer is {trainer}): no coordinates")
    origin = model.path / "plans.json"
    model.check_configuration(configuration, needed=_NEEDED)
    check_names(model.plans, configuration, origin)
    network = build_network(
        find_trainer(trainer), model.plans, configuration, model.dataset_json, deep_supervision=False, origin=origin
    )
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise CoordinatesError(
            f"the weights in {file} do not fit the network of plans.json: {describe_error(error)}"
        ) from error
    predictor = _predictor(network, model, trainer, configuration, content)
    return TrainedModel(
        model, fold, checkpoint, trainer, configuration, int(content.get("current_epoch", 0)), predictor
    )


def quietly(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of nnU-Net without what it prints and warns of."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)


def _predictor(
    network: nn.Module, model: ModelFolder, trainer: str, configuration: str, content: Mapping[str, Any]
) -> nnUNetPredictor:
    plans = PlansManager(model.plans)
    predictor = quietly(nnUNetPredictor, device=torch.device("cpu"), allow_tqdm=False)
    quietly(
        predictor.manual_initialization,
        network,
        plans,
        plans.get_configuration(configuration),
        [content["network_weights"]],
        model.dataset_json,
        trainer,
        content.get("inference_allowed_mirroring_axes"),
    )
    return predictor
