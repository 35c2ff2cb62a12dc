"""A patch of an image, as a trained model sees it: nnU-Net's own preprocessing, and where the patch is cut out."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from scipy import ndimage

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import check_utf8
from nnunet_dtc.plugin.planned_networks import check_fits, describe_error
from nnunet_dtc.study.coordinates.trained_model import CoordinatesError, TrainedModel, quietly
from nnunet_dtc.study.evaluation.readers import check_image_file, check_labels_fit, find_reader


@dataclass(frozen=True)
class ImagePatch:
    """A part of a preprocessed image that is as large as the network's patch.

    Attributes:
        case: name of the image.
        files: the image's files, one per channel.
        data (float32[C, *patch]): input of the network.
        start: first voxel of the patch in the preprocessed and padded image, per axis of the network.
        slice: number of the slice that a 2D network sees of a volume; otherwise None.
        image_size: voxels of the preprocessed image per axis of the network.
    """

    case: str
    files: tuple[Path, ...]
    data: np.ndarray
    start: tuple[int, ...]
    slice: int | None
    image_size: tuple[int, ...]


def load_patch(
    model: TrainedModel, images: Sequence[Path], labels: Path | None = None, center: Sequence[int] | None = None
) -> ImagePatch:
    """Preprocess an image as nnU-Net does, and cut a patch out of it.

    Args:
        model: the model whose preprocessing and patch size are used.
        images: the files of the image, one per channel in their order. Of files CASE_0000, CASE_0001, .. the first one
            is sufficient.
        labels: a segmentation of the image, reference or prediction: the patch is cut where it has the most foreground.
            The second stage of a cascade needs the prediction of the first stage here.
        center: centre of the patch in voxels of the stored image, (z, y, x) or (y, x). By default the labels decide;
            without labels it is the centre of the image.

    Raises:
        CoordinatesError: a file is missing or cannot be read, the image has other channels than the model needs, or
            the centre is outside the image.
        EvaluationError: a file is truncated or damaged, or the labels have another size or spacing than the image. As
            in nnU-Net, their origin and direction may differ.
    """
    files = find_channels([Path(file) for file in images], model.folder.dataset_json)
    labels = None if labels is None else Path(labels)
    _check_files(model, files, labels)
    data, segmentation, properties = _preprocess(model, files, labels)
    if model.predictor.configuration_manager.previous_stage_name is not None:
        foreground_labels = model.predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(segmentation, foreground_labels, data.dtype)))

    patch_size = list(model.predictor.configuration_manager.patch_size)
    image_size = data.shape[1:]
    skipped = len(image_size) - len(patch_size)  # 1 for a 2D network, which sees a slice of (C, Z, Y, X), otherwise 0
    size = [1] * skipped + patch_size
    if center is not None:
        plans = model.predictor.plans_manager
        middle = _preprocessed_position(center, plans.transpose_forward, properties, image_size)
    elif (foreground := _foreground(model, segmentation)).any():
        middle = _densest_position(foreground, size)
    else:
        middle = [(count - 1) / 2 for count in image_size]
    patch, start = _cut_out(data, middle, size)
    return ImagePatch(
        case=re.sub(r"_\d{4}$", "", files[0].name.removesuffix(model.folder.dataset_json["file_ending"])),
        files=tuple(files),
        data=np.ascontiguousarray(patch[:, 0] if skipped else patch, dtype=np.float32),
        start=tuple(start[skipped:]),
        slice=start[0] if skipped and image_size[0] > 1 else None,
        image_size=tuple(int(count) for count in image_size[skipped:]),
    )


def find_channels(files: Sequence[Path], dataset_json: Mapping[str, Any]) -> list[Path]:
    """The files of an image: those that are given, or all channels of CASE where only CASE_0000 is given.

    Raises:
        CoordinatesError: a file does not exist, or does not have the ending of the data set.
    """
    ending = dataset_json["file_ending"]
    for file in files:
        if not file.is_file():
            raise CoordinatesError(f"there is no file {file}")
        if not file.name.endswith(ending):
            raise CoordinatesError(f"the model's images end in {ending}, got {file}")
    if len(files) == 1 and (found := re.fullmatch(r"(.*)_0000", files[0].name.removesuffix(ending))):
        pattern = re.compile(re.escape(found[1]) + r"_\d{4}" + re.escape(ending))
        return sorted(file for file in files[0].parent.iterdir() if pattern.fullmatch(file.name))
    return list(files)


def _check_files(model: TrainedModel, files: Sequence[Path], labels: Path | None) -> None:
    """Refuse files that the model cannot take, as far as that is known before preprocessing."""
    if len(files) > model.channels:
        raise CoordinatesError(
            f"the model needs {model.channels} channels, got {len(files)}: {', '.join(map(str, files))}"
        )
    for file in files if labels is None else (*files, labels):
        check_utf8(file)
    if labels is not None and not labels.is_file():
        raise CoordinatesError(f"there is no file {labels}")
    previous_stage = model.predictor.configuration_manager.previous_stage_name
    if previous_stage is not None and labels is None:
        raise CoordinatesError(
            f"{model.configuration} is the second stage of a cascade: it needs the prediction of {previous_stage} as "
            "labels"
        )
    for file in files if labels is None else (*files, labels):
        check_image_file(file)
    if labels is not None:
        description = model.folder.dataset_json
        check_labels_fit(
            labels, files[0], find_reader(description["file_ending"], None, description, model.folder.plans)
        )


def _preprocess(
    model: TrainedModel, files: Sequence[Path], labels: Path | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """The preprocessed image (C, *S), its labels (*S), which are 0 without labels, and nnU-Net's properties."""
    predictor = model.predictor
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    try:
        _check_resampled_size(model, files)
        data, segmentation, properties = quietly(
            configuration.preprocessor_class(verbose=False).run_case,
            [str(file) for file in files],
            None if labels is None else str(labels),
            plans,
            configuration,
            predictor.dataset_json,
        )
    except NnunetDtcError:
        raise
    except Exception as error:  # of nnU-Net, its readers and the functions that the plans name
        named = ", ".join(map(str, files)) + (f" with the labels {labels} (are they of this image?)" if labels else "")
        raise CoordinatesError(f"nnU-Net cannot preprocess {named}: {describe_error(error)}") from error
    return data, segmentation[0], properties


def _check_resampled_size(model: TrainedModel, files: Sequence[Path]) -> None:
    """Refuse an image with other channels than the model's, or one that exceeds the memory when it is resampled."""
    plans = model.predictor.plans_manager
    data, properties = quietly(plans.image_reader_writer_class().read_images, [str(file) for file in files])
    named = ", ".join(map(str, files))
    if data.shape[0] != model.channels:
        raise CoordinatesError(f"the model needs {model.channels} channels, got {data.shape[0]} from {named}")
    target = list(model.spacing_mm)
    order = plans.transpose_forward[-len(target) :]  # the slices of a 2D network's images are not resampled
    voxels = float(math.prod(data.shape))
    for axis, step in zip(order, target, strict=True):
        voxels *= max(float(properties["spacing"][axis]) / step, 1 / data.shape[1 + axis])
    check_fits(8 * voxels, f"{named}, resampled from {properties['spacing']} to {target},")


def _foreground(model: TrainedModel, segmentation: np.ndarray) -> np.ndarray:
    """bool (*S): voxels that are labelled, except for those with the ignore label."""
    ignore_label = model.predictor.label_manager.ignore_label
    return (segmentation > 0) & (segmentation != (ignore_label if ignore_label is not None else -1))


def _densest_position(foreground: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """The voxel around which a patch of this size has the most foreground; of several the most central one."""
    fraction = ndimage.uniform_filter(foreground.astype(np.float32), size, mode="constant")
    best = np.argwhere(fraction >= fraction.max() - 1e-6)
    return best[np.square(best - best.mean(0)).sum(1).argmin()]


def _cut_out(data: np.ndarray, middle: Sequence[float], size: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The patch of this size around a position, (C, *size), and its first voxel; a small image is padded with 0."""
    padded, inside = pad_nd_image(data, size, "constant", {"constant_values": 0}, True)
    start = [
        int(np.clip(round(place + image.start - (part - 1) / 2), 0, count - part))
        for place, image, part, count in zip(middle, inside[1:], size, padded.shape[1:], strict=True)
    ]
    return padded[(slice(None), *(slice(first, first + part) for first, part in zip(start, size, strict=True)))], start


def _preprocessed_position(
    center: Sequence[int], transpose_forward: Sequence[int], properties: Mapping[str, Any], size: Sequence[int]
) -> list[float]:
    """A position of the stored image in voxels of the preprocessed one, which is transposed, cropped and resampled.

    Args:
        center: (z, y, x) or (y, x) in the stored image.
        transpose_forward: order of the axes in the preprocessed image.
        properties: nnU-Net's properties of the image.
        size: voxels of the preprocessed image.
    """
    original = [0] * 3
    for position, axis in enumerate(transpose_forward):
        original[axis] = properties["shape_before_cropping"][position]
    place = [0, *center] if len(center) == 2 and original[0] == 1 else list(center)
    if len(place) != 3 or any(not 0 <= at < count for at, count in zip(place, original, strict=True)):
        raise CoordinatesError(f"the centre must be a voxel of the image, {tuple(original)} large, got {tuple(center)}")
    return [
        (place[axis] - first + 0.5) * new / (last - first) - 0.5
        for axis, (first, last), new in zip(transpose_forward, properties["bbox_used_for_cropping"], size, strict=True)
    ]
