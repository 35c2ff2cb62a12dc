"""What a reader must know to read the numbers, in plain sentences: what was compared, how, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nnunet_dtc.comparison.logs import TrainingLog
from nnunet_dtc.comparison.models import Training
from nnunet_dtc.comparison.plan import Plan
from nnunet_dtc.comparison.result import ComparedModel
from nnunet_dtc.comparison.statistics import FEWEST_PAIRS, RESAMPLES

__all__ = ["Facts", "write_sentences"]


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


def write_sentences(facts: Facts) -> tuple[str, ...]:
    """`Comparison.sentences`."""
    parts = (_subject, _checkpoints, _splits, _means, _statistics, _repeats, _trainings, _pictures)
    return tuple(sentence for part in parts for sentence in part(facts))


def _subject(facts: Facts) -> list[str]:
    plan, first = facts.plan, facts.models[0]
    cases = len(plan.references)
    what = f"{cases} {'validation' if plan.options.kind == 'validation' else 'held-out'} case{'s' * (cases != 1)}"
    folds = f"{'folds' if len(plan.folds) > 1 else 'fold'} {', '.join(map(str, plan.folds))}" if plan.folds else ""
    how = {
        "validation": f" of {folds}, each predicted by the model of its own fold",
        "test": f", predicted by the ensemble of {folds}" if len(plan.folds) > 1 else f", predicted by {folds}",
        "test per fold": f", predicted by each model of {folds} alone",
    }[plan.options.kind]
    if not plan.folds:
        how = ", predictions as they were given"
    others = ", ".join(model.name for model in facts.models[1:])
    sentences = [
        f"{others} compared with {first.name} on {plan.dataset} ({first.configuration}, {first.plans}): {what}{how}."
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
    options = facts.plan.options
    if options.kind == "validation":
        return [
            "nnU-Net does not record which checkpoint made a validation folder: it is the final one, unless the "
            "training was called with --val_best, which writes into the same folder."
        ]
    sentences = []
    if facts.plan.folds:
        averaged = {"logits": "logits, as nnU-Net does", "softmax": "softmax outputs, as the paper does"}[
            options.average
        ]
        average = f" The folds were averaged over their {averaged}." if len(facts.plan.folds) > 1 else ""
        sentences.append(
            f"nnU-Net predicted with {options.checkpoint} of every model." + (average if options.kind == "test" else "")
        )
    if options.predictions:
        sentences.append(
            f"Predictions were given for {', '.join(options.predictions)}; from which folds and checkpoints they were "
            "made is not known."
        )
    return sentences


def _splits(facts: Facts) -> list[str]:
    checked = facts.plan.splits_checked
    if not checked:
        return ["Whether the models were trained on the same splits could not be checked: not all have been validated."]
    if checked == "each other":
        return ["The folds' validation cases are the same for all models; there was no splits_final.json to compare."]
    return ["The folds' validation cases are those of splits_final.json for all models."]


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


def _statistics(facts: Facts) -> list[str]:
    sentences = [
        f"Differences are paired by case; their 95 % intervals are percentile bootstraps over cases ({RESAMPLES} "
        f"resamples, seed {facts.plan.options.seed}); p is of Wilcoxon's signed-rank test (two-sided, zero differences "
        "split), corrected over organs by Holm's method within one model and metric."
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
    sentences = [f"Trainings: {counts}; a model's scores are the mean over its trainings."]
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
    return ["The images of some pictured cases were not found (nnUNet_raw): only their segmentations are shown."]
