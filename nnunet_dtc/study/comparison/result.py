"""The result of a comparison, which `execution` makes and tables, figures and the page show.

Means are those of the paper: over the organs of a case first, then over cases. Dice and NSD are in [0, 1], HD95 in mm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from nnunet_dtc.study.evaluation.labels import LabelSet

__all__ = ["CasePicture", "ComparedModel", "Comparison"]


@dataclass(frozen=True)
class ComparedModel:
    """One of the models, with its repeated trainings.

    Attributes:
        name: the unique name that is shown: where it is unique, the trainer's, without the end that all names have.
        trainer, plans, configuration: nnU-Net's names.
        folder: the folder of the first training.
        folds: the folds that were used; () if the predictions of an ensemble were given without its folds.
        repeats: the trainers of all trainings of this model; the first is `trainer`.
        checkpoint: the file name of the checkpoints, or `not recorded by nnU-Net` for validation folders.
        epochs: the number of epochs trained; None, as for the next attributes, if it is not known.
        parameters: the number of parameters of the network.
        epoch_seconds: the time of an epoch in s, the median over epochs and folds.
        peak_memory_mib: the peak memory of a training step in MiB, as measured by `complexity`.
        left_out: the end of the trainer's name that is left out of `name`.
    """

    name: str
    trainer: str
    plans: str
    configuration: str
    folder: Path
    folds: tuple[int, ...]
    repeats: tuple[str, ...]
    checkpoint: str
    epochs: int | None
    parameters: int | None
    epoch_seconds: float | None
    peak_memory_mib: float | None
    left_out: str = ""


@dataclass(frozen=True)
class CasePicture:
    """A case that is shown as a picture.

    Attributes:
        case: its name.
        why: why it was chosen: `worst`, `best` (of the first model), `largest gain` or `largest loss` (of the last
            model against the first), or several of them, separated by commas.
        images: the files of the channels of the raw image; empty if they were not found.
        reference: the file of the true segmentation.
        predictions: the file of the prediction by model.
        dice: the mean Dice over organs by model.
        organ_dice: the Dice by model and organ.
    """

    case: str
    why: str
    images: tuple[Path, ...]
    reference: Path
    predictions: Mapping[str, Path]
    dice: Mapping[str, float]
    organ_dice: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """The result of a comparison.

    Attributes:
        dataset: such as `Dataset017_BTCV`.
        kind: `validation`, `test` or `test per fold`.
        labels: the organs and the ignore label.
        metrics: keys of the metrics, see `nnunet_dtc.study.evaluation.metrics`.
        models: the first is the one that the others are compared with.
        scores: a row for each prediction of an organ: model, repeat (from 1), fold (Int64, NA for an ensemble), case,
            organ and a column for each metric (NaN is not counted; distances may be infinite).
        summary: a row for each model and metric: model, metric, mean, std_folds (NaN unless there are several folds),
            difference (to the first model, for which it is NaN).
        differences: a row for each further model, metric and organ ("" is the mean over organs): model, metric, organ,
            n (cases), mean (of the paired differences, the model minus the first one), low, high, p, p_holm, better,
            worse, equal (cases; "better" is in favour of `model`, for all metrics), left_out (pairs of a case and an
            organ with an infinite score), counted_as_1 (pairs with one correctly empty prediction, which counts as
            Dice and NSD 1).
        noise: a row for each further model and metric: model, metric, difference, run_to_run, p_noise (the probability
            that the noise alone gives at least this difference), p_noise_holm (corrected over the models), exceeds
            (p_noise_holm < 0.05: True, False or NA), method ("folds" or "trainings"), and the difference by that
            method: mean, low, high, p, p_holm, freedom, overlap (of the folds' training sets), needed (trainings of
            each model); see `between_trainings`. No rows for one training each and one fold or an ensemble.
        curves: a row for each epoch: model, repeat, fold, epoch (from 0), train_loss, val_loss, pseudo_dice,
            ema_pseudo_dice, learning_rate, seconds.
        pictures: at most four different cases.
        sentences: what a reader should know: what was compared, which checkpoints, what is not known, warnings.
    """

    dataset: str
    kind: str
    labels: LabelSet
    metrics: tuple[str, ...]
    models: tuple[ComparedModel, ...]
    scores: pd.DataFrame
    summary: pd.DataFrame
    differences: pd.DataFrame
    noise: pd.DataFrame
    curves: pd.DataFrame
    pictures: tuple[CasePicture, ...]
    sentences: tuple[str, ...]

    @property
    def trainings(self) -> dict[str, int]:
        """The number of trainings of each model."""
        return {model.name: len(model.repeats) for model in self.models}

    def between(self, key: str, model: str) -> pd.Series | None:
        """The row of `noise` of a metric and a model; None if nothing is known beyond these trained networks."""
        rows = self.noise[(self.noise["metric"] == key) & (self.noise["model"] == model)]
        return None if rows.empty else rows.iloc[0]
