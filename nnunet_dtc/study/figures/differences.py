"""Differences between models: organ by organ with their intervals, and case by case."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nnunet_dtc.study.evaluation import units
from nnunet_dtc.study.figures.style import GRID, INK, MUTED, PAPER, new_figure, plain_axes, series, style

__all__ = ["MOST_NAMED_CASES", "organ_differences", "paired_cases"]

WIDTH = 5.4  # inches

MOST_NAMED_CASES = 40
"""Up to so many cases, each has a row of its own in `paired_cases`."""


def organ_differences(
    differences: pd.DataFrame, metric: str, models: Sequence[str], organs: Sequence[str], level: float = 0.05
) -> Figure:
    """Per organ: each model's difference to the first, with its interval, around a line at zero.

    A filled marker has a corrected p below `level`. The mean over organs comes first, where there are several.

    Args:
        differences: model, metric, organ ("" is the mean over organs), mean, low, high, p, p_holm; Dice and NSD in
            [0, 1], HD95 in mm.
        metric: which of them.
        models: all names, the first is the one that the others are compared with.
        organs: in the order of the rows.

    Raises:
        ValueError: if there is nothing to draw.
    """
    table = differences[differences["metric"] == metric]
    if len(models) < 2 or table.empty:
        raise ValueError(f"needs two models and differences of {metric!r}, got {len(models)} and {len(table)} rows")
    factor = units.factor(metric)
    others = models[1:]
    rows = ["", *organs] if len(organs) > 1 else list(organs)
    is_mean = np.array([not row for row in rows])
    step = 0.27 + 0.09 * (len(others) - 1)
    with style():
        figure = new_figure(WIDTH, 1.15 + step * len(rows) + 0.2 * len(others))
        ax = figure.add_subplot()
        places = np.arange(len(rows)) + np.where(is_mean, 0, 0.35)  # the mean stands apart
        for number, model in enumerate(others):
            colour, marker = series(number + 1)
            shift = (number - (len(others) - 1) / 2) * 0.66 / len(others)
            mine = table[table["model"] == model].set_index("organ").reindex(rows)
            mean, low, high = (mine[name].to_numpy(float) * factor for name in ("mean", "low", "high"))
            p = np.where(is_mean, mine["p"].to_numpy(float), mine["p_holm"].to_numpy(float))
            y = places + shift
            ax.hlines(y, low, high, color=colour, linewidth=1.8)
            for sure in (True, False):
                chosen = (p < level) == sure
                face = colour if sure else PAPER
                size = np.where(is_mean, 52, 30)[chosen]
                ax.scatter(
                    mean[chosen],
                    y[chosen],
                    s=size,
                    marker=marker,
                    facecolor=face,
                    edgecolor=colour,
                    linewidth=1.4,
                    zorder=3,
                )
            ax.plot([], [], marker=marker, color=colour, linewidth=1.8, label=model)
        ax.axvline(0, color=MUTED, linewidth=1.2, zorder=1)
        ax.set_yticks(places, [_shortened(row.replace("_", " "), 30) if row else "mean over organs" for row in rows])
        if is_mean[0]:
            ax.axhline(0.68, color=GRID, linewidth=0.8)
            ax.get_yticklabels()[0].set_fontweight("bold")
        ax.set_ylim(places[-1] + 0.7, places[0] - 0.7)
        ax.margins(x=0.06)
        plain_axes(ax, "x")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        points = units.difference_unit(metric)
        ax.set_xlabel(f"{units.title(metric)}: difference to {_shortened(models[0], 30)} ({points})")
        _directions(ax, better_right=units.higher_is_better(metric))
        figure.legend(loc="outside upper left", frameon=False, ncol=1, fontsize=9)
    return figure


def paired_cases(cases: pd.DataFrame, metric: str, models: Sequence[str]) -> Figure:
    """Every case with every model.

    Up to `MOST_NAMED_CASES` cases: a row a case, a marker a model, in the order of the last model's difference to the
    first. More: each model's difference to the first over the first's score, a point a case, around a line at zero.

    Args:
        cases: a row a case (its index), a column a model; the mean over organs, Dice and NSD in [0, 1], HD95 in mm.
        metric: which metric this is.
        models: the columns in their order, the first is the one that the others are compared with.

    Raises:
        ValueError: if there is no case that two models have a finite number for.
    """
    factor = units.factor(metric)
    values = cases[list(models)].astype(float).replace([np.inf, -np.inf], np.nan) * factor
    values = values[values.notna().sum(axis=1) > 1]
    if len(models) < 2 or values.empty:
        raise ValueError(
            f"needs a case that two models have a number for, got {len(models)} models and {len(cases)} cases"
        )
    with style():
        if len(values) <= MOST_NAMED_CASES:
            return _dumbbells(values, metric, models)
        return _clouds(values, metric, models)


def _dumbbells(values: pd.DataFrame, metric: str, models: Sequence[str]) -> Figure:
    sign = 1 if units.higher_is_better(metric) else -1
    gain = sign * (values[models[-1]] - values[models[0]])
    values = values.loc[gain.sort_values(ascending=False, kind="stable").index]
    figure = new_figure(WIDTH, 0.85 + 0.2 * len(models) + 0.235 * len(values))
    ax = figure.add_subplot()
    places = np.arange(len(values))
    ax.hlines(places, values.min(axis=1), values.max(axis=1), color=GRID, linewidth=3)
    for number, model in enumerate(models):
        colour, marker = series(number)
        face = PAPER if number == 0 else colour
        ax.scatter(
            values[model],
            places,
            s=34,
            marker=marker,
            facecolor=face,
            edgecolor=colour,
            linewidth=1.4,
            zorder=3 + number,
        )
        ax.scatter([], [], s=34, marker=marker, facecolor=face, edgecolor=colour, linewidth=1.4, label=model)
    ax.set_yticks(places, [_shortened(str(case), 30) for case in values.index])
    ax.set_ylim(len(values) - 0.4, -0.6)
    plain_axes(ax, "x")
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(_score_label(metric))
    figure.legend(loc="outside upper left", frameon=False, ncol=1, fontsize=9)
    return figure


def _clouds(values: pd.DataFrame, metric: str, models: Sequence[str]) -> Figure:
    first, others = models[0], models[1:]
    figure = new_figure(WIDTH, 0.5 + 2.3 * len(others))
    axes = figure.subplots(len(others), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for number, (ax, model) in enumerate(zip(axes, others, strict=True), start=1):
        colour, marker = series(number)
        size = np.clip(4000 / len(values), 5, 24)
        ax.axhline(0, color=MUTED, linewidth=1.2)
        ax.scatter(
            values[first],
            values[model] - values[first],
            s=size,
            marker=marker,
            color=colour,
            alpha=0.55,
            linewidth=0,
            zorder=3,
        )
        plain_axes(ax, "y")
        ax.set_title(model, loc="left")
        ax.set_ylabel(f"difference ({units.difference_unit(metric)})")
    axes[-1].set_xlabel(f"{first}: {_score_label(metric)}")
    return figure


def _score_label(metric: str) -> str:
    lower = "" if units.higher_is_better(metric) else ", lower is better"
    return f"{units.title(metric)} ({units.unit(metric)}{lower})"


def _directions(ax: Axes, better_right: bool) -> None:
    """Which side is the better one, above the axes."""
    left, right = ("worse", "better") if better_right else ("better (lower)", "worse")
    for x, align, text in ((0, "left", f"\N{LEFTWARDS ARROW} {left}"), (1, "right", f"{right} \N{RIGHTWARDS ARROW}")):
        ax.annotate(
            text, (x, 1), xytext=(0, 3), xycoords="axes fraction", textcoords="offset points", ha=align, color=INK
        )


def _shortened(text: str, most: int) -> str:
    """The middle of a long name is left out: names often differ at their ends."""
    if len(text) <= most:
        return text
    head = (most - 1) // 2
    return f"{text[:head]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (most - 1 - head) :]}"
