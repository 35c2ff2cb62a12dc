"""All scores of an evaluation with their means; the JSON and CSV files and the table in the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from nnunet_dtc._version import __version__
from nnunet_dtc.files import output_files, write_all
from nnunet_dtc.study.evaluation.images import Displacement, displacement_note
from nnunet_dtc.study.evaluation.labels import LabelSet
from nnunet_dtc.study.evaluation.metrics import metric, stored_units
from nnunet_dtc.study.evaluation.scores import means
from nnunet_dtc.study.texts import visible

__all__ = ["OUTPUTS", "Evaluation", "rich_table", "write_report"]

FORMAT = 1
OUTPUTS = (".json", ".csv")
ORDER = "over the organs of each case, then over cases; scores that are null are not counted"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of all cases.

    Attributes:
        scores: one row for each case and organ: `case`, `organ`, the metrics, `absent` (`prediction`, `reference`,
            `both`, or empty), `prediction_voxels` and `reference_voxels`.
        metrics: the keys of the metrics, see `nnunet_dtc.study.evaluation.metrics`.
        files: the prediction and the reference of each case.
        labels: the organs and the ignore label.
        tolerances: the names of the tolerances of NSD.
        absent: the rule for organs that are absent in both.
        displaced: the cases whose prediction and label have the same size and spacing, but not the same place.
    """

    scores: pd.DataFrame
    metrics: tuple[str, ...]
    files: Mapping[str, tuple[str, str]]
    labels: LabelSet
    tolerances: tuple[str, ...]
    absent: str
    displaced: Mapping[str, Displacement] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Sentences about the files that a reader of the scores should know."""
        return [displacement_note(self.displaced, len(self.files))] if self.displaced else []

    @property
    def case_means(self) -> pd.DataFrame:
        """The means over the organs of each case, by case."""
        return means(self.scores, self.metrics, ["case"]).set_index("case")

    @property
    def organ_means(self) -> pd.DataFrame:
        """The means over the cases, by organ."""
        return means(self.scores, self.metrics, ["organ"]).set_index("organ")

    @property
    def mean(self) -> pd.Series:
        """The means over organs, then over cases: the paper's numbers."""
        return means(self.scores, self.metrics, ["case"], []).iloc[0]

    @property
    def mean_cases_first(self) -> pd.Series:
        """The means over cases, then over organs: nnU-Net's `foreground_mean`."""
        return means(self.scores, self.metrics, ["organ"], []).iloc[0]

    @property
    def infinite(self) -> pd.DataFrame:
        """How many scores of each metric are infinite, by organ: the organ is absent in one of the two."""
        return np.isinf(self.scores[list(self.metrics)]).groupby(self.scores["organ"], sort=False).sum()

    def as_json(self) -> dict[str, Any]:
        """The content of the JSON file.

        NaN and infinity, which JSON does not have, are null; where a score is infinite, `absent` says in which of the
        two the organ is absent.
        """
        case_means, organ_means, infinite = self.case_means, self.organ_means, self.infinite
        organs: dict[str, dict[str, Any]] = {case: {} for case in self.files}
        for row in self.scores.to_dict("records"):
            case, organ = row.pop("case"), row.pop("organ")
            organs[case][organ] = _as_json(row)
        return {
            "format": FORMAT,
            "nnunet_dtc": __version__,
            "units": stored_units(),
            "absent": self.absent,
            "tolerances": list(self.tolerances),
            "labels": {organ.name: list(organ.values) for organ in self.labels.organs},
            "ignore_label": self.labels.ignore,
            "mean_order": ORDER,
            "notes": self.notes,
            "displaced": {case: asdict(found) for case, found in self.displaced.items()},
            "mean": _as_json(self.mean) | _infinite_as_json(infinite.sum()),
            "mean_cases_first": _as_json(self.mean_cases_first),
            "organs": {
                organ: _as_json(organ_means.loc[organ]) | _infinite_as_json(infinite.loc[organ])
                for organ in self.labels.names
            },
            "cases": {
                case: {
                    "prediction": prediction,
                    "reference": reference,
                    "mean": _as_json(case_means.loc[case]),
                    "organs": organs[case],
                }
                for case, (prediction, reference) in self.files.items()
            },
        }


def write_report(evaluation: Evaluation, out: Path, overwrite: bool = False) -> tuple[Path, Path]:
    """Write OUT.json and OUT.csv (one row for each case and organ; NaN is empty, infinity `inf`), both or neither.

    Raises:
        OSError: see `nnunet_dtc.files.output_files` and `nnunet_dtc.files.write_all`.
    """
    as_json, as_csv = output_files(out, OUTPUTS, overwrite)
    content = json.dumps(evaluation.as_json(), indent=2, allow_nan=False) + "\n"
    names = {column: evaluation.scores[column].map(visible) for column in ("case", "organ")}
    table = evaluation.scores.assign(**names).to_csv(index=False, lineterminator="\n")
    write_all({as_json: content, as_csv: table})
    return as_json, as_csv


def rich_table(evaluation: Evaluation) -> Any:
    """The means as a `rich.table.Table`, each metric in the unit in which it is shown."""
    from rich.markup import escape
    from rich.table import Table

    cases, infinite = len(evaluation.files), evaluation.infinite
    metrics = [metric(key) for key in evaluation.metrics]
    table = Table(title=f"{cases} case{'s' * (cases != 1)}, mean over organs then cases")
    if left_out := [entry.title for entry in metrics if infinite[entry.key].any()]:
        table.caption = f"means of {', '.join(left_out)} leave out (n) infinite ones: organs absent in one of the two"
    table.add_column("organ")
    for entry in metrics:
        table.add_column(escape(entry.heading), justify="right")

    def cells(scores: pd.Series, counts: pd.Series) -> list[str]:
        return [
            entry.shown(scores[entry.key]) + (f" ({counts[entry.key]})" if counts[entry.key] else "")
            for entry in metrics
        ]

    for organ, scores in evaluation.organ_means.iterrows():
        table.add_row(escape(visible(organ)), *cells(scores, infinite.loc[organ]))
    table.add_section()
    table.add_row("mean", *cells(evaluation.mean, infinite.sum()), style="bold")
    return table


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values for JSON: null in place of numbers that are not finite and of empty texts."""
    missing = ("", math.inf, -math.inf)
    return {key: None if value in missing or value != value else value for key, value in values.items()}


def _infinite_as_json(counts: pd.Series) -> dict[str, int]:
    keys = {key: metric(key).infinite_key for key in counts.index}
    return {name: int(counts[key]) for key, name in keys.items() if name}
