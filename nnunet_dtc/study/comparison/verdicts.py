"""Sentences about what the numbers of a comparison show."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from nnunet_dtc.study.comparison.between_trainings import MOST_TRAININGS, deviation_factors
from nnunet_dtc.study.comparison.formatting import difference_text, interval_text, p_text, score_text
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.statistics import FEWEST_PAIRS, LEVEL
from nnunet_dtc.study.evaluation.metrics import Metric, metric

__all__ = ["case_verdict", "noise_sentences", "verdict", "verdict_sentences"]


def verdict(row: pd.Series, between: pd.Series | None) -> str:
    """What is known of one difference between two models.

    Args:
        row: a row of `Comparison.differences`.
        between: the row of the same difference in `Comparison.noise`; None if there is none.
    """
    of = metric(row["metric"])
    if math.isnan(row["mean"]):
        return "There is no case with a score of both models."
    if between is None or math.isnan(between["p"]):
        return f"It is not known whether {of.title} differs: {_unknown(between)}."
    by, needed = between["method"], _needed(between["needed"])
    if between["p_holm"] < LEVEL:
        better = (between["mean"] > 0) == of.higher_is_better
        return f"{of.title} is {'better' if better else 'worse'}: the interval over {by} excludes 0."
    if between["p"] < LEVEL:
        return (
            f"No difference in {of.title} is shown: the interval over {by} excludes 0, but corrected for the number of "
            f"models p is {p_text(between['p_holm'])}.{needed}"
        )
    return f"No difference in {of.title} is shown: the interval over {by} includes 0.{needed}"


def case_verdict(row: pd.Series) -> str:
    """What the interval over cases and the test of one difference show about these trained networks.

    Args:
        row: a row of `Comparison.differences`.
    """
    of, n = metric(row["metric"]), row["n"]
    if math.isnan(row["mean"]):
        return "There is no case with a score of both models."
    if math.isnan(row["low"]) or math.isnan(row["p"]):
        return f"{n} case{'s are' if n != 1 else ' is'} too few for a conclusion: the test needs {FEWEST_PAIRS}."
    includes_0, significant = row["low"] <= 0 <= row["high"], row["p"] < LEVEL
    if includes_0 and significant:
        return f"No clear difference in {of.title}: p is below {LEVEL:g}, but the interval includes 0."
    if includes_0:
        return f"These cases do not show a difference in {of.title}: the interval includes 0."
    if not significant:
        return f"No clear difference in {of.title}: the interval excludes 0, but p is not below {LEVEL:g}."
    better = (row["mean"] > 0) == of.higher_is_better
    return (
        f"On these cases {of.title} is {'better' if better else 'worse'} with these trained networks: the interval "
        f"excludes 0, and p is below {LEVEL:g}."
    )


def _unknown(between: pd.Series | None) -> str:
    return (
        "there is one training each, and another one may give the opposite"
        if between is None
        else "not every training or fold has a mean"
    )


def _needed(trainings: float) -> str:
    """How many trainings a difference of this size would need, where that is known."""
    if math.isnan(trainings):
        return ""
    number = f"more than {MOST_TRAININGS:,}" if math.isinf(trainings) else f"about {trainings:.0f}"
    return f" A difference of this size would need {number} trainings of each model."


def verdict_sentences(comparison: Comparison) -> list[str]:
    """What is known of the first metric of each model against the first one."""
    key, first = comparison.metrics[0], comparison.models[0].name
    sentences = []
    for model in comparison.models[1:]:
        of_model = comparison.differences[comparison.differences["model"] == model.name]
        row = of_model[(of_model["metric"] == key) & (of_model["organ"] == "")].iloc[0]
        sentences.append(f"{model.name} against {first}: {verdict(row, comparison.between(key, model.name))}")
    return sentences


def noise_sentences(noise: pd.DataFrame, trainings: Mapping[str, int]) -> list[str]:
    """One sentence or more for each row of `Comparison.noise`.

    Args:
        noise: `Comparison.noise`.
        trainings: `Comparison.trainings`.
    """
    return [_noise(row, trainings) for row in noise.itertuples()]


def _noise(row: tuple, trainings: Mapping[str, int]) -> str:
    of, first = metric(row.metric), next(iter(trainings))
    subject = f"{of.title}, {row.model} against {first}: "
    first_part, *others = _noise_parts(row, of, trainings)
    return " ".join([subject + first_part, *others])


def _noise_parts(row: tuple, of: Metric, trainings: Mapping[str, int]) -> list[str]:
    parts = []
    if row.method == "folds":
        if math.isnan(row.p):
            parts.append("not every fold has a mean, so the interval over folds is not known.")
        else:
            parts.append(
                f"the mean of the folds' differences is {difference_text(of, row.mean)} {of.difference_unit} (95 % "
                f"interval over folds {interval_text(of, row.low, row.high)}, p {_equals(row.p)}"
                f"{_for_all_models(row.p_holm, trainings)}, Student's t, {_freedom(int(row.freedom))}, corrected for "
                "the overlap of the folds' training sets, "
                f"r = {row.overlap:.2g})."
            )
    if sum(trainings.values()) == len(trainings):
        return parts
    if math.isnan(row.p_noise):
        return [*parts, "not every training has a mean, so the run-to-run noise is not known."]
    first, freedom = next(iter(trainings)), sum(count - 1 for count in trainings.values())
    pooled = sum(count > 1 for name, count in trainings.items() if name not in (first, row.model))
    low, high = deviation_factors(freedom)
    parts += [
        f"{'The' if parts else 'the'} difference is {difference_text(of, row.difference)} {of.difference_unit}, the "
        f"run-to-run noise {score_text(of, row.run_to_run)} {of.difference_unit} (one standard deviation of such a "
        "difference).",
        f"Noise alone gives a difference at least as large in {_percentage(row.p_noise)} % of such comparisons "
        f"(Student's t, {_freedom(freedom)}{_for_all_models(row.p_noise_holm, trainings)}).",
    ]
    if row.method == "trainings":
        parts.append(f"The 95 % interval over trainings is {interval_text(of, row.low, row.high)}.")
    parts.append("The difference is larger than the noise explains." if row.exceeds else "The noise may explain it.")
    if not row.exceeds and (needed := _needed(row.needed)):
        parts.append(needed.strip())
    parts.append(
        f"The estimate of the noise {'is weak: it ' if freedom < 10 else ''}comes from {trainings[first]} and "
        f"{trainings[row.model]} trainings"
        + (f", pooled with those of {pooled} more model{'s' * (pooled > 1)}" if pooled else "")
        + f", and the true noise may be {low:.1f} to {high:.1f} times as large (95 %)."
    )
    return parts


def _for_all_models(p: float, trainings: Mapping[str, int]) -> str:
    """A corrected p-value, where there are several models to correct for."""
    return f", corrected for the number of models p {_equals(p)}" if len(trainings) > 2 else ""


def _freedom(freedom: int) -> str:
    return f"{freedom} degree{'s' * (freedom > 1)} of freedom"


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _percentage(p: float) -> str:
    """`less than 0.1`, `4.9`, `37`: never rounded up to the 5 that it is below."""
    if p < 0.001:
        return "less than 0.1"
    return f"{math.floor(1000 * p) / 10:.1f}" if p < 0.1 else f"{100 * p:.0f}"
