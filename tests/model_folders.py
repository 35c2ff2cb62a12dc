"""Folders of trained models as nnU-Net leaves them, small and made in a moment: no training, but its layout, its files
and its own counting of voxels in summary.json."""

import json
import os
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, save_summary_json
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from plans import DATASET as DATASET_JSON
from plans import small_plans
from scipy import ndimage
from torch import nn

from nnunet_dtc import trainers
from nnunet_dtc.ops.dtc import is_dtc

DATASET = "Dataset998_Test"
LABELS = {"background": 0, "liver": 1, "spleen": 2}
SHAPE, SPACING = (5, 13, 11), (3.0, 0.8, 0.9)  # z, y, x
FOLDS = {0: ("case_a", "case_b", "case_c"), 1: ("case_d", "case_e", "case_f", "case_g")}
EPOCHS = 3
CONFIGURATION, PLANS = "3d_fullres", "nnUNetPlans"
RGB = DATASET_JSON | {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}


def draw(seed, shape=SHAPE, values=3):
    """A label image in which every value has some voxels."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    borders = np.quantile(noise, np.linspace(0.5, 0.9, values - 1))
    return np.searchsorted(borders, noise).astype(np.uint8)


def spoil(label, share, seed):
    """A prediction: this share of the voxels has another value."""
    rng = np.random.default_rng(seed)
    other = (label + rng.integers(1, int(label.max()) + 1, label.shape)) % (int(label.max()) + 1)
    return np.where(rng.random(label.shape) < share, other, label).astype(np.uint8)


def dice(a, b):
    """Of two masks."""
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def write_image(file, array, spacing=SPACING):
    image = sitk.GetImageFromArray(array)
    if not str(file).endswith(".png"):
        image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))


def read_image(file):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


class Folders:
    """nnU-Net's three folders with one data set and models."""

    def __init__(self, root: Path, monkeypatch=None, labels=LABELS, ending=".nii.gz", shape=SHAPE):
        self.root, self.ending, self.shape = root, ending, shape
        self.dataset = {
            "channel_names": {"0": "CT"},
            "labels": labels,
            "numTraining": sum(map(len, FOLDS.values())),
            "file_ending": ending,
        }
        if any(isinstance(value, list) for value in labels.values()):
            self.dataset["regions_class_order"] = [1, 2]
        self.raw, self.preprocessed, self.results = (root / name for name in ("raw", "preprocessed", "results"))
        for folder in ("imagesTr", "imagesTs", "labelsTs"):
            (self.raw / DATASET / folder).mkdir(parents=True)
        self.gt = self.preprocessed / DATASET / "gt_segmentations"
        self.gt.mkdir(parents=True)
        (self.results / DATASET).mkdir(parents=True)
        if monkeypatch is not None:
            for name in ("raw", "preprocessed", "results"):
                monkeypatch.setenv(f"nnUNet_{name}", str(getattr(self, name)))
        (self.raw / DATASET / "dataset.json").write_text(json.dumps(self.dataset))
        for seed, case in enumerate(case for cases in FOLDS.values() for case in cases):
            write_image(self.gt / f"{case}{ending}", draw(seed, shape))
            write_image(self.raw / DATASET / "imagesTr" / f"{case}_0000{ending}", draw(100 + seed, shape))
        self.write_splits(FOLDS)

    def write_splits(self, folds):
        everything = [case for cases in folds.values() for case in cases]
        splits = [
            {"train": [case for case in everything if case not in cases], "val": list(cases)}
            for cases in folds.values()
        ]
        (self.preprocessed / DATASET / "splits_final.json").write_text(json.dumps(splits))

    def label(self, case):
        return read_image(self.gt / f"{case}{self.ending}")

    def train(self, trainer, share=0.1, seed=0, folds=FOLDS, plans=None, plans_name=PLANS, **options):
        """A model folder with validated folds. Returns it."""
        folder = self.results / DATASET / f"{trainer}__{plans_name}__{CONFIGURATION}"
        folder.mkdir()
        plans = plans or small_plans()
        (folder / "plans.json").write_text(json.dumps(plans))
        (folder / "dataset.json").write_text(json.dumps(self.dataset))
        (folder / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [list(SPACING)]}))
        for fold, cases in folds.items():
            validation = folder / f"fold_{fold}" / "validation"
            validation.mkdir(parents=True)
            for number, case in enumerate(cases):
                prediction = spoil(self.label(case), share, 1000 * seed + 10 * fold + number)
                write_image(validation / f"{case}{self.ending}", prediction)
            self.write_checkpoint(folder, fold, plans, **options)
            self.write_summary(validation)
        return folder

    def write_summary(self, validation):
        """By nnU-Net's functions."""
        labels = [tuple(value) if isinstance(value, list) else value for value in self.dataset["labels"].values()]
        ignore = self.dataset["labels"].get("ignore")
        labels = [value for value in labels if value not in (0, ignore)]
        reader = NaturalImage2DIO() if self.ending == ".png" else SimpleITKIO()
        cases = []
        for file in sorted(validation.glob(f"*{self.ending}")):
            cases.append(compute_metrics(str(self.gt / file.name), str(file), reader, labels, ignore))
        for case in cases:
            recursive_fix_for_json_export(case)
        save_summary_json({"metric_per_case": cases, "mean": {}}, str(validation / "summary.json"))

    def write_checkpoint(self, folder, fold, plans, epochs=EPOCHS, seconds=10.0, extra=0, name="checkpoint_final.pth"):
        """7 * 3 * 2 + 7 + extra parameters; the log is as nnU-Net's."""
        trainer = folder.name.split("__")[0]
        weight = torch.arange(42.0).reshape(7, 3, 2)
        shared = {"encoder.stages.0.weight": weight, "encoder.stages.0.all_modules.0.weight": weight.clone()}
        starts = [1000.0 + 100 * epoch for epoch in range(epochs)]
        torch.save(
            {
                "network_weights": shared
                | {f"decoder.{key}": value for key, value in shared.items()}
                | {
                    "head.bias": torch.ones(7),
                    "norm.running_mean": torch.ones(5),
                    "norm.num_batches_tracked": torch.tensor(3),
                    "extra": torch.ones(extra),
                },
                "optimizer_state": {},
                "logging": {
                    "mean_fg_dice": [np.float64(0.1 * epoch) for epoch in range(epochs)],
                    "ema_fg_dice": [0.05 * epoch for epoch in range(epochs)],
                    "train_losses": [np.float32(-0.2 * epoch) for epoch in range(epochs)],
                    "val_losses": [-0.1 * epoch for epoch in range(epochs)],
                    "lrs": [0.01 / (epoch + 1) for epoch in range(epochs)],
                    "dice_per_class_or_region": [[0.1, 0.2]] * epochs,
                    "epoch_start_timestamps": starts,
                    "epoch_end_timestamps": [start + seconds + 2 * fold + epoch for epoch, start in enumerate(starts)],
                },
                "current_epoch": epochs,
                "init_args": {
                    "plans": plans | {"continue_training": False},
                    "configuration": CONFIGURATION,
                    "fold": fold,
                    "dataset_json": self.dataset,
                },
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": None,
            },
            folder / f"fold_{fold}" / name,
        )


def write_model(
    folder, name="nnUNetTrainerDTC_RF10", configuration="3d_fullres", dataset=DATASET_JSON, seed=0, plans=None
):
    """Write the folder of a trained model as nnU-Net does, with coordinates as if the model had been trained."""
    plans = plans or small_plans()
    for parts in plans["configurations"].values():
        if "normalization_schemes" in parts:
            channels = len(dataset["channel_names"])
            parts.update(normalization_schemes=["ZScoreNormalization"] * channels, use_mask_for_norm=[False] * channels)
    plans["foreground_intensity_properties_per_channel"] = {str(k): {} for k in range(len(dataset["channel_names"]))}
    if dataset["file_ending"] == ".png":
        plans["image_reader_writer"] = "NaturalImage2DIO"
    os.environ["nnUNet_results"] = str(folder)
    torch.manual_seed(seed)
    given = json.loads(json.dumps(plans)) | {"continue_training": False}
    trainer = getattr(trainers, name)(given, configuration, 0, dataset, torch.device("cpu"))
    arguments = (trainer.plans_manager, trainer.configuration_manager)
    channels = len(dataset["channel_names"]) + 2 * trainer.is_cascaded
    trainer.network = trainer.build_network_architecture(*arguments, channels, 3, True)
    for block in filter(is_dtc, trainer.network.modules()):
        nn.init.normal_(block.coords.weight, std=0.5)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.current_epoch = 6
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    return model
