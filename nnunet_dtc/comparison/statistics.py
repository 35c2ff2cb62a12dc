"""Means, paired differences and the noise between trainings.

A model's score of a case and organ is the mean over its repeated trainings. Means go over the organs of a case first,
then over cases, as in the paper. Scores that are not counted are NaN and left out; an infinite HD95 (the organ is
absent in the prediction or the reference) is left out of means, and out of a paired difference on both sides.

Differences are paired by case, for cases differ more than models. Their interval is the percentile bootstrap over
cases, their p-value Wilcoxon's signed-rank test with zero differences split between both signs (`zsplit`); over the
organs, p-values are corrected by Holm's method within one model and metric. Both see the cases alone: that another
training of the same model would have given another model is not in them, but in `run_to_run`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_dtc.evaluation.units import higher_is_better, signed, title, unit

__all__ = [
    "CONFIDENCE",
    "FEWEST_PAIRS",
    "RESAMPLES",
    "average_repeats",
    "bootstrap_interval",
    "case_means",
    "fold_means",
    "holm",
    "means",
    "paired_differences",
    "run_to_run",
    "summarise",
    "wilcoxon_p",
]

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_PAIRS = 6  # with five, the smallest p-value of the signed-rank test is 2 / 2**5 = 0.06
SAME = 1e-9  # differences below are round-off: the case counts as equal
DIFFERENCES = (
    *("model", "metric", "organ", "n", "mean", "low", "high"),
    *("p", "p_holm", "better", "worse", "equal", "left_out"),
)
NOISE = ("model", "metric", "difference", "run_to_run", "exceeds", "sentence")


def average_repeats(scores: pd.DataFrame, metrics: Sequence[str], over_folds: bool = False) -> pd.DataFrame:
    """The mean over repeated trainings of each model, (fold,) case and organ; infinite where one of them is.

    Args:
        over_folds: over the folds, too: one score for each model, case and organ.
    """
    keys = ["model", "case", "organ"] if over_folds else ["model", "fold", "case", "organ"]
    return scores.groupby(keys, dropna=False, sort=False)[list(metrics)].mean().reset_index()


def case_means(scores: pd.DataFrame, metrics: Sequence[str], keys: Sequence[str]) -> pd.DataFrame:
    """Over the organs of each case; `keys` are the columns that tell cases apart."""
    return _finite(scores, metrics).groupby(list(keys), dropna=False, sort=False)[list(metrics)].mean().reset_index()


def fold_means(scores: pd.DataFrame, metrics: Sequence[str], by: Sequence[str] = ("model",)) -> pd.DataFrame:
    """Over organs, then over the cases of each fold."""
    cases = case_means(scores, metrics, (*by, "fold", "case"))
    return cases.groupby([*by, "fold"], dropna=False, sort=False)[list(metrics)].mean().reset_index()


def means(scores: pd.DataFrame, metrics: Sequence[str], per_fold: bool, by: Sequence[str] = ("model",)) -> pd.DataFrame:
    """Over organs, then cases; with `per_fold`, over organs, the cases of each fold, then folds."""
    parts = fold_means(scores, metrics, by) if per_fold else case_means(scores, metrics, (*by, "fold", "case"))
    return parts.groupby(list(by), sort=False)[list(metrics)].mean()


def summarise(scores: pd.DataFrame, metrics: Sequence[str], models: Sequence[str], per_fold: bool) -> pd.DataFrame:
    """`Comparison.summary`: each model's means, their standard deviation over folds (n - 1), the difference."""
    averaged = average_repeats(scores, metrics)
    of_model, of_fold = means(averaged, metrics, per_fold), fold_means(averaged, metrics)
    rows = []
    for model in models:
        folds = of_fold[of_fold["model"] == model]
        for metric in metrics:
            mean = of_model.loc[model, metric]
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "mean": mean,
                    "std_folds": folds[metric].std(ddof=1) if len(folds) > 1 else math.nan,
                    "difference": math.nan if model == models[0] else mean - of_model.loc[models[0], metric],
                }
            )
    return pd.DataFrame(rows)


def paired_differences(
    scores: pd.DataFrame, metrics: Sequence[str], models: Sequence[str], organs: Sequence[str], seed: int = 0
) -> pd.DataFrame:
    """`Comparison.differences`: every other model against the first, for the mean over organs ("") and each organ."""
    averaged = average_repeats(scores, metrics, over_folds=True)
    rows = []
    for model in models[1:]:
        for metric in metrics:
            first, other = (
                averaged[averaged["model"] == name].pivot(index="case", columns="organ", values=metric)
                for name in (models[0], model)
            )
            other = other.loc[first.index]
            infinite = np.isinf(first) | np.isinf(other)
            first, other = first.mask(infinite), other.mask(infinite)
            rows.append(
                _paired(model, metric, "", other.mean(axis=1) - first.mean(axis=1), int(infinite.sum().sum()), seed)
            )
            of_organs = [
                _paired(model, metric, organ, other[organ] - first[organ], int(infinite[organ].sum()), seed)
                for organ in organs
            ]
            for row, corrected in zip(of_organs, holm([row["p"] for row in of_organs]), strict=True):
                row["p_holm"] = corrected
            rows += of_organs
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def bootstrap_interval(differences: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap's interval of the mean; NaN for fewer than two."""
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
    """Two-sided p of the signed-rank test; NaN for fewer pairs than can ever be significant."""
    if len(differences) < FEWEST_PAIRS:
        return math.nan
    if not np.any(differences):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of older scipy: the normal approximation where there are ties
        return float(stats.wilcoxon(differences, zero_method="zsplit").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979); NaN stay, and do not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[index] = largest
    return corrected


def run_to_run(
    scores: pd.DataFrame,
    metrics: Sequence[str],
    trainings: Mapping[str, int],
    summary: pd.DataFrame,
    per_fold: bool,
) -> pd.DataFrame:
    """`Comparison.noise`: is a difference larger than what repeating the trainings does to it?

    The standard deviation between the means of repeated trainings, pooled over all models that have some, times
    sqrt(1/k + 1/k') for the k and k' trainings of the two models, is the standard deviation of their difference were
    there nothing but that noise.

    Args:
        trainings: how many of each model, in the order of the comparison.
    """
    freedom = sum(count - 1 for count in trainings.values())
    if freedom == 0:
        return pd.DataFrame(columns=list(NOISE))
    models = list(trainings)
    of_repeat = means(scores, metrics, per_fold, ("model", "repeat")).reset_index()
    rows = []
    for metric in metrics:
        squares = of_repeat.groupby("model")[metric].agg(lambda each: ((each - each.mean()) ** 2).sum(skipna=False))
        one_training = math.sqrt(squares.sum(skipna=False) / freedom)
        for model in models[1:]:
            noise = one_training * math.sqrt(1 / trainings[models[0]] + 1 / trainings[model])
            here = (summary["model"] == model) & (summary["metric"] == metric)
            difference = float(summary.loc[here, "difference"].iloc[0])
            known = not (math.isnan(noise) or math.isnan(difference))
            exceeds = abs(difference) > noise if known else pd.NA
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "difference": difference,
                    "run_to_run": noise,
                    "exceeds": exceeds,
                    "sentence": _noise_sentence(
                        metric, models[0], model, trainings, difference, noise, exceeds, freedom
                    ),
                }
            )
    return pd.DataFrame(rows, columns=list(NOISE)).astype({"exceeds": "boolean"})


def _paired(model: str, metric: str, organ: str, differences: pd.Series, left_out: int, seed: int) -> dict:
    values = differences.dropna().to_numpy(dtype=float)
    values = np.where(np.abs(values) < SAME, 0.0, values)
    low, high = bootstrap_interval(values, seed)
    favour = values if higher_is_better(metric) else -values
    p = wilcoxon_p(values)
    return {
        "model": model,
        "metric": metric,
        "organ": organ,
        "n": len(values),
        "mean": float(values.mean()) if len(values) else math.nan,
        "low": low,
        "high": high,
        "p": p,
        "p_holm": p,  # of the mean over organs it is one test
        "better": int((favour > 0).sum()),
        "worse": int((favour < 0).sum()),
        "equal": int((favour == 0).sum()),
        "left_out": left_out,
    }


def _noise_sentence(
    metric: str,
    first: str,
    model: str,
    trainings: Mapping[str, int],
    difference: float,
    noise: float,
    exceeds: object,
    freedom: int,
) -> str:
    subject = f"{title(metric)}, {model} against {first}"
    if exceeds is pd.NA:
        return f"{subject}: no mean of every training, so the run-to-run noise is not known."
    sizes = f"{signed(metric, difference)} {unit(metric)}", f"{signed(metric, noise).lstrip('+')} {unit(metric)}"
    verdict = "exceeds" if exceeds else "does not exceed"
    # the chi-square interval of a standard deviation, as multiples of its estimate
    low, high = (math.sqrt(freedom / stats.chi2.ppf(q, freedom)) for q in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2))
    weak = "This estimate of the noise is weak" if freedom < 10 else "As to this estimate of the noise"
    return (
        f"{subject}: the difference of {sizes[0]} {verdict} the run-to-run noise of {sizes[1]} (one standard deviation "
        f"of such a difference). {weak}: it comes from {trainings[first]} and {trainings[model]} trainings"
        f"{_pooled(first, model, trainings)}, and the true noise may be {low:.1f} to {high:.1f} times as large (95 %)."
    )


def _pooled(first: str, model: str, trainings: Mapping[str, int]) -> str:
    others = sum(count > 1 for name, count in trainings.items() if name not in (first, model))
    return f", pooled with those of {others} more model{'s' * (others > 1)}" if others else ""


def _finite(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    return scores.assign(**{metric: scores[metric].mask(np.isinf(scores[metric])) for metric in metrics})
