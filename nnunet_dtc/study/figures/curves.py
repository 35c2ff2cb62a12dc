"""Training curves: a thin line for every fold and repeated training, a thick one for their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from nnunet_dtc.study.figures.style import legend_above, new_figure, plain_axes, series, style

__all__ = ["MOST_POINTS", "training_curves"]

MOST_POINTS = 200
"""Longer curves are reduced to at most this many points by averaging over consecutive epochs."""

Kind = Literal["dice", "loss"]


def training_curves(curves: pd.DataFrame, models: Sequence[str], kind: Kind) -> Figure:
    """Draw the curves of all folds over the epochs.

    Args:
        curves: one row per epoch with the columns model, repeat, fold, epoch, train_loss, val_loss, pseudo_dice and
            ema_pseudo_dice.
        models: names of the models in the order of their colours.
        kind: "dice" for nnU-Net's pseudo Dice on patches of the validation cases (its moving average if recorded),
            "loss" for the losses of validation (solid) and training (dotted).

    Raises:
        ValueError: ``kind`` is neither of them, or there is no number to draw.
    """
    if kind not in ("dice", "loss"):
        raise ValueError(f"kind must be dice or loss, got {kind!r}")
    if kind == "dice":
        columns = ["ema_pseudo_dice" if curves["ema_pseudo_dice"].notna().any() else "pseudo_dice"]
    else:
        columns = ["val_loss", "train_loss"]
    if not curves[columns].notna().to_numpy().any():
        raise ValueError(f"there is no number to draw in {', '.join(columns)}")
    with style():
        figure = new_figure(5.4, 3.3 + 0.2 * len(models))
        ax = figure.add_subplot()
        for number, model in enumerate(models):
            mine = curves[curves["model"] == model]
            colour, _ = series(number)
            for column in columns:
                line = ":" if column == "train_loss" else "-"
                wide = _by_run(mine, column)
                if wide.empty:
                    continue
                if wide.shape[1] > 1:
                    ax.plot(wide.index, wide, color=colour, linewidth=0.8, alpha=0.4, linestyle=line)
                mean = wide.dropna().mean(axis=1)  # over the epochs that all trainings have
                ax.plot(mean.index, mean, color=colour, linewidth=1.9, linestyle=line)
            ax.plot([], [], color=colour, linewidth=2.2, label=model)
        plain_axes(ax, "y")
        ax.margins(x=0.01)
        ax.set_xlabel("epoch")
        average = " (moving average)" if columns == ["ema_pseudo_dice"] else ""
        ax.set_ylabel("loss (dotted: training)" if kind == "loss" else f"pseudo Dice{average}")
        legend_above(figure)
    return figure


def _by_run(curves: pd.DataFrame, column: str) -> pd.DataFrame:
    """Epoch by training (repeat and fold), averaged to `MOST_POINTS`; trainings without any number are left out."""
    curves = curves.dropna(subset=[column])
    if curves.empty:
        return pd.DataFrame()
    wide = curves.pivot_table(index="epoch", columns=["repeat", "fold"], values=column, dropna=False)
    wide = wide.dropna(axis=1, how="all")
    together = int(np.ceil(len(wide) / MOST_POINTS))
    if together == 1:
        return wide
    groups = np.arange(len(wide)) // together
    epochs = wide.index.to_series().astype(float).groupby(groups).mean()
    return wide.groupby(groups).mean().set_axis(epochs.to_numpy())
