"""Means of scores, for one evaluation and for comparisons of several.

Scores are a frame with one row for each case and organ: `case`, `organ` and a column for each metric; a comparison has
`model`, `repeat` and `fold` as well. NaN is a score that is not counted (see `metrics`). An infinite score is left out
of means, which would be infinite themselves: a mean HD95 says nothing about organs that were missed, so their number is
reported beside it.

The order of the means matters where organs are absent. The paper's tables have one number for each model and metric:
the mean over the organs of each case, then over the cases, here ``means(scores, metrics, ["case"], [])``. nnU-Net's
`foreground_mean` is the mean over cases, then over organs: ``means(scores, metrics, ["organ"], [])``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

__all__ = ["means"]


def means(scores: pd.DataFrame, metrics: Sequence[str], *levels: Sequence[str]) -> pd.DataFrame:
    """The means of groups of rows, then the means of groups of these means, and so on.

    Args:
        scores: a frame of scores, or of means.
        metrics: the columns that are averaged.
        levels: for each step, the columns whose values the rows of a group share; without any, all rows are one group.

    Returns:
        One row for each group of the last level, in the order of their first rows: its columns and the metrics. NaN is
        the mean of a group without a finite score.

    Example:
        >>> import pandas as pd
        >>> rows = [("a", "liver", 0.9), ("a", "spleen", 0.5), ("b", "liver", 0.8), ("b", "spleen", float("nan"))]
        >>> scores = pd.DataFrame(rows, columns=["case", "organ", "dice"])
        >>> means(scores, ["dice"], ["case"])["dice"].tolist()
        [0.7, 0.8]
        >>> means(scores, ["dice"], ["case"], [])["dice"].tolist()
        [0.75]
    """
    for by in levels:
        groups = scores.groupby(list(by) or np.zeros(len(scores)), dropna=False, sort=False)
        scores = groups[list(metrics)].agg(_mean).reset_index(drop=not by)
    return scores


def _mean(values: pd.Series) -> float:
    """The mean of the finite values. The sum is exact, so that it does not depend on the order of the rows."""
    finite = [value for value in values.tolist() if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan
