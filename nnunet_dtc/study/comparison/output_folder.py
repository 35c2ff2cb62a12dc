"""The files of a comparison, each written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from nnunet_dtc.files import check_outputs, check_writable, write_all, writing
from nnunet_dtc.study.comparison.models import ComparisonError
from nnunet_dtc.study.comparison.printable_names import readable
from nnunet_dtc.study.comparison.result import Comparison
from nnunet_dtc.study.comparison.tables import as_json, markdown

__all__ = ["check_output", "default_output", "write_comparison"]

PREDICTIONS = "predictions"
FILES = ("comparison.md", "comparison.json", "scores.csv", "differences.csv", "index.html")


def default_output(dataset: str, kind: str) -> Path:
    """In the folder where the command is called."""
    return Path(f"comparison_{dataset}_{kind.replace(' ', '_')}")


def check_output(output: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use. Predictions alone may be there: those of a comparison that was interrupted.

    Raises:
        ComparisonError: for a file, or a folder with something in it (unless `overwrite`).
        OSError: nothing can be written there, or a folder has the name of one of the files.
    """
    if output.exists() and not output.is_dir():
        raise ComparisonError(f"the output must be a folder, got the file {output}")
    there = sorted(entry.name for entry in output.iterdir() if entry.name != PREDICTIONS) if output.is_dir() else []
    if there and not overwrite:
        raise ComparisonError(
            f"{output} is not empty ({', '.join(there[:5])}): give another folder by -o, or --overwrite"
        )
    check_outputs([output / name for name in FILES], overwrite)
    check_writable(next(folder for folder in (output, *output.absolute().parents) if folder.is_dir()))


def write_comparison(comparison: Comparison, output: Path, page: Callable[[Comparison], str]) -> list[Path]:
    """Write comparison.md, comparison.json, scores.csv, differences.csv and index.html; other files stay.

    Args:
        page: makes the HTML, see `nnunet_dtc.study.comparison.page.render_page`.
    """
    comparison = readable(comparison)
    tables = (_with_full_names(comparison, table) for table in (comparison.scores, comparison.differences))
    contents = (
        markdown(comparison),
        json.dumps(as_json(comparison), indent=2, allow_nan=False) + "\n",
        *(table.to_csv(index=False, lineterminator="\n") for table in tables),
        page(comparison),
    )
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    return write_all({output / name: content for name, content in zip(FILES, contents, strict=True)})


def _with_full_names(comparison: Comparison, frame: pd.DataFrame) -> pd.DataFrame:
    """For tables that are read without the sentences beside them."""
    return frame.assign(
        model=frame["model"].map({model.name: model.name + model.left_out for model in comparison.models})
    )
