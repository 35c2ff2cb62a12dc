"""Comparisons to draw: real files and real scores of phantom CTs (3D) and of made-up colour photographs (2D)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import SimpleITK as sitk
from scipy import ndimage

from nnunet_dtc.study.comparison.between_trainings import between_trainings
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison
from nnunet_dtc.study.comparison.statistics import paired_differences, summarise
from nnunet_dtc.study.datasets.phantom import LABELS, draw_case
from nnunet_dtc.study.evaluation import LabelSet, Organ, Pair, evaluate_pairs, parse_tolerance

ORGANS = LabelSet(tuple(Organ(name, (number,)) for name, number in LABELS.items() if number))
LESION = LabelSet((Organ("lesion", (1,)),))


def spoil(labels: np.ndarray, rng: np.random.Generator, error: float) -> np.ndarray:
    """As if predicted: borders that waver by `error` voxels, and now and then a lost organ."""
    fields = [ndimage.gaussian_filter(rng.standard_normal(labels.shape), 3) for _ in range(labels.ndim)]
    moved = [
        index + error * field / field.std()
        for index, field in zip(np.indices(labels.shape, dtype=np.float32), fields, strict=True)
    ]
    result = ndimage.map_coordinates(labels, moved, order=0, mode="nearest")
    numbers = [number for number in np.unique(labels) if number]
    if len(numbers) > 1 and rng.random() < error / 6:
        result[result == rng.choice(numbers)] = 0
    return result


def ct_cases(folder: Path, count: int, seed: int, crop: bool) -> dict[str, tuple[Path, Path, np.ndarray, sitk.Image]]:
    """case to image file, label file, label array and the image that has its geometry; stored in RAS order."""
    cases = {}
    for number in range(count):
        case = draw_case(np.random.default_rng([seed, number]))
        part = (slice(8, 26), slice(None), slice(None)) if crop else (slice(None),) * 3
        image = sitk.GetImageFromArray(case.image[part])
        labels = sitk.GetImageFromArray(case.labels[part])
        for each in (image, labels):
            each.SetSpacing(case.spacing_mm)
            each.SetOrigin(case.origin_mm)
        image, labels = sitk.DICOMOrient(image, "RAS"), sitk.DICOMOrient(labels, "RAS")
        name = f"phantom_{number + 1:03d}"
        files = folder / f"{name}_0000.nii.gz", folder / f"{name}.nii.gz"
        sitk.WriteImage(image, str(files[0]))
        sitk.WriteImage(labels, str(files[1]))
        cases[name] = (*files, sitk.GetArrayFromImage(labels), labels)
    return cases


def photo_cases(folder: Path, count: int, seed: int) -> dict[str, tuple[Path, Path, np.ndarray, None]]:
    """A dark spot on skin, 96 x 128 RGB."""
    cases = {}
    for number in range(count):
        rng = np.random.default_rng([seed, number])
        y, x = np.mgrid[:96, :128]
        bend = ndimage.gaussian_filter(rng.standard_normal((96, 128)), 9)
        centre, axes = rng.uniform((35, 45), (60, 85)), rng.uniform(13, 30, 2)
        radius = np.hypot((y - centre[0]) / axes[0], (x - centre[1]) / axes[1]) + 0.25 * bend / bend.std()
        depth = 1 / (1 + np.exp((radius - 1) * 9))[..., None]  # (96, 128, 1)
        picture = (1 - depth) * np.array((224, 172, 148)) + depth * np.array((106, 62, 50))
        picture += ndimage.gaussian_filter(rng.standard_normal((96, 128)), 1.5)[..., None] * 30
        name = f"ISIC_{number:07d}"
        files = folder / f"{name}_0000.png", folder / f"{name}.png"
        array = np.clip(picture, 0, 255).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(files[0]))
        labels = (radius < 1).astype(np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(labels), str(files[1]))
        cases[name] = (*files, labels, None)
    return cases


def training_log(models: dict[str, float], folds: int, epochs: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for model, error in models.items():
        for fold in range(folds):
            epoch = np.arange(epochs)
            level = 0.9 - 0.08 * error + rng.normal(0, 0.012)
            dice = level * (1 - np.exp(-epoch / (epochs / 6))) + rng.normal(0, 0.012, epochs)
            parts.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "repeat": 1,
                        "fold": fold,
                        "epoch": epoch,
                        "train_loss": 0.1 - dice * 1.02 + rng.normal(0, 0.01, epochs),
                        "val_loss": 0.14 - dice * 0.95 + rng.normal(0, 0.015, epochs),
                        "pseudo_dice": dice,
                        "ema_pseudo_dice": pd.Series(dice).ewm(alpha=0.1).mean(),
                        "learning_rate": 0.01 * (1 - epoch / epochs) ** 0.9,
                        "seconds": 41 + 3 * error + rng.normal(0, 0.5, epochs),
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)


def make_comparison(
    folder: Path,
    models: dict[str, float],
    two_d: bool = False,
    cases: int = 4,
    repeats: int = 1,
    folds: int = 2,
    epochs: int = 60,
    seed: int = 7,
    crop: bool = True,
) -> Comparison:
    """A comparison of models, name to how wrong they are, with everything that `compare` fills in.

    Args:
        folder: where its files go.
        crop: slices of the trunk alone, for speed.
    """
    raw = folder / "raw"
    raw.mkdir(parents=True)
    found = photo_cases(raw, cases, seed) if two_d else ct_cases(raw, cases, seed, crop)
    labels, ending = (LESION, ".png") if two_d else (ORGANS, ".nii.gz")
    tolerances = [parse_tolerance(text) for text in ("1", "2")]
    fold_of = {case: number % folds for number, case in enumerate(found)}
    rows, files = [], {}
    for place, (model, error) in enumerate(models.items()):
        model_folder = folder / f"{model}__nnUNetPlans__3d_fullres"
        model_folder.mkdir()
        channels = {"0": "R", "1": "G", "2": "B"} if two_d else {"0": "CT"}
        (model_folder / "dataset.json").write_text(json.dumps({"channel_names": channels}))
        for repeat in range(1, repeats + 1):
            pairs = []
            for number, (case, (_, label_file, array, geometry)) in enumerate(found.items()):
                rng = np.random.default_rng([seed, place, repeat, number])
                prediction = sitk.GetImageFromArray(spoil(array, rng, error * (1 + 0.5 * (number % 3))))
                if geometry is not None:
                    prediction.CopyInformation(geometry)
                file = model_folder / f"rep{repeat}_{case}{ending}"
                sitk.WriteImage(prediction, str(file))
                pairs.append(Pair(case, file, label_file))
                if repeat == 1:
                    files.setdefault(case, {})[model] = file
            evaluation = evaluate_pairs(pairs, labels, tolerances, processes=1)
            rows += [
                {"model": model, "repeat": repeat, "fold": fold_of[row["case"]]}
                | {key: row[key] for key in ("case", "organ", *evaluation.metrics)}
                for row in evaluation.scores.to_dict("records")
            ]
    metrics = evaluation.metrics
    scores = pd.DataFrame(rows).astype({"fold": "Int64"})
    names = list(models)
    summary = summarise(scores, metrics, names, per_fold=False)
    dice = scores[scores["repeat"] == 1].pivot_table(index=["model", "case"], columns="organ", values="dice")
    means = dice.mean(axis=1)
    gain = (means[names[-1]] - means[names[0]]).sort_values()
    chosen = {"worst": means[names[0]].idxmin(), "largest gain": gain.index[-1]}
    pictures = []
    for why, case in chosen.items():
        if case in [picture.case for picture in pictures]:
            continue
        pictures.append(
            CasePicture(
                case,
                why,
                (found[case][0],),
                found[case][1],
                files[case],
                {name: float(means[name, case]) for name in names},
                {name: dice.loc[(name, case)].to_dict() for name in names},
            )
        )
    return Comparison(
        dataset="Dataset018_ISIC2018" if two_d else "Dataset917_Phantom",
        kind="validation",
        labels=labels,
        metrics=metrics,
        models=tuple(
            ComparedModel(
                name=name,
                trainer=name,
                plans="nnUNetPlans",
                configuration="2d" if two_d else "3d_fullres",
                folder=folder / f"{name}__nnUNetPlans__3d_fullres",
                folds=tuple(range(folds)),
                repeats=(name, *(f"{name}_rep{k}" for k in range(2, repeats + 1))),
                checkpoint="not recorded by nnU-Net",
                epochs=epochs,
                parameters=30_789_512 + 411_873 * place,
                epoch_seconds=41.25 + 3 * error,
                peak_memory_mib=None if place else 7301.5,
            )
            for place, (name, error) in enumerate(models.items())
        ),
        scores=scores,
        summary=summary,
        differences=paired_differences(scores, metrics, names, labels.names),
        noise=between_trainings(scores, metrics, dict.fromkeys(names, repeats), summary, per_fold=False),
        curves=training_log(models, folds, epochs, seed),
        pictures=tuple(pictures),
        sentences=(
            f"Compared are the validation predictions of {folds} folds, {cases} cases in all; each case was predicted "
            "by the model that had not seen it.",
            "nnU-Net does not record which checkpoint made validation predictions (--val_best writes into the same "
            "folder).",
        ),
    )


def comparison_of(scores: pd.DataFrame, folder: Path, repeats: int = 1) -> Comparison:
    """A comparison of hand-made scores, without logs and pictures.

    Args:
        scores: model, repeat, fold, case, organ and the metrics.
        folder: of the first model, where nothing needs to be.
    """
    metrics = tuple(scores.columns[5:])
    names, organs = list(scores["model"].unique()), list(scores["organ"].unique())
    summary = summarise(scores, metrics, names, per_fold=False)
    curves = ["model", "repeat", "fold", "epoch", "train_loss", "val_loss", "pseudo_dice", "ema_pseudo_dice"]
    return Comparison(
        dataset="Dataset917_Phantom",
        kind="validation",
        labels=LabelSet(tuple(Organ(name, (number,)) for number, name in enumerate(organs, 1))),
        metrics=metrics,
        models=tuple(
            ComparedModel(
                name=name,
                trainer=name,
                plans="nnUNetPlans",
                configuration="3d_fullres",
                folder=folder / f"{name}__nnUNetPlans__3d_fullres",
                folds=tuple(sorted(scores["fold"].unique())),
                repeats=(name, *(f"{name}_rep{k}" for k in range(2, repeats + 1))),
                checkpoint="not recorded by nnU-Net",
                epochs=60,
                parameters=None,
                epoch_seconds=None,
                peak_memory_mib=None,
            )
            for name in names
        ),
        scores=scores,
        summary=summary,
        differences=paired_differences(scores, metrics, names, organs),
        noise=between_trainings(scores, metrics, dict.fromkeys(names, repeats), summary, per_fold=False),
        curves=pd.DataFrame(columns=[*curves, "learning_rate", "seconds"]),
        pictures=(),
        sentences=("A sentence.",),
    )
