"""Differences between models: per organ with confidence intervals, and per case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_dtc.study.evaluation.metrics import Metric
from nnunet_dtc.study.evaluation.metrics import metric as find_metric
from nnunet_dtc.study.figures.style import (
    GRID,
    INK,
    MUTED,
    PAPER,
    legend_above,
    named_rows,
    new_figure,
    plain_axes,
    series,
    style,
)

__all__ = ["MOST_NAMED_CASES", "organ_differences", "paired_cases"]

WIDTH = 5.4  # inches

MOST_NAMED_CASES = 40
"""Up to this number of cases, `paired_cases` draws a row for each of them."""


def organ_differences(
    differences: pd.DataFrame, metric: str, models: Sequence[str], organs: Sequence[str], level: float = 0.05
) -> Figure:
    """Draw each model's difference to the first model per organ, with its confidence interval.

    A filled marker has a corrected p value below `level`. If there are several organs, the first row is the mean over
    organs.

    Args:
        differences: table with the columns model, metric, organ ("" is the mean over organs), mean, low, high, p,
            p_holm. Dice and NSD are in [0, 1], HD95 in mm.
        metric: key of the metric to draw.
        models: names of all models; the others are compared with the first one.
        organs: names of the organs in the order of the rows.
        level: significance level.

    Raises:
        ValueError: there is nothing to draw.
    """
    table = differences[differences["metric"] == metric]
    if len(models) < 2 or table.empty:
        raise ValueError(f"needs two models and differences of {metric!r}, got {len(models)} and {len(table)} rows")
    shown, others = find_metric(metric), models[1:]
    rows = ["", *organs] if len(organs) > 1 else list(organs)
    is_mean = np.array([not row for row in rows])
    step = 0.27 + 0.09 * (len(others) - 1)
    with style():
        figure = new_figure(WIDTH, 1.15 + step * len(rows) + 0.2 * len(others))
        ax = figure.add_subplot()
        places = np.arange(len(rows)) + np.where(is_mean, 0, 0.35)  # the mean is set apart
        for number, model in enumerate(others):
            shift = (number - (len(others) - 1) / 2) * 0.66 / len(others)
            of_model = table[table["model"] == model].set_index("organ").reindex(rows)
            _draw_intervals(ax, of_model, places + shift, shown.factor, level, series(number + 1))
            ax.plot([], [], marker=series(number + 1)[1], color=series(number + 1)[0], linewidth=1.8, label=model)
        ax.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
        named_rows(ax, places, [_shortened(row.replace("_", " "), 30) or "mean over organs" for row in rows])
        if is_mean[0]:
            ax.axhline(0.68, color=GRID, linewidth=0.8)
            ax.get_yticklabels()[0].set_fontweight("bold")
        ax.set_ylim(places[-1] + 0.7, places[0] - 0.7)
        ax.margins(x=0.06)
        ax.set_xlabel(f"{shown.title}: difference to {_shortened(models[0], 30)} ({shown.difference_unit})")
        _directions(ax, better_right=shown.higher_is_better)
        legend_above(figure)
    return figure


def paired_cases(cases: pd.DataFrame, metric: str, models: Sequence[str]) -> Figure:
    """Draw the scores of every case with every model.

    Up to `MOST_NAMED_CASES` cases, each case is a row with a marker per model, sorted by the last model's difference to
    the first. With more cases, each model has axes with one point per case: its difference to the first model over the
    first model's score.

    Args:
        cases: one row per case (the index) and one column per model, means over organs. Dice and NSD are in [0, 1],
            HD95 in mm.
        metric: key of the metric.
        models: the columns in their order; the others are compared with the first one.

    Raises:
        ValueError: no case has a finite number for two models.
    """
    shown = find_metric(metric)
    values = cases[list(models)].astype(float).replace([np.inf, -np.inf], np.nan) * shown.factor
    values = values[values.notna().sum(axis=1) > 1]
    if len(models) < 2 or values.empty:
        raise ValueError(
            f"needs a case that two models have a number for, got {len(models)} models and {len(cases)} cases"
        )
    with style():
        if len(values) <= MOST_NAMED_CASES:
            return _dumbbells(values, shown, models)
        return _clouds(values, shown, models)


def _draw_intervals(
    ax: Axes, table: pd.DataFrame, y: np.ndarray, factor: float, level: float, colour_and_marker: tuple[str, str]
) -> None:
    """A model's differences with their intervals; the table's rows are organs, "" is the mean over organs."""
    colour, marker = colour_and_marker
    is_mean = table.index == ""
    mean, low, high = (table[name].to_numpy(float) * factor for name in ("mean", "low", "high"))
    p = np.where(is_mean, table["p"].to_numpy(float), table["p_holm"].to_numpy(float))
    ax.hlines(y, low, high, color=colour, linewidth=1.8)
    for significant in (True, False):
        chosen = (p < level) == significant
        ax.scatter(
            mean[chosen],
            y[chosen],
            s=np.where(is_mean, 52, 30)[chosen],
            marker=marker,
            facecolor=colour if significant else PAPER,
            edgecolor=colour,
            linewidth=1.4,
            zorder=3,
        )


def _dumbbells(values: pd.DataFrame, metric: Metric, models: Sequence[str]) -> Figure:
    sign = 1 if metric.higher_is_better else -1
    gain = sign * (values[models[-1]] - values[models[0]])
    values = values.loc[gain.sort_values(ascending=False, kind="stable").index]
    figure = new_figure(WIDTH, 0.85 + 0.2 * len(models) + 0.235 * len(values))
    ax = figure.add_subplot()
    places = np.arange(len(values))
    ax.hlines(places, values.min(axis=1), values.max(axis=1), color=GRID, linewidth=3)
    for number, model in enumerate(models):
        colour, marker = series(number)
        ax.scatter(
            values[model],
            places,
            s=34,
            marker=marker,
            facecolor=PAPER if number == 0 else colour,
            edgecolor=colour,
            linewidth=1.4,
            zorder=3 + number,
            label=model,
        )
    named_rows(ax, places, [_shortened(str(case), 30) for case in values.index])
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.set_xlabel(_score_label(metric))
    legend_above(figure)
    return figure


def _clouds(values: pd.DataFrame, metric: Metric, models: Sequence[str]) -> Figure:
    first, others = models[0], models[1:]
    figure = new_figure(WIDTH, 0.5 + 2.3 * len(others))
    axes = figure.subplots(len(others), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for number, (ax, model) in enumerate(zip(axes, others, strict=True), start=1):
        colour, marker = series(number)
        ax.axhline(0, color=MUTED, linewidth=1.2)
        ax.scatter(
            values[first],
            values[model] - values[first],
            s=np.clip(4000 / len(values), 5, 24),
            marker=marker,
            color=colour,
            alpha=0.55,
            linewidth=0,
            zorder=3,
        )
        plain_axes(ax, "y")
        ax.set_title(model, loc="left")
        ax.set_ylabel(f"difference ({metric.difference_unit})")
    axes[-1].set_xlabel(f"{first}: {_score_label(metric)}")
    return figure


def _score_label(metric: Metric) -> str:
    lower = "" if metric.higher_is_better else ", lower is better"
    return f"{metric.title} ({metric.unit}{lower})"


def _directions(ax: Axes, better_right: bool) -> None:
    """Write above the axes which side is better."""
    left, right = ("worse", "better") if better_right else ("better (lower)", "worse")
    for x, align, text in ((0, "left", f"\N{LEFTWARDS ARROW} {left}"), (1, "right", f"{right} \N{RIGHTWARDS ARROW}")):
        ax.annotate(
            text, (x, 1), xytext=(0, 3), xycoords="axes fraction", textcoords="offset points", ha=align, color=INK
        )


def _shortened(text: str, most: int) -> str:
    """A long name without its middle, because names often differ at their ends."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1 - head) :]}"
