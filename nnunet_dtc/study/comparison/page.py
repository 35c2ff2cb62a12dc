"""A comparison as one HTML page, which holds its figures, tables and pictures and needs no other file and no script.

The template is `page.html.jinja` beside this file. Names of cases, organs and models are the user's: characters that
cannot be printed are shown as escapes (`printable_names`), and characters that HTML or SVG would interpret are escaped
by Jinja in the page and by matplotlib in the figures. The same comparison gives the same bytes (with the same versions
of matplotlib and Pillow).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from nnunet_dtc._version import __version__
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison.formatting import NONE, difference_text, interval_text, p_text, score_text
from nnunet_dtc.study.comparison.picture_drawing import draw_picture, is_ct
from nnunet_dtc.study.comparison.printable_names import printable_names
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison
from nnunet_dtc.study.comparison.sentences import infinite_scores, what_was_predicted
from nnunet_dtc.study.comparison.statistics import LEVEL
from nnunet_dtc.study.comparison.tables import (
    case_means,
    case_table,
    cost_table,
    difference_table,
    fold_table,
    organ_table,
    overview_table,
)
from nnunet_dtc.study.comparison.verdicts import case_verdict, noise_sentences, verdict
from nnunet_dtc.study.evaluation.folders import ending_of
from nnunet_dtc.study.evaluation.metrics import Metric, metric
from nnunet_dtc.study.evaluation.readers import reader_of_folder
from nnunet_dtc.study.figures.curves import training_curves
from nnunet_dtc.study.figures.differences import MOST_NAMED_CASES, organ_differences, paired_cases
from nnunet_dtc.study.figures.style import VARIABLES, inline_svg, jpeg_uri, series
from nnunet_dtc.study.texts import visible

__all__ = ["render_page"]

OPEN = 2  # metrics that are shown at once: Dice and the first NSD; the others are a click away
PICTURE_WIDTH = {True: 1500, False: 2000}  # pixels, for up to four columns and for more

DARK = {
    "ink": "#e8ebef",
    "muted": "#a5aebb",
    "line": "#343b46",
    "paper": "#15181d",
    "c0": "#a3abb8",
    "c1": "#5ab4f0",
    "c2": "#ff8a4c",
    "c3": "#2ec99a",
    "c4": "#e08fce",
    "c5": "#e0b13c",
    "c6": "#9aa4ff",
    "c7": "#ff7b8c",
}
"""The colours of the figures, and of the page around them, in dark mode."""

CURVES = {
    "dice": (
        ["pseudo_dice", "ema_pseudo_dice"],
        "Pseudo Dice on patches of the validation cases over the epochs, all folds.",
    ),
    "loss": (["train_loss", "val_loss"], "Training and validation losses over the epochs, all folds."),
}
"""Kind of figure to its columns in `Comparison.curves` and its description."""


def render_page(comparison: Comparison) -> str:
    """The page as text, to be written as UTF-8.

    A picture whose files cannot be read is left out, with a sentence in its place.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) and not hasattr(value, "__html__") else value,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("page.html.jinja").render(_content(printable_names(comparison)))


def _content(comparison: Comparison) -> dict[str, Any]:
    """What the template is filled with."""
    models = comparison.models
    names = [model.name for model in models]
    facts = [what_was_predicted(comparison.kind, models, comparison.scores["case"].nunique())]
    facts += [", ".join(dict.fromkeys(model.configuration for model in models))]
    facts += [", ".join(dict.fromkeys(model.plans for model in models))]
    if end := models[0].left_out:
        facts += [f"trainers: all {end}"]
    infinite = infinite_scores(comparison.scores, comparison.metrics, names)
    model_folder = models[0].folder
    ct = is_ct(model_folder)
    return {
        "version": __version__,
        "dataset": comparison.dataset,
        "facts": facts,
        "sentences": comparison.sentences,
        "names": names,
        "first": names[0],
        "models": [(model.name, _about(model)) for model in models],
        "colours": {name: VARIABLES[series(number)[0]] for number, name in enumerate(names)},
        "light": {name: colour for colour, name in VARIABLES.items()},
        "dark": DARK,
        "verdicts": [
            (name, [_verdict(comparison, metric(key), name) for key in comparison.metrics]) for name in names[1:]
        ],
        "noise": _noise_sentences(comparison),
        "overview": overview_table(comparison),
        "infinite": [(metric(key).title, counts) for key, counts in infinite.items()],
        "filled": bool((comparison.differences["counted_as_1"] > 0).any()),
        "cost": cost_table(comparison),
        "metrics": [_metric_content(comparison, metric(key), number) for number, key in enumerate(comparison.metrics)],
        "named_cases": comparison.scores["case"].nunique() <= MOST_NAMED_CASES,
        "curves": _curves(comparison),
        "pictures": [_picture(comparison, picture, ct, model_folder) for picture in comparison.pictures],
        "level": f"{LEVEL:g}",
        "repeated": any(count > 1 for count in comparison.trainings.values()),
    }


def _about(model: ComparedModel) -> dict[str, str]:
    return {
        "trainer": ", ".join(model.repeats) or model.trainer,
        "plans": model.plans,
        "configuration": model.configuration,
        "folds": ", ".join(map(str, model.folds)) or "not known: the predictions were given by the user",
        "checkpoint": model.checkpoint,
        "epochs": NONE if model.epochs is None else str(model.epochs),
        "folder": str(model.folder),
    }


def _verdict(comparison: Comparison, of: Metric, model: str) -> dict[str, Any]:
    """What is known of the difference between the models, and how these trained networks differ over the cases."""
    row = _rows(comparison.differences, of, model).query("organ == ''").iloc[0]
    p = p_text(row["p"])
    between = comparison.between(of.key, model)
    known = between is not None and not math.isnan(between["p"]) and not math.isnan(row["mean"])
    several = len(comparison.models) > 2
    return {
        "metric": of,
        "known": known,
        "mean": difference_text(of, between["mean"] if known else row["mean"]),
        "over": between["method"] if known else "cases",
        "between_interval": interval_text(of, between["low"], between["high"]) if known else "",
        "between_p": _p(p_text(between["p"])) if known else "",
        "between_p_holm": _p(p_text(between["p_holm"]), "p for all models") if several and known else "",
        "case_mean": difference_text(of, row["mean"]),
        "interval": interval_text(of, row["low"], row["high"]),
        "counts": "better in {better}, worse in {worse}, equal in {equal} of {n} cases".format_map(row),
        "p": _p(p),
        "says": verdict(row, between),
        "cases_say": case_verdict(row),
    }


def _p(text: str, name: str = "p") -> str:
    return "" if text == NONE else f", {name} {text}" if text.startswith("<") else f", {name} = {text}"


def _noise_sentences(comparison: Comparison) -> list[str]:
    """The sentences about the first metric come first, one for each model."""
    order = {key: number for number, key in enumerate(comparison.metrics)}
    noise = comparison.noise.sort_values("metric", key=lambda keys: keys.map(order), kind="stable")
    return noise_sentences(noise, comparison.trainings)


def _metric_content(comparison: Comparison, of: Metric, number: int) -> dict[str, Any]:
    """The tables and figures of one metric."""
    others = [model.name for model in comparison.models[1:]]
    return {
        "metric": of,
        "open": number < OPEN,
        "organs": organ_table(comparison, of) if len(others) > 1 else None,
        "differences": [difference_table(comparison, of, model) for model in others],
        "cases": case_table(comparison, of),
        "folds": fold_table(comparison, of),
        "organ_figure": _organ_figure(comparison, of, f"organs-{number}"),
        "case_figure": _case_figure(comparison, of, f"cases-{number}"),
    }


def _organ_figure(comparison: Comparison, of: Metric, key: str) -> Markup | None:
    """The differences by organ; None if there is no number to draw."""
    table = comparison.differences
    if table.loc[table["metric"] == of.key, "mean"].isna().all():
        return None
    first, *others = names = [model.name for model in comparison.models]
    figure = organ_differences(table, of.key, names, comparison.labels.names, LEVEL)
    overall = {model: _rows(table, of, model).query("organ == ''")["mean"].iloc[0] for model in others}
    means = ", ".join(f"{model} {difference_text(of, mean)}" for model, mean in overall.items())
    label = (
        f"Differences of {of.title} to {first} with their 95 % intervals, organ by organ. Mean over organs: {means}."
    )
    return Markup(inline_svg(figure, key, f"{label} The numbers are in the table below."))


def _case_figure(comparison: Comparison, of: Metric, key: str) -> Markup | None:
    """The scores by case; None if no case has scores of two models."""
    cases = case_means(comparison, of)
    if (cases.notna().sum(axis=1) < 2).all():
        return None
    label = f"{of.title} of every case with every model. The numbers are in the table of all cases."
    return Markup(inline_svg(paired_cases(cases, of.key, list(cases.columns)), key, label))


def _curves(comparison: Comparison) -> list[Markup]:
    names = [model.name for model in comparison.models]
    return [
        Markup(inline_svg(training_curves(comparison.curves, names, kind), f"curve-{kind}", label))
        for kind, (columns, label) in CURVES.items()
        if comparison.curves[columns].notna().to_numpy().any()
    ]


def _picture(comparison: Comparison, picture: CasePicture, ct: bool, model_folder: Path) -> dict[str, Any]:
    names = [model.name for model in comparison.models if model.name in picture.dice]
    dice = ", ".join(f"{name} {score_text(metric('dice'), picture.dice[name])} %" for name in names)
    content = {"case": picture.case, "why": _why(comparison, picture.why), "dice": dice, "uri": None}
    try:
        reader = reader_of_folder(model_folder, ending_of(picture.reference), picture.reference)
        figure, where = draw_picture(picture, comparison.labels, ct, reader)
    except NnunetDtcError as error:  # a PictureError, or files of the model that are not there any more
        return content | {"problem": f"The picture is left out: {error}."}
    columns = 2 + len(picture.predictions)
    return content | {
        "uri": Markup(jpeg_uri(figure, PICTURE_WIDTH[columns <= 4])),
        "alt": f"Case {picture.case}{f', {where}' * bool(where)}: image, truth and predictions. Mean Dice: {dice}.",
        "columns": columns,
        "ratio": f"{figure.get_figwidth():.4f} / {figure.get_figheight():.4f}",
    }


def _why(comparison: Comparison, why: str) -> str:
    """The reasons with their models: the worst and best case are the first one's, gains and losses the last one's."""
    first, last = comparison.models[0].name, comparison.models[-1].name
    of_first = {"worst": f"worst case of {first}", "best": f"best case of {first}"}
    return "; ".join(of_first.get(each, f"{each} of {last} against {first}") for each in why.split(", "))


def _rows(frame: pd.DataFrame, of: Metric, model: str) -> pd.DataFrame:
    return frame[(frame["model"] == model) & (frame["metric"] == of.key)]


def _breakable(name: str) -> Markup:
    """A long name that may be broken before an underscore or a word that begins with a capital."""
    return Markup("<wbr>").join(re.split(r"(?<=[^_])(?=_)|(?<=[a-z]{3})(?=[A-Z])", name))
