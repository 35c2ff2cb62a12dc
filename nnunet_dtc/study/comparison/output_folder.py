"""The folder that a comparison is written into, and its files, each written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from nnunet_dtc._version import __version__
from nnunet_dtc.files import check_outputs, check_writable, write_all, writing
from nnunet_dtc.study.comparison.markdown import markdown
from nnunet_dtc.study.comparison.models import ComparisonError
from nnunet_dtc.study.comparison.page import render_page
from nnunet_dtc.study.comparison.plan import Plan
from nnunet_dtc.study.comparison.printable_names import printable_names
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.statistics import average_repeats
from nnunet_dtc.study.comparison.verdicts import noise_sentences, verdict_sentences
from nnunet_dtc.study.evaluation.metrics import stored_units
from nnunet_dtc.study.evaluation.scores import means
from nnunet_dtc.work_folders import NO_LOCKS

__all__ = ["as_json", "check_output", "default_output", "for_this_process_alone", "write_comparison"]

FORMAT = 1
PREDICTIONS = "predictions"
FILES = ("comparison.md", "comparison.json", "scores.csv", "differences.csv", "index.html")


def default_output(plan: Plan) -> Path:
    """The folder that is written into by default, in the current folder.

    Its name has the plans and the configuration, because it holds predictions.
    """
    training = plan.first
    names = ("comparison", plan.dataset, training.plans_name, training.configuration, plan.options.kind)
    return Path("_".join(names).replace(" ", "_"))


@contextlib.contextmanager
def for_this_process_alone(output: Path) -> Iterator[None]:
    """Create the folder and keep other comparisons out of it within the block. If it stays empty it is removed again.

    Raises:
        ComparisonError: another comparison writes into it.
        OSError: it cannot be created.
    """
    was_there = output.exists()
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    descriptor = None if os.name == "nt" else os.open(output, os.O_RDONLY)
    try:
        if descriptor is not None:
            _lock(descriptor, output)
        try:
            yield
        finally:
            if not was_there:
                with contextlib.suppress(OSError):  # it is not empty
                    output.rmdir()
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int, output: Path) -> None:
    import fcntl  # not on Windows

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ComparisonError(f"another comparison writes into {output}: give another output folder") from None
    except OSError as error:
        if error.errno not in (*NO_LOCKS, errno.EBADF):  # NFS does not lock folders
            raise


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use. It may hold predictions alone, those of a comparison that was interrupted.

    Raises:
        ComparisonError: it is a file, or a folder that is not empty (unless `overwrite`).
        OSError: nothing can be written there, or a folder has the name of one of the files.
    """
    if output.exists() and not output.is_dir():
        raise ComparisonError(f"the output must be a folder, got the file {output}")
    there = sorted(entry.name for entry in output.iterdir() if entry.name != PREDICTIONS) if output.is_dir() else []
    if there and not overwrite:
        raise ComparisonError(
            f"{output} is not empty ({', '.join(there[:5])}): give another output folder, or overwrite it (--overwrite)"
        )
    check_outputs([output / name for name in FILES], overwrite)
    check_writable(next(folder for folder in (output, *output.absolute().parents) if folder.is_dir()))


def write_comparison(comparison: Comparison, output: Path) -> list[Path]:
    """Write comparison.md, comparison.json, scores.csv, differences.csv and index.html. Other files stay.

    Returns:
        The files that were written.

    Raises:
        OSError: a file cannot be written.
    """
    comparison = printable_names(comparison)
    tables = (_with_full_names(comparison, table) for table in (comparison.scores, comparison.differences))
    contents = (
        markdown(comparison),
        json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n",
        *(table.to_csv(index=False, lineterminator="\n") for table in tables),
        render_page(comparison),
    )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    return write_all({output / name: content for name, content in zip(FILES, contents, strict=True)})


def as_json(comparison: Comparison) -> dict[str, Any]:
    """The content of comparison.json. Scores are stored as in the frames; NaN and infinity are null. The scores of
    single organs in single cases are in scores.csv."""
    of_fold = average_repeats(comparison.scores, comparison.metrics)
    of_case = average_repeats(comparison.scores, comparison.metrics, over_folds=True)
    return {
        "format": FORMAT,
        "nnunet_dtc": __version__,
        "dataset": comparison.dataset,
        "kind": comparison.kind,
        "units": stored_units(),
        "labels": {organ.name: list(organ.values) for organ in comparison.labels.organs},
        "ignore_label": comparison.labels.ignore,
        "metrics": comparison.metrics,
        "models": [asdict(model) | {"folder": str(model.folder)} for model in comparison.models],
        "summary": _records(comparison.summary),
        "organs": _records(means(of_case, comparison.metrics, ["model", "organ"])),
        "folds": _records(means(of_fold, comparison.metrics, ["model", "fold", "case"], ["model", "fold"])),
        "cases": _records(means(of_case, comparison.metrics, ["model", "case"])),
        "differences": _records(comparison.differences),
        "verdicts": verdict_sentences(comparison),
        "noise": _records(comparison.noise.assign(sentence=noise_sentences(comparison.noise, comparison.trainings))),
        "pictures": [
            {
                "case": picture.case,
                "why": picture.why,
                "images": list(map(str, picture.images)),
                "reference": str(picture.reference),
                "predictions": {model: str(file) for model, file in picture.predictions.items()},
                "dice": _known(picture.dice),
            }
            for picture in comparison.pictures
        ],
        "sentences": comparison.sentences,
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows with Python's own types; None for NaN and infinity."""
    finite = frame.replace([math.inf, -math.inf], math.nan)
    return finite.astype(object).where(finite.notna(), None).to_dict(orient="records")


def _known(scores: Mapping[str, float]) -> dict[str, float | None]:
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}


def _with_full_names(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with whole names of trainers, because a CSV is read without the sentences beside it."""
    return frame.assign(
        model=frame["model"].map({model.name: model.name + model.left_out for model in comparison.models})
    )
