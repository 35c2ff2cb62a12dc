"""What a reader must know to read the numbers, in plain sentences: what was compared, how, and what is not known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_dtc.study.comparison.logs import TrainingLog
from nnunet_dtc.study.comparison.models import Training
from nnunet_dtc.study.comparison.plan import Plan
from nnunet_dtc.study.comparison.result import ComparedModel
from nnunet_dtc.study.comparison.statistics import FEWEST_PAIRS, RESAMPLES, rightly_empty, summarise
from nnunet_dtc.study.evaluation import units
from nnunet_dtc.study.evaluation.images import Displacement, displacement_note

__all__ = ["Facts", "what_was_predicted", "write_sentences"]

GIVEN = "predictions were given"  # as `ComparedModel.checkpoint` says it


@dataclass(frozen=True)
class Facts:
    """What the sentences are made from."""

    plan: Plan
    models: Sequence[ComparedModel]
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
    """How many cases of which kind, and by which folds' models: `3 held-out cases, predicted by the model of fold 0`.

    Args:
        kind: of the comparison.
        models: their folds and given predictions are named.
        cases: how many.
    """
    what = f"{cases} {'validation' if kind == 'validation' else 'held-out'} case{'s' * (cases != 1)}"
    given = [model.name for model in models if model.checkpoint == GIVEN or not model.folds]
    if len(given) == len(models):
        return f"{what}, predictions as they were given"
    used = sorted({fold for model in models if model.name not in given for fold in model.folds})
    folds = f"fold{'s' * (len(used) > 1)} {', '.join(map(str, used))}"
    if kind == "validation":
        how = f" of {folds}, each predicted by the model of its own fold"
    elif len(used) == 1:
        how = f", predicted by the model of {folds}"
    elif kind == "test per fold":
        how = f", predicted by each model of {folds} alone"
    else:
        how = f", predicted by the ensemble of {folds}"
    return what + how + (f" ({', '.join(given)}: as given)" if given else "")


def _subject(facts: Facts) -> list[str]:
    plan, first = facts.plan, facts.models[0]
    what = what_was_predicted(plan.options.kind, facts.models, len(plan.references))
    others = ", ".join(model.name for model in facts.models[1:])
    sentences = [
        f"{others} compared with {first.name} on {plan.dataset} ({first.configuration}, {first.plans}): {what}."
    ]
    if end := plan.models[0].left_out:
        sentences.append(f"The names of all trainers end in {end}, which is left out here.")
    if plan.seen_in_training:
        names = ", ".join(plan.seen_in_training[:6])
        sentences.append(
            f"Warning: {len(plan.seen_in_training)} held-out cases have names of cases in splits_final.json ({names}); "
            "if these are the same images, the models have seen them in training."
        )
    return sentences


def _checkpoints(facts: Facts) -> list[str]:
    plan, options = facts.plan, facts.plan.options
    if options.kind == "validation":
        return [
            "nnU-Net does not record which checkpoint made a validation folder: it is the final one, unless the "
            "training was called with --val_best, which writes into the same folder."
        ]
    sentences = []
    predicted = [name for name in plan.names.values() if name not in options.predictions]
    if predicted:
        averaged = {"logits": "logits, as nnU-Net does", "softmax": "softmax outputs, as the paper does"}[
            options.average
        ]
        average = f" The folds were averaged over their {averaged}." if len(plan.folds) > 1 else ""
        models = ", ".join(predicted) if options.predictions else "every model"
        sentences.append(
            f"nnU-Net predicted with {options.checkpoint} of {models}." + (average if options.kind == "test" else "")
        )
    if options.predictions:
        given = f"Predictions were given for {', '.join(options.predictions)}"
        if options.folds is None:
            sentences.append(f"{given}; from which folds and checkpoints they were made is not known.")
        else:
            folds = f"fold{'s' * (len(plan.folds) > 1)} {', '.join(map(str, plan.folds))}"
            sentences.append(
                f"{given}, which the user reported to be of {folds}; from which checkpoints they were made is not "
                "known."
            )
    return sentences


def _splits(facts: Facts) -> list[str]:
    checked = facts.plan.splits_checked
    if not checked:
        return ["Whether the models were trained on the same splits could not be checked: not all have been validated."]
    subject = "The folds' validation cases"
    if facts.plan.options.kind != "validation":
        subject = "The validation cases of the folds that all models have validated"
    if checked == "each other":
        return [f"{subject} are the same for all models; there was no splits_final.json to compare."]
    return [f"{subject} are the same for all models, and those of splits_final.json in the folds that it has."]


def _geometry(facts: Facts) -> list[str]:
    return [displacement_note(facts.displaced, len(facts.plan.references))] if facts.displaced else []


def _means(facts: Facts) -> list[str]:
    options, scores = facts.plan.options, facts.scores
    sentences = ["Means are over the organs of a case, then over cases, as in the paper."]
    if options.kind == "test per fold":
        sentences = [
            "Means are over the organs of a case, over cases, then over folds, and ± is the standard deviation over "
            "folds (n - 1), the form of the paper's tables 1 and 2. For the paired differences a case's score is the "
            "mean over folds."
        ]
    elif options.kind == "validation" and len(facts.plan.folds) > 1:
        sentences.append("± is the standard deviation (n - 1) of the folds' means, each of its own cases.")
    if options.absent == "skip":
        sentences.append("An organ that neither the prediction nor the label has is not counted.")
        sentences += _rightly_empty(facts)
    else:
        sentences.append("An organ that neither the prediction nor the label has counts as Dice and NSD 1.")
    infinite = scores[np.isinf(scores["hd95_mm"])].groupby("model", sort=False).size()
    if len(infinite):
        counts = ", ".join(f"{infinite.get(model.name, 0)} of {model.name}" for model in facts.models)
        sentences.append(
            f"HD95 is infinite where an organ is absent in the prediction or the label alone: {counts}. These are left "
            "out of its means, and out of paired differences on both sides, so that the difference of two means of "
            "HD95 need not be the mean paired difference."
        )
    return sentences


def _rightly_empty(facts: Facts) -> list[str]:
    """Where a prediction that is rightly empty counts all the same, since another one of the case is not."""
    sentences, names = [], [model.name for model in facts.models]
    per_fold = facts.plan.options.kind == "test per fold"
    within = facts.scores[rightly_empty(facts.scores, ["model", "case", "organ"])].groupby("model").size()
    if len(within):
        counts = ", ".join(f"{within.get(name, 0)} of {name}" for name in names)
        where = "paired differences, and in means over trainings" if per_fold else "the mean over them"
        sentences.append(
            "Where the label lacks an organ that some of a model's trainings or folds leave empty and others do not, "
            f"those that leave it empty count as Dice and NSD 1 in {where} (predictions of an organ: {counts})."
        )
    filled = facts.differences[(facts.differences["organ"] == "") & (facts.differences["counted_as_1"] > 0)]
    if filled.empty:
        return sentences
    pairs = filled.groupby("model", sort=False)["counted_as_1"].max()
    counts = ", ".join(f"{count} of {model} and {names[0]}" for model, count in pairs.items())
    sentences.append(
        "Where the label lacks an organ that one of two compared models leaves empty and the other does not, the empty "
        f"one counts as Dice and NSD 1 in their paired difference, though not in the means (pairs of a case and an "
        f"organ: {counts})."
    )
    metrics = list(dict.fromkeys(filled["metric"]))
    plain = summarise(facts.scores, metrics, names, per_fold).set_index(["model", "metric"])["difference"]
    unlike = []
    for row in filled.itertuples():
        of_means = plain[row.model, row.metric]
        if round(units.factor(row.metric) * (row.mean - of_means), 2) != 0:  # NaN too: there is no other mean
            instead = f"instead of {units.signed(row.metric, of_means)} " if not math.isnan(of_means) else ""
            size = f"{units.signed(row.metric, row.mean)} {instead}{units.difference_unit(row.metric)}"
            unlike.append(f"{units.title(row.metric)} of {row.model} {size}")
    if unlike:
        sentences.append(f"So the mean paired difference is not the difference of the means: {', '.join(unlike)}.")
    return sentences


def _statistics(facts: Facts) -> list[str]:
    sentences = [
        f"Differences are paired by case; their 95 % intervals are percentile bootstraps over cases ({RESAMPLES} "
        f"resamples, seed {facts.plan.options.seed}); p is of Wilcoxon's signed-rank test (two-sided, zero differences "
        "split), corrected over organs by Holm's method within one model and metric.",
        "Intervals are of the mean, p is of ranks: where few cases differ much, as with HD95, one may hold 0 and the "
        "other be small. Both say what other cases might give, not what another training would give.",
    ]
    pairs = facts.differences["n"]
    if (pairs < FEWEST_PAIRS).any():
        sentences.append(f"Where there are fewer than {FEWEST_PAIRS} pairs no p is given: it could not be below 0.05.")
    if facts.plan.options.kind == "validation" and len(facts.plan.folds) > 1:
        sentences.append(
            "Cases of different folds were predicted by different networks, and all of a fold's by the same: intervals "
            "and p take them for independent."
        )
    return sentences


def _repeats(facts: Facts) -> list[str]:
    repeated = [model for model in facts.models if len(model.repeats) > 1]
    if not repeated:
        return [
            "No training was repeated. Another training of the same model gives other numbers; how far these are apart "
            "is not known, nor whether the differences are larger (train the same again as ..._rep2)."
        ]
    counts = ", ".join(f"{len(model.repeats)} of {model.name}" for model in facts.models)
    sentences = [
        f"Trainings: {counts}; a model's scores are the mean over its trainings, HD95 over those where it is finite.",
        "Pictures are of each model's first training, with that one's Dice; the cases are chosen by the mean over "
        "trainings.",
    ]
    if once := [model.name for model in facts.models if len(model.repeats) == 1]:
        sentences.append(f"The noise of {', '.join(once)}, trained once, is taken to be that of the others.")
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
        sentences.append(f"There is no checkpoint, and so no training log, of {', '.join(missing)}.")
    without = [model.name for model in facts.models if model.peak_memory_mib is None]
    if facts.memory_given and without:
        sentences.append(f"The complexity file has no peak memory of {', '.join(without)}.")
    return sentences


def _pictures(facts: Facts) -> list[str]:
    if not facts.no_images:
        return []
    return ["The images of some pictured cases were not found (nnUNet_raw): their pictures are left out of the page."]
