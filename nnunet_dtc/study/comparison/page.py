"""A comparison as one HTML page that needs nothing else: figures, tables and pictures are in it, there is no script.

The template is `page.html.jinja` beside this file; here its contents are made. All names (of cases, organs, models)
are a user's: characters that cannot be printed are shown as escapes (`readable`), and what HTML or SVG would interpret
is escaped by Jinja in the page and by matplotlib in the figures. The same comparison gives the same
bytes (with the same versions of matplotlib and Pillow).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from nnunet_dtc._version import __version__
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison.picture_drawing import draw_picture, is_ct
from nnunet_dtc.study.comparison.printable_names import readable
from nnunet_dtc.study.comparison.result import CasePicture, ComparedModel, Comparison
from nnunet_dtc.study.comparison.sentences import what_was_predicted
from nnunet_dtc.study.comparison.statistics import (
    FEWEST_PAIRS,
    average_repeats,
    case_differences,
    case_means,
    fold_means,
)
from nnunet_dtc.study.evaluation import units
from nnunet_dtc.study.evaluation.folders import ending_of
from nnunet_dtc.study.evaluation.readers import reader_of_folder
from nnunet_dtc.study.figures.curves import training_curves
from nnunet_dtc.study.figures.differences import MOST_NAMED_CASES, organ_differences, paired_cases
from nnunet_dtc.study.figures.style import VARIABLES, inline_svg, jpeg_uri, series
from nnunet_dtc.study.texts import visible

__all__ = ["render_page"]

SURE = 0.05
NONE = "\N{EN DASH}"
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
"""The colours of the figures, and of the page around them, in the dark."""


def render_page(comparison: Comparison) -> str:
    """The page as text, to be written as UTF-8.

    Pictures whose files cannot be read are left out, with a sentence in their place.
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
    content = _Content(readable(comparison)).everything()
    return environment.get_template("page.html.jinja").render(content)


class _Content:
    """What the template is filled with: texts, and figures as markup."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        self.names = [model.name for model in comparison.models]
        self.first, self.others = self.names[0], self.names[1:]
        self.metrics = list(comparison.metrics)
        self.shown = self.metrics[:2]  # Dice and the first NSD are open, the others a click away
        names = comparison.labels.names
        self.organ_rows = ["", *names] if len(names) > 1 else list(names)  # "" is the mean over organs
        organs = average_repeats(comparison.scores, self.metrics, over_folds=True)
        self.cases = case_means(organs, self.metrics, ("model", "case"))
        finite = organs.replace([np.inf, -np.inf], np.nan)
        self.organs = finite.groupby(["model", "organ"], sort=False)[self.metrics].mean()

    def everything(self) -> dict[str, Any]:
        comparison = self.comparison
        facts = [what_was_predicted(comparison.kind, comparison.models, comparison.scores["case"].nunique())]
        facts += [", ".join(dict.fromkeys(model.configuration for model in comparison.models))]
        facts += [", ".join(dict.fromkeys(model.plans for model in comparison.models))]
        if end := comparison.models[0].left_out:
            facts += [f"trainers: all {end}"]
        return {
            "version": __version__,
            "dataset": comparison.dataset,
            "facts": facts,
            "sentences": comparison.sentences,
            "models": [self._model(model) for model in comparison.models],
            "light": {name: colour for colour, name in VARIABLES.items()},
            "dark": DARK,
            "first": self.first,
            "verdicts": [self._verdict(model) for model in self.others],
            "noise": self._noise_sentences(),
            "overview": self._overview(),
            "cost": self._cost(),
            "organ_figures": self._figures("organs", self._organ_figure),
            "organ_tables": [self._organ_table(metric) for metric in self.metrics],
            "case_figures": self._figures("cases", self._case_figure),
            "case_tables": [self._case_table(metric) for metric in self.metrics],
            "named_cases": self.cases["case"].nunique() <= MOST_NAMED_CASES,
            "folds": self._folds(),
            "curves": self._curves(),
            "pictures": self._pictures(),
            "level": f"{SURE:g}",
        }

    # ---- numbers -------------------------------------------------------------------------------------------------

    def _model(self, model: ComparedModel) -> dict[str, Any]:
        epochs = model.epochs
        return {
            "name": model.name,
            "colour": self._colour(model.name),
            "rows": [
                ("trainer", ", ".join(model.repeats) or model.trainer),
                ("plans", model.plans),
                ("configuration", model.configuration),
                ("folds", ", ".join(map(str, model.folds)) or "not known: the predictions were given"),
                ("checkpoint", model.checkpoint),
                ("epochs", NONE if epochs is None else str(epochs)),
                ("folder", str(model.folder)),
            ],
        }

    def _verdict(self, model: str) -> dict[str, Any]:
        lines = [self._difference(model, metric) for metric in self.metrics]
        return {"model": model, "colour": self._colour(model), "first": lines[0], "lines": lines[1:]}

    def _difference(self, model: str, metric: str) -> dict[str, Any]:
        """The mean difference over organs and cases, and what it says."""
        table = self.comparison.differences
        rows = table[(table["model"] == model) & (table["metric"] == metric) & (table["organ"] == "")]
        result = {
            "metric": units.title(metric),
            "unit": units.difference_unit(metric),
            "lower": not units.higher_is_better(metric),
        }
        if rows.empty or math.isnan(rows.iloc[0]["mean"]):
            return result | {"mean": NONE, "interval": NONE, "counts": "", "p": "", "says": "There is no number."}
        row = rows.iloc[0]
        return result | {
            "mean": _signed(metric, row["mean"]),
            "interval": _interval(metric, row),
            "counts": "better in {better}, worse in {worse}, equal in {equal} of {n} cases".format_map(row),
            "p": "" if math.isnan(row["p"]) else _p(row["p"]),
            "says": _verdict(metric, row) + self._doubt(model, metric),
        }

    def _doubt(self, model: str, metric: str) -> str:
        """Where repeated trainings say that the noise between them may be all."""
        noise = self.comparison.noise
        here = noise[(noise["model"] == model) & (noise["metric"] == metric)]["exceeds"]
        return " But the noise between trainings may explain it." if here.eq(False).any() else ""

    def _noise_sentences(self) -> list[str]:
        """Those about Dice first: one for each model, then the other metrics'."""
        noise = self.comparison.noise
        if noise.empty:
            return []
        order = {metric: number for number, metric in enumerate(self.metrics)}
        return [
            str(sentence)
            for sentence in noise.sort_values("metric", key=lambda m: m.map(order), kind="stable")["sentence"]
        ]

    def _overview(self) -> dict[str, Any]:
        """The paper's table 3."""
        summary = self.comparison.summary.set_index(["model", "metric"])
        rows = []
        for model in self.comparison.models:
            cells = []
            for metric in self.metrics:
                row = summary.loc[(model.name, metric)]
                spread = row["std_folds"]
                text = _value(metric, row["mean"])
                cells.append(text if math.isnan(spread) else f"{text} \N{PLUS-MINUS SIGN} {_value(metric, spread)}")
                cells.append("" if model.name == self.first else _signed(metric, row["difference"]))
            rows.append({"model": model.name, "colour": self._colour(model.name), "cells": cells})
        infinite = np.isinf(self.comparison.scores["hd95_mm"]) if "hd95_mm" in self.metrics else pd.Series(dtype=bool)
        missed = {name: int(infinite[self.comparison.scores["model"] == name].sum()) for name in self.names}
        return {
            "metrics": [self._column(metric) for metric in self.metrics],
            "rows": rows,
            "spread": bool(self.comparison.summary["std_folds"].notna().any()),
            "infinite": [f"{name}: {count}" for name, count in missed.items() if count],
            "filled": bool((self.comparison.differences["counted_as_1"] > 0).any()),
        }

    def _cost(self) -> dict[str, Any] | None:
        """What the models cost, each number with its change to the first model's; only what is known of any."""
        columns = {
            "parameters (M)": ("parameters", lambda count: f"{count / 1e6:.2f}", True),
            "epochs": ("epochs", str, False),
            "time of an epoch (s)": ("epoch_seconds", _seconds, True),
            "peak memory (GiB)": ("peak_memory_mib", lambda mib: f"{mib / 1024:.2f}", True),
        }
        models = self.comparison.models
        columns = {
            title: column
            for title, column in columns.items()
            if any(getattr(model, column[0]) is not None for model in models)
        }
        rows = []
        for model in models:
            cells = []
            for name, text, relative in columns.values():
                value, base = getattr(model, name), getattr(models[0], name)
                change = ""
                if relative and model is not models[0] and value is not None and base:
                    change = f" ({_sign(f'{100 * (value / base - 1):+.1f}')} %)"
                cells.append(NONE if value is None else text(value) + change)
            rows.append({"model": model.name, "colour": self._colour(model.name), "cells": cells})
        return {"columns": list(columns), "rows": rows} if columns else None

    def _organ_table(self, metric: str) -> dict[str, Any]:
        table = self.comparison.differences
        parts = []
        for model in self.others:
            mine = table[(table["model"] == model) & (table["metric"] == metric)].set_index("organ")
            rows = []
            for organ in self.organ_rows:
                row = mine.loc[organ]
                p = row["p_holm"] if organ else row["p"]
                rows.append(
                    {
                        "key": organ,
                        "organ": _organ(organ),
                        "mean": not organ,
                        "sure": p < SURE,
                        "cells": [
                            *(_value(metric, self._organ_mean(name, organ, metric)) for name in (self.first, model)),
                            _signed(metric, row["mean"]),
                            _interval(metric, row),
                            _p(p),
                            str(row["better"]),
                            str(row["worse"]),
                            str(row["equal"]),
                        ],
                    }
                )
            parts.append({"model": model, "colour": self._colour(model), "rows": rows})
        together = []
        for organ in self.organ_rows if len(self.others) > 1 else []:
            cells = [_value(metric, self._organ_mean(self.first, organ, metric))]
            for number, model in enumerate(self.others):
                part = next(row for row in parts[number]["rows"] if row["key"] == organ)
                cells += [_value(metric, self._organ_mean(model, organ, metric)), part["cells"][2]]
            together.append({"organ": _organ(organ), "mean": not organ, "cells": cells})
        return {"metric": self._column(metric), "open": metric in self.shown, "parts": parts, "together": together}

    def _organ_mean(self, model: str, organ: str, metric: str) -> float:
        if organ:
            return self.organs[metric].get((model, organ), math.nan)
        summary = self.comparison.summary
        return summary.loc[(summary["model"] == model) & (summary["metric"] == metric), "mean"].iloc[0]

    def _case_table(self, metric: str) -> dict[str, Any]:
        wide = self._wide(metric).sort_index()
        scores = self.comparison.scores
        paired = {model: case_differences(scores, metric, self.first, model) for model in self.others}
        rows = []
        for case, values in wide.iterrows():
            cells = [_value(metric, values[self.first])]
            for model in self.others:
                cells += [_value(metric, values[model]), _signed(metric, paired[model][case])]
            rows.append({"case": case, "cells": cells})
        return {"metric": self._column(metric), "open": metric in self.shown, "rows": rows}

    def _folds(self) -> list[dict[str, Any]]:
        """A table a metric: rows are folds; none where the folds' predictions are not told apart."""
        scores = self.comparison.scores
        if scores["fold"].isna().all():
            return []
        means = fold_means(average_repeats(scores, self.metrics), self.metrics)
        counts = scores.groupby("fold")["case"].nunique()
        tables = []
        for metric in self.metrics:
            wide = means.pivot(index="fold", columns="model", values=metric).sort_index()
            rows = []
            for fold, values in wide.iterrows():
                cells = [str(counts[fold]), _value(metric, values[self.first])]
                for model in self.others:
                    cells += [_value(metric, values[model]), _signed(metric, values[model] - values[self.first])]
                rows.append({"fold": str(fold), "cells": cells})
            tables.append({"metric": self._column(metric), "open": metric in self.shown, "rows": rows})
        return tables

    def _wide(self, metric: str) -> pd.DataFrame:
        """A row a case, a column a model."""
        return self.cases.pivot(index="case", columns="model", values=metric).reindex(columns=self.names)

    def _column(self, metric: str) -> dict[str, Any]:
        return {
            "title": units.title(metric),
            "unit": units.unit(metric),
            "difference": units.difference_unit(metric),
            "lower": not units.higher_is_better(metric),
        }

    def _colour(self, model: str) -> str:
        return VARIABLES[series(self.names.index(model))[0]]

    # ---- figures -------------------------------------------------------------------------------------------------

    def _figures(self, key: str, draw: Callable[[str], tuple[Figure, str] | None]) -> list[dict[str, Any]]:
        """One a metric, where there is something to draw."""
        figures = []
        for number, metric in enumerate(self.metrics):
            drawn = draw(metric)
            if drawn is not None:
                figure, label = drawn
                svg = Markup(inline_svg(figure, f"{key}-{number}", label))
                figures.append({"svg": svg, "open": metric in self.shown, "title": units.title(metric)})
        return figures

    def _organ_figure(self, metric: str) -> tuple[Figure, str] | None:
        table = self.comparison.differences
        if table.loc[table["metric"] == metric, "mean"].isna().all():
            return None
        figure = organ_differences(table, metric, self.names, self.comparison.labels.names, SURE)
        parts = [f"{model} {self._difference(model, metric)['mean']}" for model in self.others]
        label = f"Differences of {units.title(metric)} to {self.first} with their 95 % intervals, organ by organ. "
        return figure, f"{label}Mean over organs: {', '.join(parts)}. The numbers are in the table below."

    def _case_figure(self, metric: str) -> tuple[Figure, str] | None:
        wide = self._wide(metric)
        if (wide.notna().sum(axis=1) < 2).all():
            return None
        label = f"{units.title(metric)} of every case with every model. The numbers are in the table of all cases."
        return paired_cases(wide, metric, self.names), label

    def _curves(self) -> list[dict[str, Any]]:
        curves = self.comparison.curves
        figures = []
        for kind, columns, label in (
            (
                "dice",
                ["pseudo_dice", "ema_pseudo_dice"],
                "Pseudo Dice on validation patches over the epochs, all folds.",
            ),
            ("loss", ["train_loss", "val_loss"], "Losses of training and validation over the epochs, all folds."),
        ):
            if not curves.empty and curves[columns].notna().to_numpy().any():
                figures.append(
                    {"svg": Markup(inline_svg(training_curves(curves, self.names, kind), f"curve-{kind}", label))}
                )
        return figures

    def _pictures(self) -> list[dict[str, Any]]:
        folder = self.comparison.models[0].folder
        ct = is_ct(folder)
        return [self._picture(picture, ct, folder) for picture in self.comparison.pictures]

    def _picture(self, picture: CasePicture, ct: bool, model_folder: Path) -> dict[str, Any]:
        dice = {name: picture.dice[name] for name in self.names if name in picture.dice}
        told = ", ".join(f"{name} {_value('dice', value)} %" for name, value in dice.items())
        content = {
            "case": picture.case,
            "why": self._why(picture.why),
            "dice": told,
            "uri": None,
            "problem": "",
            "alt": "",
        }
        try:
            reader = reader_of_folder(model_folder, ending_of(picture.reference), picture.reference)
            figure, where = draw_picture(picture, self.comparison.labels, ct, reader)
        except NnunetDtcError as error:  # a PictureError, or files of the model that are not there any more
            return content | {"problem": f"The picture is left out: {error}."}
        columns = 2 + len(picture.predictions)
        alt = f"Case {picture.case}{f', {where}' * bool(where)}: image, truth and predictions. Mean Dice: {told}."
        return content | {
            "uri": Markup(jpeg_uri(figure, PICTURE_WIDTH[columns <= 4])),
            "alt": alt,
            "columns": columns,
            "ratio": f"{figure.get_figwidth():.4f} / {figure.get_figheight():.4f}",
            "zoomed": len(figure.axes) > columns,
        }

    def _why(self, why: str) -> str:
        """Of which model: the worst and best case are the first one's, gains and losses the last one's."""
        told = {"worst": f"worst case of {self.first}", "best": f"best case of {self.first}"}
        gains = f"of {self.names[-1]} against {self.first}"
        return "; ".join(told.get(each, f"{each} {gains}") for each in why.split(", "))


def _verdict(metric: str, row: pd.Series) -> str:
    """What the interval and the test say together, no more than that."""
    title, n = units.title(metric), row["n"]
    if math.isnan(row["low"]) or math.isnan(row["p"]):
        return f"{n} case{'s are' if n != 1 else ' is'} too few to tell: the test needs {FEWEST_PAIRS}."
    good = "better" if (row["mean"] > 0) == units.higher_is_better(metric) else "worse"
    inside, sure = row["low"] <= 0 <= row["high"], row["p"] < SURE
    if inside and sure:
        return f"No clear difference in {title}: p is below {SURE:g}, but the interval holds 0."
    if inside:
        return f"These cases show no difference in {title}: the interval holds 0."
    if not sure:
        return f"No clear difference in {title}: the interval excludes 0, but p is not below {SURE:g}."
    return f"Over these cases {title} is {good}: the interval excludes 0."


def _breakable(name: str) -> Markup:
    """A long name that may go on in the next line before an underscore or a word that begins with a capital."""
    return Markup("<wbr>").join(re.split(r"(?<=[^_])(?=_)|(?<=[a-z]{3})(?=[A-Z])", name))


def _organ(name: str) -> str:
    return name.replace("_", " ") if name else "mean over organs"


def _value(metric: str, score: float) -> str:
    text = units.value(metric, score)
    return NONE if math.isnan(score) else text


def _signed(metric: str, difference: float) -> str:
    if math.isnan(difference):
        return NONE
    return _sign(units.signed(metric, difference))


def _sign(text: str) -> str:
    """A number with + or -: with a real minus, or without a sign if it is rounded to zero."""
    return (text.lstrip("+-") if float(text) == 0 else text).replace("-", "\N{MINUS SIGN}")


def _interval(metric: str, row: pd.Series) -> str:
    if math.isnan(row["low"]):
        return NONE
    return f"{_signed(metric, row['low'])} to {_signed(metric, row['high'])}"


def _p(p: float) -> str:
    if math.isnan(p):
        return NONE
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f}" if seconds >= 100 else f"{seconds:.1f}"
