"""Sentences about what was compared and how, and about what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_dtc.study.comparison.formatting import difference_text
from nnunet_dtc.study.comparison.logs import TrainingLog
from nnunet_dtc.study.comparison.models import Training
from nnunet_dtc.study.comparison.plan import Plan
from nnunet_dtc.study.comparison.result import ComparedModel
from nnunet_dtc.study.comparison.statistics import (
    FEWEST_PAIRS,
    LEVEL,
    RESAMPLES,
    correctly_empty,
    summarise,
)
from nnunet_dtc.study.evaluation.images import Displacement, displacement_note
from nnunet_dtc.study.evaluation.metrics import METRICS, metric

__all__ = [
    "GIVEN",
    "Facts",
    "infinite_scores",
    "what_was_predicted",
    "write_sentences",
]

GIVEN = "predictions were given"  # the `ComparedModel.checkpoint` of such a model


@dataclass(frozen=True)
class Facts:
    """What the sentences of a comparison are made from.

    Attributes:
        plan: the models, folds and cases that were compared.
        models, metrics, scores, differences: as in `Comparison`.
        logs: the log of each training.
        memory_given: whether the user gave a file of `nnunet-dtc complexity`.
        no_images: whether the images of a pictured case are missing.
        displaced: the cases whose prediction and label are not in the same place.
    """

    plan: Plan
    models: Sequence[ComparedModel]
    metrics: Sequence[str]
    scores: pd.DataFrame
    differences: pd.DataFrame
    logs: Mapping[Training, TrainingLog]
    memory_given: bool
    no_images: bool
    displaced: Mapping[str, Displacement]


def write_sentences(facts: Facts) -> tuple[str, ...]:
    """`Comparison.sentences`."""
    parts = (_subject, _checkpoints, _splits, _geometry, _means, _statistics, _repeats, _trainings, _pictures)
    return tuple(sentence for part in parts for sentence in part(facts))


def what_was_predicted(kind: str, models: Sequence[ComparedModel], cases: int) -> str:
    """The number and kind of cases and the models of which folds predicted them.

    Args:
        kind: `Comparison.kind`.
        models: the models, with their folds.
        cases: the number of cases.

    Returns:
        Such as ``3 held-out cases, predicted by the model of fold 0``.
    """
    what = f"{cases} {'validation' if kind == 'validation' else 'held-out'} case{'s' * (cases != 1)}"
    given = [model.name for model in models if model.checkpoint == GIVEN or not model.folds]
    if len(given) == len(models):
        return f"{what}, with predictions given by the user"
    used = sorted({fold for model in models if model.name not in given for fold in model.folds})
    folds = _folds(used)
    if kind == "validation":
        how = f" of {folds}, each predicted by the model of its own fold"
    elif len(used) == 1:
        how = f", predicted by the model of {folds}"
    elif kind == "test per fold":
        how = f", predicted by each model of {folds} alone"
    else:
        how = f", predicted by the ensemble of {folds}"
    return what + how + (f" ({', '.join(given)}: predictions given by the user)" if given else "")


def infinite_scores(scores: pd.DataFrame, metrics: Sequence[str], models: Sequence[str]) -> dict[str, str]:
    """How many scores are infinite, such as ``2 of nnUNetTrainer, 0 of nnUNetTrainerDTC``, for each metric with some.

    Args:
        scores: `Comparison.scores`.
        metrics: keys of the metrics.
        models: names of the models.
    """
    counts = {key: scores["model"][np.isinf(scores[key])].value_counts() for key in metrics}
    return {
        key: ", ".join(f"{of_key.get(name, 0)} of {name}" for name in models)
        for key, of_key in counts.items()
        if len(of_key)
    }


def _folds(folds: Sequence[int]) -> str:
    return f"fold{'s' * (len(folds) > 1)} {', '.join(map(str, folds))}"


def _subject(facts: Facts) -> list[str]:
    plan, first = facts.plan, facts.models[0]
    what = what_was_predicted(plan.options.kind, facts.models, len(plan.references))
    others = ", ".join(model.name for model in facts.models[1:])
    sentences = [
        f"{others} {'is' if len(facts.models) == 2 else 'are'} compared with {first.name} on {plan.dataset} "
        f"({first.configuration}, {first.plans}): {what}."
    ]
    if end := plan.models[0].left_out:
        sentences.append(f"The names of all trainers end in {end}, which is left out here.")
    if plan.seen_in_training:
        names = ", ".join(plan.seen_in_training[:6])
        sentences.append(
            f"Warning: {len(plan.seen_in_training)} held-out cases have names of cases in splits_final.json ({names}). "
            "If these are the same images, the models have seen them in training."
        )
    return sentences


def _checkpoints(facts: Facts) -> list[str]:
    plan, options = facts.plan, facts.plan.options
    if options.kind == "validation":
        return [
            "nnU-Net does not record which checkpoint the predictions in a validation folder were made with. It is the "
            "final one, unless nnUNetv2_train was called with --val_best, which writes into the same folder."
        ]
    sentences = []
    predicted = [name for name in plan.names.values() if name not in options.predictions]
    if predicted:
        models = ", ".join(predicted) if options.predictions else "every model"
        sentences.append(f"nnU-Net predicted with {options.checkpoint} of {models}.")
        if options.kind == "test" and len(plan.folds) > 1:
            average = {"logits": "logits of the folds were averaged, as in nnU-Net"}
            average["softmax"] = "softmax outputs of the folds were averaged, as in the paper"
            sentences[-1] += f" The {average[options.average]}."
    if options.predictions:
        given = f"The predictions of {', '.join(options.predictions)} were given by the user"
        if options.folds is None:
            sentences.append(f"{given}. It is not known which folds and checkpoints they were made with.")
        else:
            sentences.append(
                f"{given}, who reported that they are of {_folds(plan.folds)}. It is not known which checkpoints they "
                "were made with."
            )
    return sentences


def _splits(facts: Facts) -> list[str]:
    checked = facts.plan.splits_checked
    if not checked:
        return [
            "It could not be checked whether the models were trained on the same splits, because not all of them have "
            "been validated."
        ]
    subject = "The folds' validation cases"
    if facts.plan.options.kind != "validation":
        subject = "The validation cases of the folds that all models have validated"
    if checked == "each other":
        return [f"{subject} are the same for all models. There was no splits_final.json to compare them with."]
    return [f"{subject} are the same for all models, and agree with splits_final.json in the folds that it has."]


def _geometry(facts: Facts) -> list[str]:
    return [displacement_note(facts.displaced, len(facts.plan.references))] if facts.displaced else []


def _means(facts: Facts) -> list[str]:
    options = facts.plan.options
    sentences = ["Means are taken over the organs of a case, then over cases, as in the paper."]
    if options.kind == "test per fold":
        sentences = [
            "Means are taken over the organs of a case, over cases, then over folds, and ± is the standard deviation "
            "over folds (n - 1), as in the paper's tables 1 and 2. In paired differences, the score of a case is its "
            "mean over folds."
        ]
    elif options.kind == "validation" and len(facts.plan.folds) > 1:
        sentences.append("± is the standard deviation (n - 1) of the folds' means; every fold has its own cases.")
    if options.absent == "skip":
        sentences.append("An organ that neither the prediction nor the label has is not counted.")
        sentences += _correctly_empty(facts)
    else:
        sentences.append(f"An organ that neither the prediction nor the label has counts as {_perfect()}.")
    names = [model.name for model in facts.models]
    for key, counts in infinite_scores(facts.scores, facts.metrics, names).items():
        title = metric(key).title
        sentences.append(
            f"{title} is infinite where an organ is absent in the prediction or in the label alone: {counts}. Infinite "
            "values are left out of its means, and out of paired differences on both sides. The difference of two mean "
            f"{title} may therefore differ from the mean paired difference."
        )
    return sentences


def _perfect() -> str:
    """The scores of an organ that is correctly empty: `Dice 1 and NSD 1`."""
    scores = {entry.title: entry.absent_in_both["flare"] for entry in METRICS.values()}
    return " and ".join(f"{title} {score:g}" for title, score in scores.items() if not math.isnan(score))


def _correctly_empty(facts: Facts) -> list[str]:
    """Where an empty prediction counts although the label lacks the organ, because another prediction is not empty."""
    sentences, names = [], [model.name for model in facts.models]
    per_fold = facts.plan.options.kind == "test per fold"
    within = facts.scores[correctly_empty(facts.scores, ["model", "case", "organ"])].groupby("model").size()
    if len(within):
        counts = ", ".join(f"{within.get(name, 0)} of {name}" for name in names)
        where = "paired differences and in means over trainings" if per_fold else "the mean over them"
        sentences.append(
            "Where the label lacks an organ that some of a model's trainings or folds predict and others do not, the "
            f"empty predictions count as {_perfect()} in {where} (predictions of an organ: {counts})."
        )
    filled = facts.differences[(facts.differences["organ"] == "") & (facts.differences["counted_as_1"] > 0)]
    if filled.empty:
        return sentences
    pairs = filled.groupby("model", sort=False)["counted_as_1"].max()
    counts = ", ".join(f"{count} of {model} and {names[0]}" for model, count in pairs.items())
    sentences.append(
        "Where the label lacks an organ that one of two compared models predicts and the other does not, the empty "
        f"prediction counts as {_perfect()} in their paired difference, but not in the means (pairs of a case and an "
        f"organ: {counts})."
    )
    means = summarise(facts.scores, list(dict.fromkeys(filled["metric"])), names, per_fold)
    of_means = means.set_index(["model", "metric"])["difference"]
    unlike = []
    for row in filled.itertuples():
        of, other = metric(row.metric), of_means[row.model, row.metric]
        paired = difference_text(of, row.mean)
        if math.isnan(other) or round(of.factor * (row.mean - other), 2) != 0:
            instead = "" if math.isnan(other) else f"instead of {difference_text(of, other)} "
            unlike.append(f"{of.title} of {row.model} {paired} {instead}{of.difference_unit}")
    if unlike:
        sentences.append(
            f"The mean paired difference is therefore not the difference of the means: {', '.join(unlike)}."
        )
    return sentences


def _statistics(facts: Facts) -> list[str]:
    sentences = [
        f"Differences are paired by case. Their 95 % intervals are percentile bootstrap intervals over cases "
        f"({RESAMPLES} resamples, seed {facts.plan.options.seed}). p is that of Wilcoxon's signed-rank test "
        "(two-sided, zero differences split), corrected over organs by Holm's method within one model and metric.",
        "The intervals are those of the mean, while p is based on ranks: where few cases differ much, as is common for "
        "distances such as HD95, the interval may include 0 although p is small. Both describe what other cases might "
        "give, not what another training would give.",
    ]
    if len(facts.models) > 2:
        chance = "The more models are compared, the likelier one of them differs by chance. "
        if facts.scores["fold"].nunique() > 1 or any(len(model.repeats) > 1 for model in facts.models):
            sentences.append(
                f"{chance}What is said of folds, repeated trainings and their noise is therefore based on p-values "
                "corrected over the models, by Holm's method within one metric. The intervals, and p over cases, are "
                "not corrected for the number of models."
            )
        else:
            sentences.append(f"{chance}Intervals and p over cases are not corrected for the number of models.")
    if (facts.differences["n"] < FEWEST_PAIRS).any():
        sentences.append(f"No p is given for fewer than {FEWEST_PAIRS} pairs, because it could not be below {LEVEL:g}.")
    if facts.plan.options.kind == "validation" and len(facts.plan.folds) > 1:
        sentences.append(
            "Intervals and p assume that cases are independent, although all cases of a fold were predicted by the "
            "same network, and those of different folds by different networks."
        )
    if facts.plan.options.kind == "test per fold" and len(facts.plan.folds) > 1:
        sentences.append(
            "All folds predict the same held-out cases, so the interval over folds describes what other trainings "
            "might give on these cases, not what other cases might give. It may be too short: the correction for the "
            "overlap of the training sets was proposed for folds with cases of their own, and on the same cases the "
            "folds' differences can be more alike."
        )
    return sentences


def _repeats(facts: Facts) -> list[str]:
    if all(len(model.repeats) < 2 for model in facts.models):
        unknown = "It is not known how much they differ, nor whether the differences between the models are larger"
        if facts.scores["fold"].nunique() > 1:
            unknown = "The differences between folds contain this noise, but it is not known how large it is alone"
        return [
            f"No training was repeated. Another training of the same model gives other numbers. {unknown} (to find "
            "out, train the same models again as ..._rep2)."
        ]
    counts = ", ".join(f"{len(model.repeats)} of {model.name}" for model in facts.models)
    sentences = [
        f"Trainings: {counts}. The scores of a model are the means over its trainings, without infinite scores.",
        "The pictures show each model's first training, with its Dice. Their cases are chosen by the mean over "
        "trainings.",
    ]
    if once := [model.name for model in facts.models if len(model.repeats) == 1]:
        sentences.append(f"For {', '.join(once)}, trained once, the noise is assumed to be that of the other models.")
    return sentences


def _trainings(facts: Facts) -> list[str]:
    sentences = []
    by_model = {
        model.name: sorted({n for training in model.trainings for n in facts.logs[training].epochs.values()})
        for model in facts.plan.models
    }
    if len({tuple(epochs) for epochs in by_model.values() if epochs}) > 1 or any(len(e) > 1 for e in by_model.values()):
        text = "; ".join(f"{name}: {', '.join(map(str, epochs)) or 'not known'}" for name, epochs in by_model.items())
        sentences.append(f"Not all trainings have the same number of epochs ({text}).")
    missing = [f"{training.trainer} fold {fold}" for training, log in facts.logs.items() for fold in log.missing]
    if missing:
        sentences.append(f"There is no checkpoint, and therefore no training log, of {', '.join(missing)}.")
    without = [model.name for model in facts.models if model.peak_memory_mib is None]
    if facts.memory_given and without:
        sentences.append(f"The complexity file has no peak memory of {', '.join(without)}.")
    return sentences


def _pictures(facts: Facts) -> list[str]:
    if not facts.no_images:
        return []
    return ["The images of some cases were not found (in nnUNet_raw), so their pictures are left out of the page."]
