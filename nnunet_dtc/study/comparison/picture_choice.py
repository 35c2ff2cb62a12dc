"""The choice of the cases that are shown as pictures.

They are chosen by a rule, not by hand: the worst and the best case of the first model, and the cases with the largest
gain and loss of the last model against the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from nnunet_dtc.study.comparison.result import CasePicture
from nnunet_dtc.study.evaluation.scores import means

__all__ = ["choose_cases", "make_pictures"]


def choose_cases(dice: pd.DataFrame) -> dict[str, str]:
    """Choose at most four cases.

    Args:
        dice: the mean Dice over organs, a row for each case and a column for each model; NaN does not count.

    Returns:
        Case to reason; a case that is chosen twice has both reasons.
    """
    first, gain = dice.iloc[:, 0].dropna(), (dice.iloc[:, -1] - dice.iloc[:, 0]).dropna()
    chosen: dict[str, list[str]] = {}
    if len(first):
        chosen.setdefault(first.idxmin(), []).append("worst")
        if len(first) > 1:
            chosen.setdefault(first.idxmax(), []).append("best")
    if len(gain) and gain.max() > 0:
        chosen.setdefault(gain.idxmax(), []).append("largest gain")
    if len(gain) and gain.min() < 0:
        chosen.setdefault(gain.idxmin(), []).append("largest loss")
    return {case: ", ".join(why) for case, why in chosen.items()}


def make_pictures(
    shown: pd.DataFrame,
    models: Sequence[str],
    files: Mapping[tuple[str, str], Path],
    references: Mapping[str, Path],
    images_of: Callable[[str], tuple[Path, ...]],
    chosen_by: pd.DataFrame,
) -> tuple[CasePicture, ...]:
    """`Comparison.pictures`.

    Args:
        shown: model, case, organ and dice of the predictions that are shown, one for each model and case.
        models: the names of the models.
        files: the files of these predictions by model and case.
        references: the files of the labels by case.
        images_of: from a case to the files of its channels, empty if they were not found.
        chosen_by: model, case, organ and dice that the choice is based on: the means over repeated trainings.
    """
    dice, choosing = (
        means(scores, ["dice"], ["model", "case"]).pivot(index="case", columns="model", values="dice")
        for scores in (shown, chosen_by)
    )
    organs: dict[tuple[str, str], dict[str, float]] = {}
    for row in shown.itertuples():
        organs.setdefault((row.model, row.case), {})[row.organ] = float(row.dice)
    return tuple(
        CasePicture(
            case=case,
            why=why,
            images=images_of(case),
            reference=references[case],
            predictions={model: files[model, case] for model in models},
            dice={model: float(dice.loc[case, model]) for model in models},
            organ_dice={model: organs[model, case] for model in models},
        )
        for case, why in choose_cases(choosing[list(models)]).items()
    )
