"""Means over organs and cases; JSON, CSV and a table.

The order of the means, as in the paper's tables (one number a model and metric): first over the organs of each case,
then over the cases. Scores that are not counted (NaN, see `scoring`) are left out of each of them; a case without any
is left out of the second. With absent organs, the other order gives another number; it is in the JSON, too, for it is
nnU-Net's `foreground_mean` (first over cases, then over organs). Infinite HD95 are left out of its means, which would
be infinite themselves; so a mean HD95 says nothing about organs that were missed, and how many these are stands beside
it (`hd95_infinite`).
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nnunet_dtc._version import __version__
from nnunet_dtc.files import output_files, write_all
from nnunet_dtc.study.evaluation.images import Displacement, displacement_note
from nnunet_dtc.study.evaluation.labels import LabelSet, Organ
from nnunet_dtc.study.evaluation.scoring import OrganScores
from nnunet_dtc.study.texts import visible

__all__ = ["OUTPUTS", "Evaluation", "read_json", "write_report"]

FORMAT = 1
OUTPUTS = (".json", ".csv")
ORDER = "over the organs of each case, then over cases; scores that are null are not counted"


@dataclass(frozen=True)
class Evaluation:
    """The scores of all cases.

    Attributes:
        cases: case to organ to its scores.
        files: case to its prediction and reference.
        tolerances: names of the tolerances of NSD.
        absent: the rule for organs that neither has.
        displaced: the cases whose prediction and label are of one size and spacing, but not in the same place.
    """

    cases: Mapping[str, Mapping[str, OrganScores]]
    files: Mapping[str, tuple[str, str]]
    labels: LabelSet
    tolerances: tuple[str, ...]
    absent: str
    displaced: Mapping[str, Displacement] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """Sentences about what a reader of the scores should know of the files."""
        return [displacement_note(self.displaced, len(self.cases))] if self.displaced else []

    @property
    def metrics(self) -> list[str]:
        """`dice`, `nsd_<tolerance>` ..., `hd95_mm`."""
        return [*next(organs for case in self.cases.values() for organs in case.values()).scores]

    def case_mean(self, case: str, metric: str) -> float:
        """Over the organs of a case."""
        return mean(scores.scores[metric] for scores in self.cases[case].values())

    def organ_mean(self, organ: str, metric: str) -> float:
        """Over the cases, for one organ."""
        return mean(organs[organ].scores[metric] for organs in self.cases.values())

    def mean(self, metric: str) -> float:
        """Over organs, then cases: the paper's number."""
        return mean(self.case_mean(case, metric) for case in self.cases)

    def mean_cases_first(self, metric: str) -> float:
        """Over cases, then organs: nnU-Net's `foreground_mean`."""
        return mean(self.organ_mean(organ, metric) for organ in self.labels.names)

    def infinite_hd95(self, organ: str | None = None) -> int:
        """How many HD95 are infinite, of one organ or of all: the organ is absent in one of the two."""
        return sum(
            math.isinf(scores.scores["hd95_mm"])
            for organs in self.cases.values()
            for name, scores in organs.items()
            if organ in (None, name)
        )

    def rows(self) -> list[dict[str, Any]]:
        """One for each case and organ, as in the CSV: numbers, with NaN and infinity."""
        return [
            {
                "case": case,
                "organ": organ,
                **scores.scores,
                "absent": scores.absent or "",
                "prediction_voxels": scores.prediction_voxels,
                "reference_voxels": scores.reference_voxels,
            }
            for case, organs in self.cases.items()
            for organ, scores in organs.items()
        ]

    def as_json(self) -> dict[str, Any]:
        """What the JSON holds. NaN and infinity, which JSON does not have, are null; where HD95 is infinite, `absent`
        says in which of the two the organ is absent."""
        return {
            "format": FORMAT,
            "nnunet_dtc": __version__,
            "units": "dice and nsd: 0 to 1; hd95_mm: mm",
            "absent": self.absent,
            "tolerances": list(self.tolerances),
            "labels": {organ.name: list(organ.values) for organ in self.labels.organs},
            "ignore_label": self.labels.ignore,
            "mean_order": ORDER,
            "notes": self.notes,
            "displaced": {case: asdict(found) for case, found in self.displaced.items()},
            "mean": self._means(self.mean) | {"hd95_infinite": self.infinite_hd95()},
            "mean_cases_first": self._means(self.mean_cases_first),
            "organs": {
                organ: self._means(lambda metric, organ=organ: self.organ_mean(organ, metric))
                | {"hd95_infinite": self.infinite_hd95(organ)}
                for organ in self.labels.names
            },
            "cases": {
                case: {
                    "prediction": self.files[case][0],
                    "reference": self.files[case][1],
                    "mean": self._means(lambda metric, case=case: self.case_mean(case, metric)),
                    "organs": {
                        organ: {metric: _finite(value) for metric, value in scores.scores.items()}
                        | {
                            "absent": scores.absent,
                            "prediction_voxels": scores.prediction_voxels,
                            "reference_voxels": scores.reference_voxels,
                        }
                        for organ, scores in organs.items()
                    },
                }
                for case, organs in self.cases.items()
            },
        }

    def _means(self, of: Any) -> dict[str, float | None]:
        return {metric: _finite(of(metric)) for metric in self.metrics}


def mean(values: Iterable[float]) -> float:
    """Of the finite values; NaN if there is none."""
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def write_report(evaluation: Evaluation, out: Path, overwrite: bool = False) -> tuple[Path, Path]:
    """Write OUT.json and OUT.csv (one row for each case and organ; NaN is empty, infinity `inf`), both or neither.

    Raises:
        OSError: see `nnunet_dtc.files.output_files` and `nnunet_dtc.files.write_all`.
    """
    as_json, as_csv = output_files(out, OUTPUTS, overwrite)
    table = io.StringIO(newline="")
    rows = evaluation.rows()
    writer = csv.DictWriter(table, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        names = {key: visible(row[key]) for key in ("case", "organ")}
        writer.writerow({key: "" if value != value else value for key, value in (row | names).items()})
    content = json.dumps(evaluation.as_json(), indent=2, allow_nan=False) + "\n"
    write_all({as_json: content, as_csv: table.getvalue()})
    return as_json, as_csv


def read_json(file: Path) -> Evaluation:
    """An evaluation that `write_report` wrote, with its NaN and infinities.

    Raises:
        ValueError: if it is something else, naming the file.
    """
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format {FORMAT} is needed, got {content['format']}")
        labels = LabelSet(
            tuple(Organ(name, tuple(values)) for name, values in content["labels"].items()), content["ignore_label"]
        )
        evaluation = Evaluation(
            cases={
                case: {organ: _restored(scores) for organ, scores in entry["organs"].items()}
                for case, entry in content["cases"].items()
            },
            files={case: (entry["prediction"], entry["reference"]) for case, entry in content["cases"].items()},
            labels=labels,
            tolerances=tuple(content["tolerances"]),
            absent=content["absent"],
            displaced={case: Displacement(**found) for case, found in content.get("displaced", {}).items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no evaluation of nnunet-dtc: {error!r}") from error
    return evaluation


def rich_table(evaluation: Evaluation) -> Any:
    """The means as a `rich.table.Table`: Dice and NSD in per cent, HD95 in mm."""
    from rich.markup import escape
    from rich.table import Table

    cases = len(evaluation.cases)
    table = Table(title=f"{cases} case{'s' * (cases != 1)}, mean over organs then cases")
    if evaluation.infinite_hd95():
        table.caption = "HD95 leaves out (n) infinite ones: the organ is absent in one of the two"
    table.add_column("organ")
    table.add_column("Dice %", justify="right")
    for name in evaluation.tolerances:
        table.add_column(f"NSD % {escape(name)}", justify="right")
    table.add_column("HD95 mm", justify="right")

    def cells(of: Any, infinite: int) -> list[str]:
        values = [of(metric) * (100 if metric != "hd95_mm" else 1) for metric in evaluation.metrics]
        texts = ["-" if math.isnan(value) else f"{value:.2f}" for value in values]
        return [*texts[:-1], texts[-1] + (f" ({infinite})" if infinite else "")]

    for organ in evaluation.labels.names:
        values = cells(
            lambda metric, organ=organ: evaluation.organ_mean(organ, metric), evaluation.infinite_hd95(organ)
        )
        table.add_row(escape(visible(organ)), *values)
    table.add_section()
    table.add_row("mean", *cells(evaluation.mean, evaluation.infinite_hd95()), style="bold")
    return table


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _restored(entry: dict[str, Any]) -> OrganScores:
    scores = {key: value for key, value in entry.items() if key == "dice" or key.startswith("nsd_") or key == "hd95_mm"}
    one_absent = entry["absent"] in ("prediction", "reference")
    return OrganScores(
        {
            key: (math.inf if key == "hd95_mm" and one_absent else math.nan) if value is None else value
            for key, value in scores.items()
        },
        entry["prediction_voxels"],
        entry["reference_voxels"],
    )
