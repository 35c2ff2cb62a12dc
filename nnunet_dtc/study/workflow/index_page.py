"""The page of a study: a table of all models, links to the comparisons, and every training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from nnunet_dtc._version import __version__
from nnunet_dtc.files import write_whole
from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.study.evaluation.metrics import metric
from nnunet_dtc.study.texts import visible
from nnunet_dtc.study.workflow.held_out import comparison_folder
from nnunet_dtc.study.workflow.model_files import StudyFiles
from nnunet_dtc.study.workflow.status import TrainingStatus, read_status, summary_line

__all__ = ["duration", "render_index", "write_index"]

TITLES = {
    "validation": "Validation",
    "test": "Held-out cases, all folds together",
    "test_per_fold": "Held-out cases, each fold separately",
}
ONE_FOLD = {**TITLES, "test": "Held-out cases"}


def write_index(files: StudyFiles) -> Path:
    """Write index.html into the study's folder.

    Raises:
        MalformedFileError: a comparison.json cannot be read.
        WriteError: the page cannot be written.
    """
    found = {kind: comparison_folder(files, kind) / "comparison.json" for kind in files.study.kinds}
    comparisons = {kind: read_json(file) for kind, file in found.items() if file.is_file()}
    return write_whole(files.study.folder / "index.html", render_index(files, comparisons, read_status(files)))


def render_index(
    files: StudyFiles, comparisons: Mapping[str, Mapping[str, Any]], trainings: list[TrainingStatus]
) -> str:
    """The page as text, to be written as UTF-8.

    Args:
        comparisons: the contents of comparison.json, by kind.
        trainings: the state of every training.
    """
    titles = TITLES if len(files.study.folds) > 1 else ONE_FOLD
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if isinstance(value, str) else value,
    )
    return environment.get_template("index.html.jinja").render(
        version=__version__,
        name=files.study.folder.name,
        study=files.study,
        dataset=files.dataset,
        summary=summary_line(trainings),
        tables=[_table(titles[kind], kind, comparison) for kind, comparison in comparisons.items()],
        folds=files.study.folds,
        trainings=[
            (trainer, [_cell(training) for training in trainings if training.trainer == trainer])
            for trainer in files.study.trainers
        ],
    )


def duration(seconds: float | None) -> str:
    """Such as "45 s", "12 min", "3.5 h" or "21.0 d"; "" for None."""
    if seconds is None or math.isnan(seconds):
        return ""
    for unit, size, largest in (("s", 1, 90), ("min", 60, 90 * 60), ("h", 3600, 48 * 3600)):
        if seconds < largest:
            return f"{seconds / size:.1f} {unit}" if unit == "h" else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.1f} d"


def _table(title: str, kind: str, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """One comparison: a row for each model, and a column for each metric and its noise."""
    metrics = comparison["metrics"]
    means = {(row["model"], row["metric"]): row["mean"] for row in comparison["summary"]}
    noise = {(row["model"], row["metric"]): row.get("run_to_run") for row in comparison["noise"]}
    rows = []
    for model in comparison["models"]:
        scores = [_shown(key, means.get((model["name"], key))) for key in metrics]
        noises = [_shown(key, noise.get((model["name"], key))) for key in metrics]
        rows.append((model["name"] + model["left_out"], [*scores, *noises, *_costs(model)]))
    columns = [metric(key).heading for key in metrics]
    columns += [f"noise of {metric(key).title}" for key in metrics]
    columns += ["trainings a fold", "epochs", "an epoch", "a training", "parameters", "memory (MiB)"]
    filled = [k for k in range(len(columns)) if any(cells[k] for _, cells in rows)]
    return {
        "title": title,
        "link": f"comparison/{kind}/index.html",
        "columns": [columns[k] for k in filled],
        "rows": [(name, [cells[k] for k in filled]) for name, cells in rows],
        "sentences": comparison["verdicts"],
    }


def _costs(model: Mapping[str, Any]) -> list[str]:
    epochs, seconds = model["epochs"], model["epoch_seconds"]
    parameters, memory = model["parameters"], model["peak_memory_mib"]
    return [
        str(len(model["repeats"])),
        "" if epochs is None else str(epochs),
        duration(seconds),
        duration(seconds * epochs) if seconds and epochs else "",
        "" if parameters is None else f"{parameters:,}",
        "" if memory is None else f"{memory:,.0f}",
    ]


def _shown(key: str, score: float | None) -> str:
    return "" if score is None else metric(key).shown(score)


def _cell(training: TrainingStatus) -> str:
    dice = "" if math.isnan(training.dice) else f", pseudo Dice {training.dice:.3f}"
    epochs = "" if training.epochs == training.of else f" {training.epochs}/{training.of}"
    return f"{training.state}{epochs}{dice}"
