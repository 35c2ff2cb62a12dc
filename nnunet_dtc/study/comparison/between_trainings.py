"""What is known about the difference between two models beyond the networks that happen to have been trained.

Two trainings of one model differ, because weights, patches and augmentation are random. A difference between two
models says something about the models only if it is large compared with this noise, which cases alone cannot show. The
analysis follows from what was trained:

========================  ============================================================================================
several folds             the folds' differences, each between means over the repeated trainings of the fold
one fold or an ensemble   the means of repeated trainings
one training each         not known
========================  ============================================================================================

**Folds.** With trainings (random) within folds (random), the mean square of the interaction between models and folds is
the error term of the difference between two models in a balanced mixed model (Montgomery, *Design and Analysis of
Experiments*, on mixed models with one fixed factor). This is Student's t of the folds' paired differences, with one
degree of freedom less than there are folds, however many trainings each fold has. The training sets of the folds
overlap, so their differences are not independent: the variance of their mean is s^2 (1/k + r) instead of s^2 / k
(Nadeau and Bengio, *Inference for the Generalization Error*, Machine Learning 52, 2003), where r is the number of
validation cases over that of training cases (Bouckaert and Frank, PAKDD 2004): 1/4 for nnU-Net's five folds, however
many of them are compared. Where no split is known, r is 1/(k - 1), as if the k compared folds were all. Where all folds
predict the same held-out cases, the same r is used (ours), although the folds' differences can then be more alike: the
interval describes other trainings on these cases, and may be too short for them.

**Repeated trainings.** Student's t for the difference of two means, with the standard deviation of one training pooled
over all models that were trained several times (ours: two or three trainings of a model are too few for a standard
deviation of its own, as Welch's test needs).

**Several models.** The more models are compared with the first one, the likelier one of them differs by chance. The
p-values of one metric are therefore corrected over the models by Holm's method, and conclusions follow from the
corrected ones. Intervals are not corrected.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy import stats

from nnunet_dtc.study.comparison.statistics import CONFIDENCE, LEVEL, SAME, fill_empty, holm, model_means

__all__ = ["MOST_TRAININGS", "POWER", "between_trainings", "deviation_factors", "trainings_needed"]

POWER = 0.8
MOST_TRAININGS = 1000  # of a model; more are not counted
COLUMNS = (
    *("model", "metric", "difference", "run_to_run", "p_noise", "p_noise_holm", "exceeds"),
    *("method", "mean", "low", "high", "p", "p_holm", "freedom", "overlap", "needed"),
)


def between_trainings(
    scores: pd.DataFrame,
    metrics: list[str] | tuple[str, ...],
    trainings: Mapping[str, int],
    summary: pd.DataFrame,
    per_fold: bool,
    validation_ratio: float | None = None,
) -> pd.DataFrame:
    """`Comparison.noise`: is a difference larger than the differences between repeated trainings, and between folds?

    The standard deviation between the means of repeated trainings is pooled over all models that have some. Multiplied
    by sqrt(1/k + 1/k'), for the k and k' trainings of two models, it is the standard deviation of their difference if
    there is nothing but this noise (`run_to_run`). `p_noise` is the probability that the noise alone gives a difference
    at least as large: two-sided, by Student's t, because the standard deviation is itself an estimate from few
    trainings. `p_noise_holm` is corrected over the models, and `exceeds` is ``p_noise_holm < 0.05``.

    `method` is "folds" or "trainings", see the beginning of this module, and `mean`, `low`, `high`, `p` and `freedom`
    are the difference by that method with its 95 % interval, two-sided p-value and degrees of freedom. `p_holm` is the
    p-value corrected over the models. `overlap` is the r of the beginning of this module, by which the interval over
    folds is corrected; otherwise NaN. `needed` is the number of trainings of each model that a difference of this size
    needs (`trainings_needed`), at a level of 0.05 divided by the number of differences (Bonferroni's correction, which
    Holm's makes for the smallest p-value); it is not known for folds, of which there cannot be more.

    Args:
        scores: `Comparison.scores`.
        metrics: keys of the metrics.
        trainings: the number of trainings of each model, in the order of the comparison.
        summary: `Comparison.summary`.
        per_fold: as for `summarise`.
        validation_ratio: the number of validation cases over that of training cases; None where it is not known.

    Returns:
        Without rows if there is one training of each model, and one fold or an ensemble.
    """
    freedom = sum(count - 1 for count in trainings.values())
    folds = scores["fold"].nunique()
    if freedom == 0 and folds < 2:
        return pd.DataFrame(columns=list(COLUMNS))
    models, metrics = list(trainings), list(metrics)
    # as in `average_repeats`, so that the repeats' means are spread around the mean that is compared
    filled = fill_empty(scores, metrics, ["model", "fold", "case", "organ"])
    of_repeat = model_means(filled, metrics, per_fold, ["model", "repeat"]).reset_index()
    of_fold = model_means(filled, metrics, True, ["model", "fold", "repeat"]).groupby(["model", "fold"])
    of_fold = of_fold[metrics].agg(lambda each: each.mean(skipna=False))
    rows = []
    for key in metrics:
        one_training = math.nan
        if freedom:
            squares = of_repeat.groupby("model")[key].agg(lambda each: ((each - each.mean()) ** 2).sum(skipna=False))
            one_training = math.sqrt(squares.sum(skipna=False) / freedom)
        for model in models[1:]:
            here = (summary["model"] == model) & (summary["metric"] == key)
            difference = float(summary.loc[here, "difference"].iloc[0])
            noise = one_training * math.sqrt(1 / trainings[models[0]] + 1 / trainings[model])
            p_noise = _p(difference, noise, freedom)
            row = {"model": model, "metric": key, "difference": difference, "run_to_run": noise, "p_noise": p_noise}
            if folds > 1:
                differences = of_fold.loc[model, key] - of_fold.loc[models[0], key]
                deviation = float(differences.std(ddof=1, skipna=False))
                overlap = 1 / (folds - 1) if validation_ratio is None else validation_ratio
                row |= {"method": "folds", "overlap": overlap, "needed": math.nan}
                # corrected for the overlap of the folds' training sets
                error = deviation * math.sqrt(1 / folds + overlap)
                row |= _student(float(differences.mean(skipna=False)), error, folds - 1)
            else:
                needed = trainings_needed(difference, one_training, LEVEL / (len(models) - 1))
                row |= {"method": "trainings", "overlap": math.nan, "needed": needed}
                row |= _student(difference, noise, freedom)
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    for p in ("p", "p_noise"):
        table[f"{p}_holm"] = table.groupby("metric", sort=False)[p].transform(holm)
    table["exceeds"] = (table["p_noise_holm"] < LEVEL).astype("boolean").mask(table["p_noise_holm"].isna())
    return table


def trainings_needed(difference: float, deviation: float, level: float = LEVEL) -> float:
    """How many trainings of each of two models show a difference of this size with a probability of 80 %.

    Args:
        difference: between the means of the two models.
        deviation: the standard deviation between trainings of one model.
        level: the significance level; 0.05 divided by the number of differences where there are several.

    Returns:
        The smallest number for which Student's two-sided test at this level has that power, by the noncentral
        t-distribution; infinity for more than `MOST_TRAININGS`, and NaN where one of the numbers is not known.
    """
    if math.isnan(difference) or math.isnan(deviation):
        return math.nan
    if deviation < SAME:
        return math.inf if abs(difference) < SAME else 2
    counts = np.arange(2, MOST_TRAININGS + 1)
    freedom, shift = 2 * (counts - 1), abs(difference) / (deviation * np.sqrt(2 / counts))
    critical = stats.t.ppf(1 - level / 2, freedom)
    # the probability of the wrong sign is left out: it is below 1e-6 where the power is 80 %
    enough = counts[stats.nct.sf(critical, freedom, np.minimum(shift, 30)) >= POWER]  # scipy has no larger shifts
    return float(enough[0]) if len(enough) else math.inf


def deviation_factors(freedom: int) -> tuple[float, float]:
    """The 95 % interval of a standard deviation as multiples of its estimate, by the chi-square distribution.

    Args:
        freedom: the degrees of freedom of the estimate.
    """
    quantiles = stats.chi2.ppf([(1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2], freedom)
    low, high = np.sqrt(freedom / quantiles).tolist()
    return low, high


def _student(mean: float, error: float, freedom: int) -> dict[str, float]:
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "p": _p(mean, error, freedom), "freedom": freedom}


def _p(difference: float, error: float, freedom: int) -> float:
    if math.isnan(difference) or math.isnan(error):
        return math.nan
    if error < SAME:  # all gave the same
        return float(abs(difference) < SAME)
    return float(2 * stats.t.sf(abs(difference) / error, freedom))
