"""Names of cases, organs and models that can be shown: they come from users' files and may hold any character."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from nnunet_dtc.study.comparison.result import CasePicture, Comparison
from nnunet_dtc.study.texts import visible

__all__ = ["printable_names"]

_NAMES = ("model", "case", "organ")


def printable_names(comparison: Comparison) -> Comparison:
    """The same comparison with all names and sentences as `visible` shows them. Paths of files stay as they are."""
    organs = tuple(replace(organ, name=visible(organ.name)) for organ in comparison.labels.organs)
    return replace(
        comparison,
        dataset=visible(comparison.dataset),
        labels=comparison.labels if organs == comparison.labels.organs else replace(comparison.labels, organs=organs),
        models=tuple(
            replace(
                model,
                name=visible(model.name),
                trainer=visible(model.trainer),
                repeats=tuple(map(visible, model.repeats)),
                left_out=visible(model.left_out),
            )
            for model in comparison.models
        ),
        scores=_frame(comparison.scores),
        summary=_frame(comparison.summary),
        differences=_frame(comparison.differences),
        noise=_frame(comparison.noise),
        curves=_frame(comparison.curves),
        pictures=tuple(map(_picture, comparison.pictures)),
        sentences=tuple(map(visible, comparison.sentences)),
    )


def _frame(frame: pd.DataFrame) -> pd.DataFrame:
    columns = [name for name in _NAMES if name in frame.columns]
    return frame.assign(**{name: frame[name].map(visible) for name in columns})


def _picture(picture: CasePicture) -> CasePicture:
    return replace(
        picture,
        case=visible(picture.case),
        predictions={visible(model): file for model, file in picture.predictions.items()},
        dice={visible(model): value for model, value in picture.dice.items()},
        organ_dice={
            visible(model): {visible(organ): value for organ, value in organs.items()}
            for model, organs in picture.organ_dice.items()
        },
    )
