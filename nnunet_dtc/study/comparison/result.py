"""What a comparison found: the one object between `compare`, which makes it, and the tables, figures and page of it.

The means are the paper's: over the organs of a case first, then over cases. Dice and NSD lie in [0, 1], HD95 is in mm.
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
        name: as shown; unique in the comparison; the trainer's name where that is unique, without what all end in.
        trainer, plans, configuration: nnU-Net's names.
        folder: of the first training.
        folds: that were used; () for predictions of one ensemble that were given without folds.
        repeats: the trainers' names of all trainings of this model, the first is `trainer` itself.
        checkpoint: its file's name, or `not recorded by nnU-Net` for validation folders.
        epochs: trained; None where no training log or checkpoint says so, as for the next ones.
        parameters: of the network.
        epoch_seconds: median over epochs and folds.
        peak_memory_mib: of a training step, where `complexity` measured it.
        left_out: the end of the trainer's name that `name` is without.
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
    """A case that is worth looking at.

    Attributes:
        case: its name.
        why: `worst`, `best` (of the first model), `largest gain` or `largest loss` (of the last against the first), or
            two of them with a comma between.
        images: the channels of the raw image; empty where they cannot be found.
        reference: the true segmentation.
        predictions: file by model.
        dice: mean Dice over organs, by model.
        organ_dice: Dice by model and organ.
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
    """All that was compared.

    Attributes:
        dataset: such as `Dataset017_BTCV`.
        kind: `validation`, `test` or `test per fold`.
        labels: the organs.
        metrics: `dice`, `nsd_<tolerance>`, `hd95_mm`, see `nnunet_dtc.study.evaluation.scoring.metric_names`.
        models: the first is the one that the others are compared with.
        scores: model, repeat (1..), fold (Int64, NA for an ensemble), case, organ, and a column per metric (NaN is not
            counted; hd95_mm may be infinite).
        summary: model, metric, mean, std_folds (NaN unless several folds give one number each), difference (to the
            first model; NaN for that one).
        differences: model, metric, organ ("" is the mean over organs), n, mean, low, high, p, p_holm, better, worse,
            equal (counts of cases; "better" is in favour of `model`, for HD95 too), left_out (pairs of cases and
            organs with an infinite HD95), counted_as_1 (pairs with a rightly empty prediction on one side, which counts
            as Dice and NSD 1); paired by case, the model minus the first one.
        noise: model, metric, difference, run_to_run, p_noise (how often the noise alone gives as much), exceeds
            (p_noise < 0.05: True, False or NA), sentence; empty without repeats.
        curves: model, repeat, fold, epoch (from 0), train_loss, val_loss, pseudo_dice, ema_pseudo_dice, learning_rate,
            seconds.
        pictures: at most four different cases.
        sentences: for the reader: what was compared, which checkpoints, what is not known, warnings.
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
