"""Means, paired differences and the noise between trainings, as numbers.

A model's score of a case and organ is the mean over its repeated trainings. Means are taken over the organs of a case
first, then over cases, as in the paper. Scores that are not counted are NaN and left out. An infinite score (HD95 of an
organ that is absent in the prediction or the reference alone) is left out of means, and out of a paired difference on
both sides.

An organ that neither the prediction nor the reference has is not counted in a mean. But where a score is compared with
another one of the same case and organ that does count (the other prediction invented the organ: Dice and NSD 0),
leaving the organ out would hide that the other one is worse. Within the repeats of one model, and within a pair of
models for their difference, the correctly empty prediction therefore has the score that the rule `flare` gives it: Dice
and NSD 1, no HD95.

Differences are paired by case, because cases differ more than models do. Their intervals are percentile bootstrap
intervals over cases. Their p-values are those of Wilcoxon's signed-rank test with zero differences split between both
signs (`zsplit`), corrected over the organs by Holm's method within one model and metric. Both describe the variation
between cases alone; `between_trainings` estimates that between trainings of the same model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_dtc.study.evaluation.metrics import metric
from nnunet_dtc.study.evaluation.scores import means

__all__ = [
    "CONFIDENCE",
    "FEWEST_PAIRS",
    "LEVEL",
    "RESAMPLES",
    "average_repeats",
    "bootstrap_interval",
    "case_differences",
    "correctly_empty",
    "fill_empty",
    "holm",
    "model_means",
    "paired_differences",
    "summarise",
    "wilcoxon_p",
]

CONFIDENCE = 0.95
LEVEL = 0.05  # the significance level of all tests
RESAMPLES = 9999
FEWEST_PAIRS = 6  # with five, the smallest p-value of the signed-rank test is 2 / 2**5 = 0.06
SAME = 1e-9  # smaller differences are rounding errors: the case counts as equal
DIFFERENCES = (
    *("model", "metric", "organ", "n", "mean", "low", "high"),
    *("p", "p_holm", "better", "worse", "equal", "left_out", "counted_as_1"),
)


def correctly_empty(scores: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Which rows have no Dice, because the organ is absent in prediction and reference, while another row of the same
    `keys` has one. An NSD alone may be NaN for another reason: its surface touches the ignore label everywhere."""
    counts = scores["dice"].notna()
    return ~counts & counts.groupby([scores[key] for key in keys], dropna=False).transform("any")


def average_repeats(scores: pd.DataFrame, metrics: Sequence[str], over_folds: bool = False) -> pd.DataFrame:
    """The mean over the repeated trainings of each model, for each fold, case and organ.

    A correctly empty repeat counts where another repeat counts, see above. Infinite scores are left out of the mean,
    which is infinite where all scores that count are infinite.

    Args:
        scores: `Comparison.scores`, with `dice` whatever the metrics are.
        metrics: keys of the metrics.
        over_folds: average over the folds as well: one score for each model, case and organ.
    """
    keys = ["model", "case", "organ"] if over_folds else ["model", "fold", "case", "organ"]
    columns = list(metrics)
    filled = fill_empty(scores, columns, keys)
    infinite = np.isinf(filled[columns].astype(float))
    by_key = [scores[key] for key in keys]
    averaged = filled[columns].mask(infinite).groupby(by_key, dropna=False, sort=False).mean()
    all_infinite = averaged.isna() & infinite.groupby(by_key, dropna=False, sort=False).any()
    return averaged.mask(all_infinite, math.inf).reset_index()


def summarise(scores: pd.DataFrame, metrics: Sequence[str], models: Sequence[str], per_fold: bool) -> pd.DataFrame:
    """`Comparison.summary`: the means of each model, their standard deviation over folds (n - 1), and the difference.

    Args:
        scores: `Comparison.scores`.
        metrics: keys of the metrics.
        models: names of the models; the first is the one that the others are compared with.
        per_fold: take the mean over the cases of each fold, then over folds.
    """
    averaged = average_repeats(scores, metrics)
    of_fold = means(averaged, metrics, ["model", "fold", "case"], ["model", "fold"])
    of_model = model_means(averaged, metrics, per_fold, ["model"])
    rows = []
    for model in models:
        folds = of_fold[of_fold["model"] == model]
        for key in metrics:
            mean = of_model.loc[model, key]
            rows.append(
                {
                    "model": model,
                    "metric": key,
                    "mean": mean,
                    "std_folds": folds[key].std(ddof=1) if len(folds) > 1 else math.nan,
                    "difference": math.nan if model == models[0] else mean - of_model.loc[models[0], key],
                }
            )
    return pd.DataFrame(rows)


def paired_differences(
    scores: pd.DataFrame, metrics: Sequence[str], models: Sequence[str], organs: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """`Comparison.differences`: each further model against the first, for the mean over organs ("") and each organ.

    Args:
        scores: `Comparison.scores`.
        metrics: keys of the metrics.
        models: names of the models; the first is the one that the others are compared with.
        organs: names of the organs.
        seed: the seed of the bootstrap.
    """
    averaged = average_repeats(scores, dict.fromkeys(("dice", *metrics)), over_folds=True)
    rows = []
    for model in models[1:]:
        for key in metrics:
            first, other, infinite, filled = _pair(averaged, key, models[0], model)
            of_all = other.mean(axis=1) - first.mean(axis=1)
            rows.append(_paired(model, key, "", of_all, infinite.sum().sum(), filled.sum().sum(), seed))
            of_organs = [
                _paired(
                    model, key, organ, other[organ] - first[organ], infinite[organ].sum(), filled[organ].sum(), seed
                )
                for organ in organs
            ]
            for row, corrected in zip(of_organs, holm([row["p"] for row in of_organs]), strict=True):
                row["p_holm"] = corrected
            rows += of_organs
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def case_differences(scores: pd.DataFrame, key: str, first: str, model: str) -> pd.Series:
    """The differences by case, of means over organs, whose mean is in `paired_differences`.

    Args:
        scores: `Comparison.scores`.
        key: the key of the metric.
        first, model: the names of the two models.
    """
    averaged = average_repeats(scores, dict.fromkeys(("dice", key)), over_folds=True)
    of_first, of_other, _, _ = _pair(averaged, key, first, model)
    return of_other.mean(axis=1) - of_first.mean(axis=1)


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean; NaN for fewer than two differences."""
    if len(differences) < 2:
        return math.nan, math.nan
    result = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def wilcoxon_p(differences: np.ndarray) -> float:
    """The two-sided p-value of the signed-rank test; NaN for fewer than `FEWEST_PAIRS` differences."""
    if len(differences) < FEWEST_PAIRS:
        return math.nan
    if not np.any(differences):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older SciPy warns of its normal approximation where there are ties
        return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979). NaN stays NaN and does not count as a test."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def model_means(scores: pd.DataFrame, metrics: Sequence[str], per_fold: bool, by: list[str]) -> pd.DataFrame:
    """Over organs, then cases; with `per_fold` over organs, the cases of each fold, then folds. Indexed by `by`."""
    with_fold = list(dict.fromkeys([*by, "fold"]))
    steps = [[*with_fold, "case"], with_fold, by] if per_fold else [[*with_fold, "case"], by]
    return means(scores, metrics, *steps).set_index(by)


def fill_empty(scores: pd.DataFrame, metrics: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """The scores, in which correctly empty predictions (`correctly_empty`) have those of the rule `flare`.

    Metrics that have no score for empty organs stay as they are.
    """
    rows = correctly_empty(scores, keys)
    perfect = {key: metric(key).absent_in_both["flare"] for key in metrics}
    return scores.assign(**{key: scores[key].mask(rows, one) for key, one in perfect.items() if not math.isnan(one)})


def _pair(
    averaged: pd.DataFrame, key: str, first: str, model: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Four tables with a row for each case and a column for each organ: the scores of both models as they are paired,
    where one of them was infinite (both are NaN then), and where a correctly empty prediction was filled in."""
    both = averaged[averaged["model"].isin((first, model))]
    empty = correctly_empty(both, ["case", "organ"])
    filled = fill_empty(both, [key], ["case", "organ"])
    filled = filled.assign(filled=empty & filled[key].notna())

    def table(name: str, column: str) -> pd.DataFrame:
        return filled[filled["model"] == name].pivot(index="case", columns="organ", values=column)

    of_first = table(first, key)
    of_other = table(model, key).loc[of_first.index]
    infinite = np.isinf(of_first) | np.isinf(of_other)
    either = table(first, "filled") | table(model, "filled").loc[of_first.index]
    return of_first.mask(infinite), of_other.mask(infinite), infinite, either


def _paired(
    model: str, key: str, organ: str, differences: pd.Series, left_out: int, counted_as_1: int, seed: int
) -> dict:
    values = differences.dropna().to_numpy(dtype=float)
    values = np.where(np.abs(values) < SAME, 0.0, values)
    low, high = bootstrap_interval(values, seed)
    gains = values if metric(key).higher_is_better else -values
    p = wilcoxon_p(values)
    return {
        "model": model,
        "metric": key,
        "organ": organ,
        "n": len(values),
        "mean": float(values.mean()) if len(values) else math.nan,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": p,  # the mean over organs is a single test
        "better": int((gains > 0).sum()),
        "worse": int((gains < 0).sum()),
        "equal": int((gains == 0).sum()),
        "left_out": int(left_out),
        "counted_as_1": int(counted_as_1),
    }
