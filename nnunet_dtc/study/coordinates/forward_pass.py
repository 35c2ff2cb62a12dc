"""The coordinates that a trained model predicts for a patch."""

import contextlib
from dataclasses import dataclass

import numpy as np
import torch

from nnunet_dtc.architectures.padding import size_inside
from nnunet_dtc.ops.coordinates import StageCoordinates, StageStatistics, collect, measure
from nnunet_dtc.plugin.planned_networks import describe_error
from nnunet_dtc.study.coordinates.image_patch import ImagePatch
from nnunet_dtc.study.coordinates.trained_model import CoordinatesError, TrainedModel


@dataclass(frozen=True)
class PatchCoordinates:
    """The coordinates of a model for a patch.

    Attributes:
        model: the model.
        patch: the patch.
        segmentation (int[*patch]): the model's segmentation of this patch alone, without mirroring.
        stages: the coordinates of every block in the order of the forward pass.
        statistics: statistics of these stages.
    """

    model: TrainedModel
    patch: ImagePatch
    segmentation: np.ndarray
    stages: tuple[StageCoordinates, ...]
    statistics: tuple[StageStatistics, ...]


def find_coordinates(model: TrainedModel, patch: ImagePatch, device: torch.device | str = "cpu") -> PatchCoordinates:
    """Run the network on the patch once, on CUDA in mixed precision as nnU-Net predicts.

    Raises:
        CoordinatesError: the network does not take the patch, or there is not enough memory.
    """
    device = torch.device(device)
    try:
        network = model.network.to(device)
        data = torch.from_numpy(patch.data)[None].to(device)  # (1, C, *patch)
        with torch.autocast("cuda") if device.type == "cuda" else contextlib.nullcontext():
            logits, stages = collect(network.eval(), data)
    except (RuntimeError, MemoryError) as error:
        raise CoordinatesError(
            f"the network of {model.trainer} cannot compute a patch of {patch.data.shape[1:]} voxels on {device.type}: "
            f"{describe_error(error)}"
        ) from error
    segmentation = model.predictor.label_manager.convert_logits_to_segmentation(logits[0].float().cpu())
    size = size_inside(model.network, patch.data.shape[1:])
    statistics = measure(stages, size, model.spacing_mm, model.axes)
    return PatchCoordinates(model, patch, np.asarray(segmentation), tuple(stages), tuple(statistics))
