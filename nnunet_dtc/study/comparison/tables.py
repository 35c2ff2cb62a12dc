"""The tables of a comparison, which the page, Markdown and the terminal render.

The first table has the form of the paper's table 3: each model's means and their differences to the first model. With
one number for each fold it has the form of the paper's tables 1 and 2: mean ± standard deviation over folds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from nnunet_dtc.study.comparison.formatting import (
    NONE,
    difference_text,
    interval_text,
    p_text,
    percent_text,
    score_text,
)
from nnunet_dtc.study.comparison.result import ComparedModel, Comparison
from nnunet_dtc.study.comparison.statistics import LEVEL, average_repeats, case_differences
from nnunet_dtc.study.evaluation.metrics import Metric, metric
from nnunet_dtc.study.evaluation.scores import means

__all__ = [
    "Cell",
    "Column",
    "Row",
    "Table",
    "case_means",
    "case_table",
    "cost_table",
    "difference_table",
    "fold_table",
    "noise_table",
    "organ_table",
    "overview_table",
]


@dataclass(frozen=True)
class Cell:
    """A number, as it is shown.

    Attributes:
        value: in the unit of its column; an en dash where there is no number.
        difference: to the same number of the first model; empty for that model itself.
    """

    value: str
    difference: str = ""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading, without the unit.
        unit: the unit of its values; empty where the values are texts, counts or have their units themselves.
        difference_unit: the unit of the differences, which have a column of their own; empty where a difference, if
            there is one, is shown behind the value.
        is_model: whether the title is the name of a model.
    """

    title: str
    unit: str = ""
    difference_unit: str = ""
    is_model: bool = False

    @property
    def headings(self) -> tuple[str, ...]:
        """The heading of the values and, if the differences have a column of their own, theirs."""
        heading = f"{self.title} ({self.unit})" if self.unit else self.title
        return (heading, f"difference ({self.difference_unit})") if self.difference_unit else (heading,)

    def texts(self, cell: Cell) -> tuple[str, ...]:
        """The texts of a cell, one for each of `headings`."""
        if self.difference_unit:
            return cell.value, cell.difference
        return (f"{cell.value} ({cell.difference})" if cell.difference else cell.value,)


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: a model, organ, case or fold.
        cells: one for each column.
        is_mean: whether it is the mean over the other rows.
        significant: whether the p-value of its difference is below 0.05.
    """

    name: str
    cells: tuple[Cell, ...]
    is_mean: bool = False
    significant: bool = False


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: the title above the table.
        names: what the names of its rows are: `model`, `organ`, `case`, `fold`.
        columns, rows: its content.
    """

    title: str
    names: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def overview_table(comparison: Comparison) -> Table:
    """A row for each model: the means of all metrics, ± their standard deviation over folds."""
    metrics = [metric(key) for key in comparison.metrics]
    summary = comparison.summary.set_index(["model", "metric"])
    rows = []
    for model in comparison.models:
        cells = []
        for of in metrics:
            entry = summary.loc[(model.name, of.key)]
            spread = "" if math.isnan(entry["std_folds"]) else f" ± {score_text(of, entry['std_folds'])}"
            difference = "" if model is comparison.models[0] else difference_text(of, entry["difference"])
            cells.append(Cell(score_text(of, entry["mean"]) + spread, difference))
        rows.append(Row(model.name, tuple(cells)))
    order = "organs, cases, then folds" if comparison.kind == "test per fold" else "organs, then cases"
    spread = " (± standard deviation over folds)" if summary["std_folds"].notna().any() else ""
    columns = tuple(Column(of.title, _unit(of), of.difference_unit) for of in metrics)
    return Table(f"Means over {order}{spread}", "model", columns, tuple(rows))


def cost_table(comparison: Comparison) -> Table | None:
    """What is known of the models' parameters, epochs, time and memory, with the changes to the first model."""
    first = comparison.models[0]
    columns = {
        "parameters": ("parameters", lambda count: f"{count / 1e6:.2f} M"),
        "epochs": ("epochs", str),
        "time per epoch": ("epoch_seconds", lambda seconds: f"{seconds:.{0 if seconds >= 100 else 1}f} s"),
        "peak memory": ("peak_memory_mib", lambda mib: f"{mib / 1024:.2f} GiB"),
    }
    columns = {
        title: (name, text)
        for title, (name, text) in columns.items()
        if any(getattr(model, name) is not None for model in comparison.models)
    }

    def cell(model: ComparedModel, name: str, text: Callable[[float], str]) -> Cell:
        value, of_first = getattr(model, name), getattr(first, name)
        comparable = model is not first and name != "epochs" and value is not None and of_first
        return Cell(NONE if value is None else text(value), percent_text(value / of_first) if comparable else "")

    if not columns:
        return None
    rows = (Row(model.name, tuple(cell(model, *column) for column in columns.values())) for model in comparison.models)
    title = f"Model size and training cost, with the change from {first.name}"
    return Table(title, "model", tuple(map(Column, columns)), tuple(rows))


def organ_table(comparison: Comparison, of: Metric) -> Table:
    """A row for each organ: the means over cases of each model, and the mean paired differences."""
    names = [model.name for model in comparison.models]
    scores, differences = _organ_means(comparison, of), _differences(comparison, of)["mean"]
    rows = tuple(
        Row(_organ_name(organ), _cells(of, scores[:, organ][names], differences[:, organ]), is_mean=not organ)
        for organ in _organs(comparison)
    )
    return Table(f"{of.title} ({_unit(of)}) by organ", "organ", _columns(comparison, of), rows)


def difference_table(comparison: Comparison, of: Metric, model: str) -> Table:
    """A row for each organ: one model against the first, with interval, p, and in how many cases it is better."""
    scores, differences = _organ_means(comparison, of), _differences(comparison, of)
    first = comparison.models[0].name
    rows = []
    for organ in _organs(comparison):
        entry = differences.loc[(model, organ)]
        cells = (
            Cell(score_text(of, scores[first, organ])),
            Cell(score_text(of, scores[model, organ]), difference_text(of, entry["mean"])),
            Cell(interval_text(of, entry["low"], entry["high"])),
            Cell(p_text(entry["p"])),
            Cell(p_text(entry["p_holm"]) if organ else ""),
            Cell(str(entry["n"])),
            Cell(" / ".join(str(entry[name]) for name in ("better", "worse", "equal"))),
        )
        rows.append(Row(_organ_name(organ), cells, is_mean=not organ, significant=bool(entry["p_holm"] < LEVEL)))
    columns = (
        Column(first, is_model=True),
        Column(model, difference_unit=of.difference_unit, is_model=True),
        *map(Column, ("95 % interval", "p", "p (Holm)", "cases", "better / worse / equal")),
    )
    return Table(f"{of.title} ({_unit(of)}) by organ: {model} against {first}", "organ", columns, tuple(rows))


def case_table(comparison: Comparison, of: Metric) -> Table:
    """A row for each case: the mean over organs of each model, and the paired differences."""
    first, *others = (model.name for model in comparison.models)
    paired = pd.DataFrame({name: case_differences(comparison.scores, of.key, first, name) for name in others})
    rows = tuple(
        Row(str(case), _cells(of, scores, paired.loc[case])) for case, scores in case_means(comparison, of).iterrows()
    )
    return Table(f"{of.title} ({_unit(of)}) by case", "case", _columns(comparison, of), rows)


def fold_table(comparison: Comparison, of: Metric) -> Table | None:
    """A row for each fold: the means over organs, then cases. None if the predictions are those of ensembles."""
    scores = comparison.scores[comparison.scores["fold"].notna()]
    if scores.empty:
        return None
    averaged = average_repeats(scores, dict.fromkeys(["dice", of.key]))
    frame = means(averaged, [of.key], ["model", "fold", "case"], ["model", "fold"])
    frame = frame.pivot(index="fold", columns="model", values=of.key)[[model.name for model in comparison.models]]
    cases = scores.groupby("fold")["case"].nunique()
    rows = tuple(
        Row(str(fold), (Cell(str(cases[fold])), *_cells(of, entry, entry - entry.iloc[0])))
        for fold, entry in frame.iterrows()
    )
    columns = (Column("cases"), *_columns(comparison, of))
    return Table(f"{of.title} ({_unit(of)}) by fold", "fold", columns, rows)


def noise_table(comparison: Comparison) -> Table | None:
    """A row for each further model and metric: the difference and the noise.

    Over folds, the difference of the means has a column of its own, because the noise belongs to it. With several
    models, p-values corrected over them have columns of their own ("all models").

    Returns:
        None if `Comparison.noise` has no rows.
    """
    over_folds, several = (comparison.noise["method"] == "folds").any(), len(comparison.models) > 2
    rows: list[Row] = []
    columns: dict[str, str] = {}
    for entry in comparison.noise.itertuples():
        of = metric(entry.metric)
        columns = {
            "metric": f"{of.title} ({of.difference_unit})",
            "difference": difference_text(of, entry.mean),
            "95 % interval": interval_text(of, entry.low, entry.high),
            "p": p_text(entry.p),
        }
        if several:
            columns["p, all models"] = p_text(entry.p_holm)
        columns["over"] = entry.method
        if over_folds:
            columns["difference of means"] = difference_text(of, entry.difference)
        columns["run-to-run noise"] = score_text(of, entry.run_to_run)
        columns["p of noise alone"] = p_text(entry.p_noise)
        if several and over_folds:  # otherwise the same as "p, all models"
            columns["p of noise alone, all models"] = p_text(entry.p_noise_holm)
        exceeds = "not known" if pd.isna(entry.exceeds) else "yes" if entry.exceeds else "no"
        columns["larger than noise"] = exceeds
        rows.append(Row(entry.model, tuple(map(Cell, columns.values()))))
    title = "Differences over folds or repeated trainings, and the run-to-run noise (one standard deviation)"
    return Table(title, "model", tuple(map(Column, columns)), tuple(rows)) if rows else None


def case_means(comparison: Comparison, of: Metric) -> pd.DataFrame:
    """The means over organs: a row for each case, sorted, and a column for each model."""
    averaged = average_repeats(comparison.scores, dict.fromkeys(["dice", of.key]), over_folds=True)
    frame = means(averaged, [of.key], ["model", "case"]).pivot(index="case", columns="model", values=of.key)
    return frame[[model.name for model in comparison.models]]  # the index is sorted


def _organ_means(comparison: Comparison, of: Metric) -> pd.Series:
    """The mean over cases by model and organ; organ "" is the mean over organs, then cases."""
    averaged = average_repeats(comparison.scores, dict.fromkeys(["dice", of.key]), over_folds=True)
    of_organs = means(averaged, [of.key], ["model", "organ"]).rename(columns={of.key: "mean"})
    overall = comparison.summary[comparison.summary["metric"] == of.key].assign(organ="")
    return pd.concat([of_organs, overall]).set_index(["model", "organ"])["mean"]


def _differences(comparison: Comparison, of: Metric) -> pd.DataFrame:
    frame = comparison.differences
    return frame[frame["metric"] == of.key].set_index(["model", "organ"])


def _organs(comparison: Comparison) -> list[str]:
    """The rows of tables of organs: the mean ("") comes first, where there are several organs."""
    names = comparison.labels.names
    return ["", *names] if len(names) > 1 else list(names)


def _organ_name(organ: str) -> str:
    return organ.replace("_", " ") if organ else "mean over organs"


def _unit(of: Metric) -> str:
    return of.unit if of.higher_is_better else f"{of.unit}, lower is better"


def _columns(comparison: Comparison, of: Metric) -> tuple[Column, ...]:
    """One for each model; the differences to the first model have columns of their own."""
    first, *others = (model.name for model in comparison.models)
    return (Column(first, is_model=True), *(Column(name, "", of.difference_unit, is_model=True) for name in others))


def _cells(of: Metric, scores: pd.Series, differences: pd.Series) -> tuple[Cell, ...]:
    """The scores of the models, in their order, and the differences of all but the first, each by name."""
    first, *others = scores.index
    compared = (Cell(score_text(of, scores[name]), difference_text(of, differences[name])) for name in others)
    return (Cell(score_text(of, scores[first])), *compared)
