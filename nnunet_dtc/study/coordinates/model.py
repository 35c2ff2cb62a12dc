"""The coordinates of a trained model for an image: nnU-Net's own loading and preprocessing, one forward pass."""

import contextlib
import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy import ndimage
from torch import nn

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import check_utf8
from nnunet_dtc.ops.coordinates import StageCoordinates, StageNumbers, axis_names, collect, measure
from nnunet_dtc.ops.wrappers import unwrap
from nnunet_dtc.plugin.checkpoints import open_checkpoint
from nnunet_dtc.plugin.finder import find_trainer
from nnunet_dtc.plugin.nnunet_files import check_dataset_json, check_plans, read_json
from nnunet_dtc.plugin.planned_networks import build_network, check_fits, describe_error
from nnunet_dtc.plugin.plans_safety import check_names
from nnunet_dtc.study.evaluation.readers import check_image_file, check_labels_fit, find_reader

# what preprocessing takes from a configuration of plans, beside what every use of it needs
_NEEDED = ("spacing", "preprocessor_name", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data")


class CoordinatesError(NnunetDtcError):
    """A model or an image whose coordinates cannot be shown, with the reason."""


@dataclass(frozen=True)
class Model:
    """A trained DTC model, one fold of it.

    Attributes:
        folder, fold, checkpoint: where it is.
        trainer: the trainer's name.
        configuration: the configuration's name.
        epochs: how many it had been trained when the checkpoint was written.
        predictor: nnU-Net's predictor with the network, plans and labels.
    """

    folder: Path
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
    def spacing_mm(self) -> tuple[float, ...]:
        """Of the network's input, per axis."""
        return tuple(float(step) for step in self.predictor.configuration_manager.spacing)

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the network's axes."""
        return axis_names(self.predictor.plans_manager.transpose_forward, len(self.spacing_mm))

    @property
    def has_geometry(self) -> bool:
        """Whether its images have mm. Photographs have pixels, for whose spacing nnU-Net takes 1."""
        return self.predictor.plans_manager.plans["image_reader_writer"] != "NaturalImage2DIO"


@dataclass(frozen=True)
class Patch:
    """A piece of a preprocessed image, as large as the network's patch.

    Attributes:
        case: the image's name.
        files: the image's files, one a channel.
        data (float32[C, *patch]): what the network sees.
        start: of the patch in the preprocessed image (and padding), per axis of the network.
        slice: with a 2D network and a volume, the number of its slice, else None.
        image_size: of the preprocessed image, per axis of the network.
    """

    case: str
    files: tuple[Path, ...]
    data: np.ndarray
    start: tuple[int, ...]
    slice: int | None
    image_size: tuple[int, ...]


@dataclass(frozen=True)
class Coordinates:
    """The coordinates of a model for a patch.

    Attributes:
        model, patch: of what.
        segmentation (int[*patch]): what the network makes of this patch alone, without mirroring.
        stages: the coordinates of every block, in the order of the forward pass.
        numbers: of these stages.
    """

    model: Model
    patch: Patch
    segmentation: np.ndarray
    stages: tuple[StageCoordinates, ...]
    numbers: tuple[StageNumbers, ...]


def load_model(folder: Path, fold: str = "0", checkpoint: str = "checkpoint_final.pth") -> Model:
    """Load one fold of a trained model, by torch's safe loader, into nnU-Net's predictor.

    The trainers need not be registered.

    Raises:
        CoordinatesError: the folder is no trained model of nnU-Net, the model has no DTC, or its weights are of another
            network than its plans'.
        NetworkError: the network cannot be built from the plans.
        TrainerNotFoundError: nobody has its trainer.
        CheckpointError: the checkpoint is not there, or cannot be read safely.
        MalformedFileError: plans.json or dataset.json is not what nnU-Net writes.
        UnsafePlansError: the plans name something else than nnU-Net's classes.
    """
    folder = Path(folder)
    missing = [name for name in ("plans.json", "dataset.json") if not (folder / name).is_file()]
    if missing:
        raise CoordinatesError(
            f"needs the folder of a trained model, such as nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION; there "
            f"is no {' and no '.join(missing)} in {folder}"
        )
    if not (folder / f"fold_{fold}").is_dir():
        folds = sorted(path.name.removeprefix("fold_") for path in folder.glob("fold_*") if path.is_dir())
        raise CoordinatesError(f"{folder} has no fold {fold}; it has {', '.join(folds) or 'none'}")
    content = open_checkpoint(folder / f"fold_{fold}" / checkpoint)
    trainer, arguments = content["trainer_name"], content["init_args"]
    if not any(key.endswith(".coords.weight") for key in content["network_weights"]):
        raise CoordinatesError(f"the model in {folder} has no DTC block (its trainer is {trainer}): no coordinates")
    configuration, weights = arguments["configuration"], content["network_weights"]
    plans, dataset_json = (read_json(folder / name) for name in ("plans.json", "dataset.json"))
    check_plans(plans, folder / "plans.json", configuration, needed=_NEEDED)
    check_dataset_json(dataset_json, folder / "dataset.json")
    check_names(plans, configuration, folder / "plans.json")
    network = build_network(
        find_trainer(trainer), plans, configuration, dataset_json, deep_supervision=False, origin=folder / "plans.json"
    )
    try:
        network.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise CoordinatesError(
            f"the weights in {folder / f'fold_{fold}' / checkpoint} are not those of the network of plans.json: "
            f"{describe_error(error)}"
        ) from error
    manager = PlansManager(plans)
    predictor = _quietly(nnUNetPredictor, device=torch.device("cpu"), allow_tqdm=False)
    _quietly(
        predictor.manual_initialization,
        network,
        manager,
        manager.get_configuration(configuration),
        [weights],
        dataset_json,
        trainer,
        content.get("inference_allowed_mirroring_axes"),
    )
    return Model(
        folder=folder,
        fold=fold,
        checkpoint=checkpoint,
        trainer=trainer,
        configuration=configuration,
        epochs=int(content.get("current_epoch", 0)),
        predictor=predictor,
    )


def load_patch(
    model: Model, images: Sequence[Path], labels: Path | None = None, center: Sequence[int] | None = None
) -> Patch:
    """Preprocess an image as nnU-Net does, and cut a patch out of it.

    Args:
        model: says how.
        images: the files of the image, one a channel in their order; of several channels in files CASE_0000, CASE_0001,
            .. the first is enough.
        labels: a segmentation of the image, truth or prediction: the patch is where most of it is. For the second
            stage of a cascade it is the first one's prediction, and must be given.
        center: the middle of the patch, in voxels of the image as it is stored, (z, y, x) or (y, x); by default where
            most of the labels are, without labels the middle of the image.

    Raises:
        CoordinatesError: a file is missing or cannot be read, the image has other channels than the model needs, or
            the centre is outside.
        EvaluationError: a file is cut off or damaged, or the labels have another size or spacing than the image. Their
            origin and direction may be others, as in nnU-Net.
    """
    predictor = model.predictor
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    files = find_channels([Path(file) for file in images], predictor.dataset_json)
    expected = len(predictor.dataset_json.get("channel_names") or predictor.dataset_json["modality"])
    if len(files) > expected:
        raise CoordinatesError(f"the model needs {expected} channels, got {len(files)}: {', '.join(map(str, files))}")
    for file in files if labels is None else (*files, labels):
        check_utf8(file)
    if labels is not None and not Path(labels).is_file():
        raise CoordinatesError(f"there is no file {labels}")
    cascaded = configuration.previous_stage_name is not None
    if cascaded and labels is None:
        raise CoordinatesError(
            f"{model.configuration} is the second stage of a cascade: it needs the prediction of "
            f"{configuration.previous_stage_name} as labels"
        )
    for file in files if labels is None else (*files, Path(labels)):
        check_image_file(file)
    if labels is not None:
        reader = find_reader(predictor.dataset_json["file_ending"], None, predictor.dataset_json, plans.plans)
        check_labels_fit(Path(labels), files[0], reader)
    try:
        _check_size(files, plans, configuration, expected)
        preprocessor = configuration.preprocessor_class(verbose=False)
        data, seg, properties = _quietly(
            preprocessor.run_case,
            [str(file) for file in files],
            None if labels is None else str(labels),
            plans,
            configuration,
            predictor.dataset_json,
        )
    except NnunetDtcError:
        raise
    except Exception as error:  # of nnU-Net, its readers and the plans that it follows
        named = ", ".join(map(str, files)) + (f" with the labels {labels} (are they of this image?)" if labels else "")
        raise CoordinatesError(f"nnU-Net cannot preprocess {named}: {describe_error(error)}") from error
    ignored = predictor.label_manager.ignore_label
    foreground = (seg[0] > 0) & (seg[0] != (ignored if ignored is not None else -1))  # (*image)
    if cascaded:
        one_hot = convert_labelmap_to_one_hot(seg[0], predictor.label_manager.foreground_labels, data.dtype)
        data = np.vstack((data, one_hot))

    size = list(configuration.patch_size)
    volume = [1] * (data.ndim - 1 - len(size)) + size  # a 2D network sees one slice of (C, Z, Y, X)
    image_size = data.shape[1:]
    padded, revert = pad_nd_image(data, volume, "constant", {"constant_values": 0}, True)
    before = [part.start for part in revert[1:]]
    if center is not None:
        middle = [
            place + pad
            for place, pad in zip(_preprocessed(center, plans, properties, data.shape[1:]), before, strict=True)
        ]
    elif foreground.any():
        share = ndimage.uniform_filter(foreground.astype(np.float32), volume, mode="constant")
        good = np.argwhere(share >= share.max() - 1e-6)
        best = good[np.square(good - good.mean(0)).sum(1).argmin()]  # in the middle of those that are equally good
        middle = [place + pad for place, pad in zip(best, before, strict=True)]
    else:
        middle = [(count - 1) / 2 for count in padded.shape[1:]]
    start = [
        int(np.clip(round(place - (part - 1) / 2), 0, count - part))
        for place, part, count in zip(middle, volume, padded.shape[1:], strict=True)
    ]
    cut = padded[(slice(None), *(slice(first, first + part) for first, part in zip(start, volume, strict=True)))]
    flat = len(size) < len(volume)
    return Patch(
        case=re.sub(r"_\d{4}$", "", files[0].name.removesuffix(predictor.dataset_json["file_ending"])),
        files=tuple(files),
        data=np.ascontiguousarray(cut[:, 0] if flat else cut, dtype=np.float32),
        start=tuple(start[flat:]),
        slice=start[0] - int(before[0]) if flat and image_size[0] > 1 else None,
        image_size=tuple(int(count) for count in image_size[flat:]),
    )


def _check_size(files: Sequence[Path], plans: Any, configuration: Any, expected: int) -> None:
    """Refuse an image of other channels than the model's, or one that grows beyond the memory when it is resampled."""
    data, properties = _quietly(plans.image_reader_writer_class().read_images, [str(file) for file in files])
    named = ", ".join(map(str, files))
    if data.shape[0] != expected:
        raise CoordinatesError(f"the model needs {expected} channels, got {data.shape[0]} from {named}")
    target = [float(step) for step in configuration.spacing]
    order = plans.transpose_forward[-len(target) :]  # a 2D network's images keep their slices
    voxels = float(math.prod(data.shape))
    for axis, step in zip(order, target, strict=True):
        voxels *= max(float(properties["spacing"][axis]) / step, 1 / data.shape[1 + axis])
    check_fits(8 * voxels, f"{named}, resampled from {properties['spacing']} to {target},")


def find_coordinates(model: Model, patch: Patch, device: torch.device | str = "cpu") -> Coordinates:
    """Run the network on the patch once.

    On CUDA it runs in mixed precision, as nnU-Net predicts.

    Raises:
        CoordinatesError: the network does not take the patch, or memory runs out.
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
    numbers = measure(stages, patch.data.shape[1:], model.spacing_mm, model.axes)
    return Coordinates(model, patch, np.asarray(segmentation), tuple(stages), tuple(numbers))


def find_channels(files: Sequence[Path], dataset_json: dict[str, Any]) -> list[Path]:
    """The files of an image; where the one that is given is the first of several channels, all of them.

    Raises:
        CoordinatesError: a file is not there, or is of another kind than the data set.
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


def _preprocessed(center: Sequence[int], plans: Any, properties: dict[str, Any], size: Sequence[int]) -> list[float]:
    """A place of the stored image in voxels of the preprocessed one, which is transposed, cropped and resampled.

    ``size`` is that of the preprocessed image.
    """
    original = [0] * 3
    for position, axis in enumerate(plans.transpose_forward):
        original[axis] = properties["shape_before_cropping"][position]
    place = [0, *center] if len(center) == 2 and original[0] == 1 else list(center)
    if len(place) != 3 or any(not 0 <= at < count for at, count in zip(place, original, strict=True)):
        raise CoordinatesError(f"the centre must be a voxel of the image, {tuple(original)} large, got {tuple(center)}")
    turned = [place[axis] for axis in plans.transpose_forward]
    return [
        (at - first + 0.5) * new / (last - first) - 0.5
        for at, (first, last), new in zip(turned, properties["bbox_used_for_cropping"], size, strict=True)
    ]


def _quietly(function: Any, *arguments: Any, **options: Any) -> Any:
    """nnU-Net's functions print and warn much that says nothing here."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*arguments, **options)
