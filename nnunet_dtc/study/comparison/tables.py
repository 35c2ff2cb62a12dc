"""A comparison as tables: for the terminal, and as Markdown and JSON.

The first table has the form of the paper's table 3 (each model's means and the differences to the first), and with a
number per fold the form of its tables 1 and 2 (mean ± standard deviation over folds).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_dtc._version import __version__
from nnunet_dtc.study.comparison.printable_names import readable
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.statistics import average_repeats, case_differences, case_means, fold_means
from nnunet_dtc.study.evaluation import units
from nnunet_dtc.study.texts import markdown_text

__all__ = [
    "Table",
    "as_json",
    "case_table",
    "cost_table",
    "difference_table",
    "fold_table",
    "markdown",
    "noise_table",
    "organ_table",
    "overview_table",
    "rich_tables",
]

FORMAT = 1
MOST_CASES = 100  # in Markdown; the CSV has all
MEAN = "mean over organs"


@dataclass(frozen=True)
class Table:
    """A title, the headings, and rows of texts; the first column holds names, the others numbers."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def overview_table(comparison: Comparison) -> Table:
    """The paper's table 3: a row for each model; per metric its mean (± over folds) and the difference to the first."""
    summary = comparison.summary.set_index(["model", "metric"])
    head = ["Model"]
    for metric in comparison.metrics:
        head += [f"{units.title(metric)} ({units.unit(metric)})", f"difference ({units.difference_unit(metric)})"]
    rows = []
    for model in comparison.models:
        row = [model.name]
        for metric in comparison.metrics:
            entry = summary.loc[(model.name, metric)]
            spread = "" if math.isnan(entry["std_folds"]) else f"±{units.value(metric, entry['std_folds'])}"
            first = model is comparison.models[0]
            row += [
                units.value(metric, entry["mean"]) + spread,
                "" if first else units.signed(metric, entry["difference"]),
            ]
        rows.append(tuple(row))
    return Table(f"{comparison.dataset}, {comparison.kind}", tuple(head), tuple(rows))


def cost_table(comparison: Comparison) -> Table:
    """What each model costs, from logs, checkpoints and `nnunet-dtc complexity`."""
    rows = []
    for model in comparison.models:
        rows.append(
            (
                model.name,
                "-" if model.epochs is None else str(model.epochs),
                "-" if model.parameters is None else f"{model.parameters:,}",
                "-" if model.epoch_seconds is None else f"{model.epoch_seconds:.1f}",
                "-" if model.peak_memory_mib is None else f"{model.peak_memory_mib:.0f}",
            )
        )
    return Table("Cost", ("Model", "epochs", "parameters", "seconds an epoch", "peak memory (MiB)"), tuple(rows))


def organ_table(comparison: Comparison, metric: str) -> Table:
    """Means over cases: a row for each organ, a column for each model."""
    means = organ_means(comparison)
    overall = comparison.summary.set_index(["model", "metric"])["mean"]
    names = [model.name for model in comparison.models]
    rows = [
        (organ, *(units.value(metric, means.loc[(name, organ), metric]) for name in names))
        for organ in comparison.labels.names
    ]
    rows.append((MEAN, *(units.value(metric, overall[name, metric]) for name in names)))
    return Table(f"{_titled(metric)} per organ", ("Organ", *names), tuple(rows))


def difference_table(comparison: Comparison, metric: str, model: str) -> Table:
    """One model against the first: a row for each organ, with interval, p, and how often it is better."""
    frame = comparison.differences
    frame = frame[(frame["model"] == model) & (frame["metric"] == metric)]
    rows = [
        (
            entry.organ or MEAN,
            str(entry.n),
            units.signed(metric, entry.mean),
            "-"
            if math.isnan(entry.low)
            else f"{units.signed(metric, entry.low)} to {units.signed(metric, entry.high)}",
            _p(entry.p),
            _p(entry.p_holm) if entry.organ else "",
            f"{entry.better} / {entry.equal} / {entry.worse}",
        )
        for entry in frame.itertuples()
    ]
    title = f"{units.title(metric)} ({units.difference_unit(metric)}): {model} minus {comparison.models[0].name}"
    head = ("Organ", "pairs", "difference", "95 % interval", "p", "p (Holm)", "better / equal / worse")
    return Table(title, head, tuple(rows))


def fold_table(comparison: Comparison, metric: str) -> Table:
    """Means of each fold: a row for each fold, a column for each model. Without rows where there are no folds."""
    frame = fold_means(average_repeats(comparison.scores, comparison.metrics), comparison.metrics)
    frame = frame[frame["fold"].notna()].pivot(index="fold", columns="model", values=metric)
    names = [model.name for model in comparison.models]
    rows = tuple(
        (str(fold), *(units.value(metric, row.get(name, math.nan)) for name in names)) for fold, row in frame.iterrows()
    )
    return Table(f"{_titled(metric)} per fold", ("Fold", *names), rows)


def case_table(comparison: Comparison, metric: str) -> Table:
    """Means over organs: a row for each case, a column for each model and each paired difference to the first."""
    frame = mean_of_cases(comparison).pivot(index="case", columns="model", values=metric)
    first, *others = (model.name for model in comparison.models)
    paired = {name: case_differences(comparison.scores, metric, first, name) for name in others}
    rows = tuple(
        (
            str(case),
            *(units.value(metric, row[name]) for name in (first, *others)),
            *(units.signed(metric, paired[name][case]) for name in others),
        )
        for case, row in frame.iterrows()
    )
    head = ("Case", first, *others, *(f"{name}: difference ({units.difference_unit(metric)})" for name in others))
    return Table(f"{_titled(metric)} per case", head, rows)


def noise_table(comparison: Comparison) -> Table:
    """The differences beside the noise between repeated trainings."""
    rows = tuple(
        (
            entry.model,
            f"{units.title(entry.metric)} ({units.difference_unit(entry.metric)})",
            units.signed(entry.metric, entry.difference),
            units.value(entry.metric, entry.run_to_run),
            _p(entry.p_noise),
            "not known" if pd.isna(entry.exceeds) else "yes" if entry.exceeds else "no",
        )
        for entry in comparison.noise.itertuples()
    )
    head = ("Model", "metric", "difference", "run-to-run noise", "p of noise alone", "more than noise")
    return Table(
        "Differences and the noise between repeated trainings (one standard deviation, Student's t)", head, rows
    )


def organ_means(comparison: Comparison) -> pd.DataFrame:
    """Over cases (and folds and repeats), by model and organ; infinite ones are left out."""
    scores = average_repeats(comparison.scores, comparison.metrics, over_folds=True)
    return case_means(scores, comparison.metrics, ("model", "organ")).set_index(["model", "organ"])


def mean_of_cases(comparison: Comparison) -> pd.DataFrame:
    """Over the organs of each case, by model and case."""
    scores = average_repeats(comparison.scores, comparison.metrics, over_folds=True)
    return case_means(scores, comparison.metrics, ("model", "case"))


def markdown(comparison: Comparison) -> str:
    """The whole comparison as a Markdown document; names in it are text, whatever they are."""
    comparison = readable(comparison)
    others = [model.name for model in comparison.models[1:]]
    title = f"{comparison.dataset}: {' and '.join(others)} against {comparison.models[0].name}"
    parts = [f"# {markdown_text(title)}", ""]
    parts += [f"- {markdown_text(sentence)}" for sentence in comparison.sentences]
    tables = [overview_table(comparison), cost_table(comparison)]
    parts += [_markdown(table) for table in tables]
    if len(comparison.noise):
        parts += [_markdown(noise_table(comparison)), ""]
        parts += [f"- {markdown_text(sentence)}" for sentence in comparison.noise["sentence"]]
    for metric in comparison.metrics:
        parts.append(_markdown(organ_table(comparison, metric)))
        parts += [_markdown(difference_table(comparison, metric, model)) for model in others]
    folds = [fold_table(comparison, metric) for metric in comparison.metrics]
    parts += [_markdown(table) for table in folds if len(table.rows) > 1]
    cases = [case_table(comparison, metric) for metric in comparison.metrics]
    if len(cases[0].rows) <= MOST_CASES:
        parts += [_markdown(table) for table in cases]
    else:
        parts += ["", f"The {len(cases[0].rows)} cases are in comparison.json; every organ of theirs is in scores.csv."]
    return "\n".join(parts) + "\n"


def rich_tables(comparison: Comparison) -> list[Any]:
    """What the terminal shows: the overview, Dice per organ, the cost, and the noise where it is known, as
    `rich.table.Table`s."""
    from rich.markup import escape
    from rich.table import Table as RichTable

    comparison = readable(comparison)

    shown = [_narrow(overview_table(comparison))]
    if len(comparison.labels.names) > 1:
        shown.append(organ_table(comparison, comparison.metrics[0]))
    shown.append(cost_table(comparison))
    if len(comparison.noise):
        shown.append(noise_table(comparison))
    tables = []
    for table in shown:
        rich = RichTable(title=escape(table.title))
        for index, name in enumerate(table.head):
            # names of models are long and have no spaces to break at
            rich.add_column(escape(name), justify="right" if index else "left", overflow="fold")
        for row in table.rows:
            rich.add_row(*map(escape, row))
        tables.append(rich)
    return tables


def as_json(comparison: Comparison) -> dict[str, Any]:
    """What comparison.json holds. Scores as in the frames: Dice and NSD 0 to 1, HD95 in mm; NaN and infinity are null.
    Single organs of single cases are in scores.csv."""
    averaged = average_repeats(comparison.scores, comparison.metrics)
    content = {
        "format": FORMAT,
        "nnunet_dtc": __version__,
        "dataset": comparison.dataset,
        "kind": comparison.kind,
        "units": "dice and nsd: 0 to 1; hd95_mm: mm",
        "labels": {organ.name: list(organ.values) for organ in comparison.labels.organs},
        "ignore_label": comparison.labels.ignore,
        "metrics": comparison.metrics,
        "models": [asdict(model) for model in comparison.models],
        "summary": _records(comparison.summary),
        "organs": _records(organ_means(comparison).reset_index()),
        "folds": _records(fold_means(averaged, comparison.metrics)),
        "cases": _records(mean_of_cases(comparison)),
        "differences": _records(comparison.differences),
        "noise": _records(comparison.noise),
        "pictures": [
            {
                "case": picture.case,
                "why": picture.why,
                "images": picture.images,
                "reference": picture.reference,
                "predictions": dict(picture.predictions),
                "dice": dict(picture.dice),
            }
            for picture in comparison.pictures
        ],
        "sentences": comparison.sentences,
    }
    return _plain(content)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return frame.to_dict(orient="records")


def _plain(value: Any) -> Any:
    """With JSON's types alone."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or value is pd.NA:
        return None
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(map(markdown_text, cells)) + " |"

    rule = "|---|" + "---:|" * (len(table.head) - 1)
    return "\n".join(["", f"## {markdown_text(table.title)}", "", line(table.head), rule, *map(line, table.rows)])


def _narrow(overview: Table) -> Table:
    """For a terminal: differences below the means instead of beside them."""
    head = (overview.head[0], *overview.head[1::2])
    rows: list[tuple[str, ...]] = []
    for row in overview.rows:
        rows.append((row[0], *row[1::2]))
        if any(row[2::2]):
            rows.append(("  difference", *row[2::2]))
    return Table(overview.title, head, tuple(rows))


def _titled(metric: str) -> str:
    return f"{units.title(metric)} ({units.unit(metric)})"


def _p(p: float) -> str:
    if math.isnan(p):
        return "-"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
