"""Epochs, seconds, parameters and curves of a training, from nnU-Net's checkpoints.

nnU-Net stores its log in the checkpoint: for each epoch the losses, the pseudo Dice (computed on random patches during
training) and the time. Checkpoints are read without running code in them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from nnunet_dtc.plugin.checkpoints import CheckpointError, is_second_name, open_checkpoint
from nnunet_dtc.plugin.file_rules import read_json, shown
from nnunet_dtc.study.comparison.checks import plans_of
from nnunet_dtc.study.comparison.models import ComparisonError, Training

__all__ = ["CURVES", "TrainingLog", "count_parameters", "epoch_rows", "read_log", "read_peak_memory"]

CURVES = {
    "train_losses": "train_loss",
    "val_losses": "val_loss",
    "mean_fg_dice": "pseudo_dice",
    "ema_fg_dice": "ema_pseudo_dice",
    "lrs": "learning_rate",
}
"""nnU-Net's names in the checkpoint to the columns of `Comparison.curves`."""

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class TrainingLog:
    """The log of the folds of one training.

    Attributes:
        rows: one row for each epoch: fold, epoch (from 0, as nnU-Net counts), the values of `CURVES` and seconds; NaN
            where nothing was logged.
        epochs: the number of epochs trained, by fold.
        parameters: the number of parameters of the network, by fold.
        missing: the folds without a checkpoint.
    """

    rows: pd.DataFrame
    epochs: Mapping[int, int]
    parameters: Mapping[int, int]
    missing: tuple[int, ...]


def read_log(
    training: Training,
    folds: Sequence[int],
    checkpoint: str | None = None,
    progress: Callable[[], None] = lambda: None,
) -> TrainingLog:
    """Read the log of a training.

    Args:
        training: the training.
        folds: its folds to read.
        checkpoint: the file name of the checkpoints, which must exist; None takes the latest of each fold, if any.
        progress: called after each fold.

    Raises:
        ComparisonError: a checkpoint is missing although its name was given, or is one of another trainer or
            configuration or of other plans than its folder.
        CheckpointError: a checkpoint whose name was given cannot be read safely. Others count as missing.
    """
    expected = plans_of(training.plans, training.configuration)
    rows, epochs, parameters, missing = [], {}, {}, []
    for fold in folds:
        names = _CHECKPOINTS if checkpoint is None else (checkpoint,)
        file = next((path for name in names if (path := training.fold_path(fold) / name).is_file()), None)
        if file is None:
            if checkpoint is not None:
                raise ComparisonError(f"there is no {training.fold_path(fold) / checkpoint}")
            missing.append(fold)
            progress()
            continue
        try:
            content = open_checkpoint(file, to_build=False)
        except CheckpointError:
            if checkpoint is not None:
                raise
            missing.append(fold)  # scores can be compared without it
        else:
            _check_origin(file, content, training, expected)
            log = _numbers(content.get("logging"))
            rows += [{"fold": fold, **row} for row in epoch_rows(log)]
            epochs[fold] = int(content.get("current_epoch", len(log.get("train_losses", ()))))
            parameters[fold] = count_parameters(content["network_weights"])
        progress()
    columns = ["fold", "epoch", *CURVES.values(), "seconds"]
    return TrainingLog(pd.DataFrame(rows, columns=columns), epochs, parameters, tuple(missing))


def _numbers(logging: Any) -> dict[str, list[float]]:
    """The entries of a trainer's log that are lists of numbers; a user's trainer may log other things."""

    def is_number(value: Any) -> bool:
        return isinstance(value, Real) and not (isinstance(value, Integral) and abs(value) > 1e300)

    log = logging if isinstance(logging, dict) else {}
    return {key: values for key, values in log.items() if isinstance(values, list) and all(map(is_number, values))}


def epoch_rows(log: Mapping[str, Sequence[Any]]) -> list[dict[str, float]]:
    """One row for each epoch of nnU-Net's log, whose lists differ in length if a training was interrupted."""
    starts, ends = (log.get(f"epoch_{which}_timestamps") or () for which in ("start", "end"))
    length = max((len(log.get(key) or ()) for key in CURVES), default=0)
    rows = []
    for index in range(max(length, min(len(starts), len(ends)))):
        row: dict[str, float] = {"epoch": index}
        for key, name in CURVES.items():
            values = log.get(key) or ()
            row[name] = float(values[index]) if index < len(values) else math.nan
        timed = index < min(len(starts), len(ends))
        row["seconds"] = float(ends[index]) - float(starts[index]) if timed else math.nan
        rows.append(row)
    return rows


def count_parameters(weights: Mapping[str, torch.Tensor]) -> int:
    """The number of learned parameters of a network. Each tensor counts once, because nnU-Net's networks hold some
    modules under two names. The running statistics of batch normalisation and integers do not count."""
    seen, count = set(), 0
    for key, tensor in weights.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        learned = tensor.is_floating_point() and not key.endswith(_BUFFERS) and not is_second_name(key)
        if learned and (tensor.numel() == 0 or place not in seen):
            seen.add(place)
            count += tensor.numel()
    return count


def read_peak_memory(file: Path, dataset: str, plans: str, configuration: str) -> dict[str, float | None]:
    """Read the peak memory of a training step from the file that `nnunet-dtc complexity` wrote.

    Args:
        file: the JSON file.
        dataset, plans, configuration: the names that the file must be of.

    Returns:
        The memory in MiB by trainer; None where it was not measured.

    Raises:
        MalformedFileError: the file cannot be read.
        ComparisonError: it is another file, or of another data set, plans or configuration.
    """
    content = read_json(file)
    try:
        trainers = content["trainers"]
        of = content["dataset"], content["plans"], content["configuration"]
        memory = {
            name: None if (peak := entry.get("peak_memory_mib")) is None else float(peak)
            for name, entry in trainers.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ComparisonError(f"{file} was not written by nnunet-dtc complexity: {error!r}") from error
    if strange := [
        name for name, peak in memory.items() if peak is not None and not (math.isfinite(peak) and peak >= 0)
    ]:
        raise ComparisonError(f"{file}: the peak memory of {shown(strange[0])} must be a finite number of MiB")
    if of != (wanted := (dataset, plans, configuration)):
        raise ComparisonError(f"{file} is of {', '.join(map(str, of))}; the models are of {', '.join(wanted)}")
    return memory


def _check_origin(file: Path, content: Mapping[str, Any], training: Training, expected: Mapping[str, Any]) -> None:
    init_args = content["init_args"]
    for what, found, wanted in (
        ("trainer", content["trainer_name"], training.trainer),
        ("configuration", init_args["configuration"], training.configuration),
    ):
        if found != wanted:
            raise ComparisonError(f"{file} is of the {what} {found}, but its folder of {wanted}")
    found = plans_of(init_args["plans"], training.configuration)
    if changed := sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key)):
        raise ComparisonError(
            f"{file} was trained with other plans than {training.path / 'plans.json'}: {', '.join(changed)} differ"
        )
