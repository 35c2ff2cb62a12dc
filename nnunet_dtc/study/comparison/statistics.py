"""Means, paired differences and the noise between trainings.

A model's score of a case and organ is the mean over its repeated trainings. Means go over the organs of a case first,
then over cases, as in the paper. Scores that are not counted are NaN and left out; an infinite HD95 (the organ is
absent in the prediction or the reference) is left out of means, and out of a paired difference on both sides.

An organ that neither the prediction nor the reference has is not counted in a mean. But where a score is set against
another of the same case and organ that does count (the other prediction invented the organ: Dice and NSD 0), leaving
the organ out would hide that the other one is worse. So within one model's repeats, and within a pair of models for
their difference, the rightly empty prediction counts as Dice and NSD 1 there.

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

from nnunet_dtc.study.evaluation.units import difference_unit, higher_is_better, signed, title, value

__all__ = [
    "CONFIDENCE",
    "FEWEST_PAIRS",
    "RESAMPLES",
    "average_repeats",
    "bootstrap_interval",
    "case_differences",
    "case_means",
    "fold_means",
    "holm",
    "means",
    "paired_differences",
    "rightly_empty",
    "run_to_run",
    "summarise",
    "wilcoxon_p",
]

CONFIDENCE = 0.95
RESAMPLES = 9999
FEWEST_PAIRS = 6  # with five, the smallest p-value of the signed-rank test is 2 / 2**5 = 0.06
MORE_THAN_NOISE = 0.05  # p of the noise alone, below which a difference is more than that
SAME = 1e-9  # differences below are round-off: the case counts as equal
DIFFERENCES = (
    *("model", "metric", "organ", "n", "mean", "low", "high"),
    *("p", "p_holm", "better", "worse", "equal", "left_out", "counted_as_1"),
)
NOISE = ("model", "metric", "difference", "run_to_run", "p_noise", "exceeds", "sentence")


def rightly_empty(scores: pd.DataFrame, keys: Sequence[str]) -> pd.Series:
    """Which rows have no Dice (the organ is absent in prediction and reference) while another row of the same `keys`
    has one. An NSD alone may be NaN for another reason: a surface that touches the ignore label everywhere."""
    counts = scores["dice"].notna()
    return ~counts & counts.groupby([scores[key] for key in keys], dropna=False).transform("any")


def average_repeats(scores: pd.DataFrame, metrics: Sequence[str], over_folds: bool = False) -> pd.DataFrame:
    """The mean over repeated trainings of each model, (fold,) case and organ.

    A repeat that is rightly empty counts as Dice and NSD 1 where another one counts. HD95 is the mean of the finite
    ones, and infinite where all that count are infinite.

    Args:
        scores: with `dice`, whatever the metrics are.
        over_folds: over the folds, too: one score for each model, case and organ.
    """
    keys = ["model", "case", "organ"] if over_folds else ["model", "fold", "case", "organ"]
    columns = list(metrics)
    filled = _with_ones(scores, columns, rightly_empty(scores, keys))
    averaged = _finite(filled, columns).groupby(keys, dropna=False, sort=False)[columns].mean()
    by_key = [scores[key] for key in keys]
    infinite = np.isinf(filled[columns].astype(float)).groupby(by_key, dropna=False, sort=False).any()
    return averaged.mask(averaged.isna().to_numpy() & infinite.to_numpy(), math.inf).reset_index()


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
    """`Comparison.differences`: every other model against the first, for the mean over organs ("") and each organ.

    `counted_as_1` says how many pairs of case and organ had a rightly empty prediction on one side, which has no part
    in the means; `left_out` how many had an infinite HD95 on either side.
    """
    averaged = average_repeats(scores, dict.fromkeys(("dice", *metrics)), over_folds=True)
    rows = []
    for model in models[1:]:
        for metric in metrics:
            first, other, infinite, ones = _pair(averaged, metric, models[0], model)
            of_all = other.mean(axis=1) - first.mean(axis=1)
            rows.append(_paired(model, metric, "", of_all, infinite.sum().sum(), ones.sum().sum(), seed))
            of_organs = [
                _paired(
                    model, metric, organ, other[organ] - first[organ], infinite[organ].sum(), ones[organ].sum(), seed
                )
                for organ in organs
            ]
            for row, corrected in zip(of_organs, holm([row["p"] for row in of_organs]), strict=True):
                row["p_holm"] = corrected
            rows += of_organs
    return pd.DataFrame(rows, columns=list(DIFFERENCES))


def case_differences(scores: pd.DataFrame, metric: str, first: str, model: str) -> pd.Series:
    """The paired differences of the means over organs, by case, that `paired_differences` is about."""
    averaged = average_repeats(scores, dict.fromkeys(("dice", metric)), over_folds=True)
    of_first, of_other, _, _ = _pair(averaged, metric, first, model)
    return of_other.mean(axis=1) - of_first.mean(axis=1)


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
    there nothing but that noise. `p_noise` is how often the noise alone gives a difference at least as large:
    two-sided, by Student's t, for the standard deviation is itself an estimate from few trainings. `exceeds` is
    p_noise < 0.05.

    Args:
        trainings: how many of each model, in the order of the comparison.
    """
    freedom = sum(count - 1 for count in trainings.values())
    if freedom == 0:
        return pd.DataFrame(columns=list(NOISE))
    models = list(trainings)
    # as in `average_repeats`, so that the repeats' means are spread around the mean that is compared
    filled = _with_ones(scores, list(metrics), rightly_empty(scores, ["model", "fold", "case", "organ"]))
    of_repeat = means(filled, metrics, per_fold, ("model", "repeat")).reset_index()
    rows = []
    for metric in metrics:
        squares = of_repeat.groupby("model")[metric].agg(lambda each: ((each - each.mean()) ** 2).sum(skipna=False))
        one_training = math.sqrt(squares.sum(skipna=False) / freedom)
        for model in models[1:]:
            noise = one_training * math.sqrt(1 / trainings[models[0]] + 1 / trainings[model])
            here = (summary["model"] == model) & (summary["metric"] == metric)
            difference = float(summary.loc[here, "difference"].iloc[0])
            p = _noise_p(difference, noise, freedom)
            exceeds = pd.NA if math.isnan(p) else p < MORE_THAN_NOISE
            rows.append(
                {
                    "model": model,
                    "metric": metric,
                    "difference": difference,
                    "run_to_run": noise,
                    "p_noise": p,
                    "exceeds": exceeds,
                    "sentence": _noise_sentence(metric, models[0], model, trainings, difference, noise, p, freedom),
                }
            )
    return pd.DataFrame(rows, columns=list(NOISE)).astype({"exceeds": "boolean"})


def _pair(
    averaged: pd.DataFrame, metric: str, first: str, model: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Of both models, case by organ: their scores as they are paired, where one was infinite (both are NaN then), and
    where one is rightly empty and counts as 1."""
    both = averaged[averaged["model"].isin((first, model))]
    empty = rightly_empty(both, ["case", "organ"]) & higher_is_better(metric)
    both = _with_ones(both, [metric], empty).assign(empty=empty)

    def table(name: str, column: str) -> pd.DataFrame:
        return both[both["model"] == name].pivot(index="case", columns="organ", values=column)

    of_first = table(first, metric)
    of_other = table(model, metric).loc[of_first.index]
    infinite = np.isinf(of_first) | np.isinf(of_other)
    ones = table(first, "empty") | table(model, "empty").loc[of_first.index]
    return of_first.mask(infinite), of_other.mask(infinite), infinite, ones


def _noise_p(difference: float, noise: float, freedom: int) -> float:
    if math.isnan(difference) or math.isnan(noise):
        return math.nan
    if noise < SAME:  # all repeats gave the same
        return float(abs(difference) < SAME)
    return float(2 * stats.t.sf(abs(difference) / noise, freedom))


def _paired(
    model: str, metric: str, organ: str, differences: pd.Series, left_out: int, counted_as_1: int, seed: int
) -> dict:
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
        "left_out": int(left_out),
        "counted_as_1": int(counted_as_1),
    }


def _noise_sentence(
    metric: str,
    first: str,
    model: str,
    trainings: Mapping[str, int],
    difference: float,
    noise: float,
    p: float,
    freedom: int,
) -> str:
    subject = f"{title(metric)}, {model} against {first}"
    if math.isnan(p):
        return f"{subject}: no mean of every training, so the run-to-run noise is not known."
    points = difference_unit(metric)
    size, deviation = (f"{text} {points}" for text in (signed(metric, difference), value(metric, noise)))
    verdict = "This is more than the noise explains" if p < MORE_THAN_NOISE else "The noise may explain it"
    # the chi-square interval of a standard deviation, as multiples of its estimate
    low, high = (math.sqrt(freedom / stats.chi2.ppf(q, freedom)) for q in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2))
    weak = "This estimate of the noise is weak" if freedom < 10 else "As to this estimate of the noise"
    return (
        f"{subject}: the difference is {size}, the run-to-run noise {deviation} (one standard deviation of such a "
        f"difference). Noise alone gives a difference at least as large in {_percentage(p)} % of such comparisons "
        f"(Student's t, {freedom} degree{'s' * (freedom > 1)} of freedom). {verdict}. {weak}: it comes from "
        f"{trainings[first]} and {trainings[model]} trainings{_pooled(first, model, trainings)}, and the true noise "
        f"may be {low:.1f} to {high:.1f} times as large (95 %)."
    )


def _percentage(p: float) -> str:
    """`less than 0.1`, `4.9`, `37`: never rounded up to the 5 that it is below."""
    if p < 0.001:
        return "less than 0.1"
    return f"{math.floor(1000 * p) / 10:.1f}" if p < 0.1 else f"{100 * p:.0f}"


def _pooled(first: str, model: str, trainings: Mapping[str, int]) -> str:
    others = sum(count > 1 for name, count in trainings.items() if name not in (first, model))
    return f", pooled with those of {others} more model{'s' * (others > 1)}" if others else ""


def _with_ones(scores: pd.DataFrame, metrics: Sequence[str], rows: pd.Series) -> pd.DataFrame:
    """Dice and NSD of these rows are 1."""
    agreement = [metric for metric in metrics if higher_is_better(metric)]
    return scores.assign(**{metric: scores[metric].mask(rows, 1.0) for metric in agreement})


def _finite(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    return scores.assign(**{metric: scores[metric].mask(np.isinf(scores[metric])) for metric in metrics})
