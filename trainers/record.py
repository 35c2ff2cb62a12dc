"""The numbers of the coordinates as rows of a CSV, and the record that a training keeps of them, once an epoch."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunet_dtc.files import write_whole
from nnunet_dtc.ops.coordinates import StageNumbers, collect, measure

FILE_NAME = "coordinates.csv"
OFF_VARIABLE = "NNUNET_DTC_COORDINATES"
OFF = ("0", "false", "f", "no", "off")
POSITIONS = 20_000
COLUMNS = (
    "epoch",
    "stage",
    "block",
    "axis",
    "size",
    "spacing_mm",
    "bound_voxels",
    "mean_voxels",
    "p95_voxels",
    "max_voxels",
    "bound_mm",
    "mean_mm",
    "p95_mm",
    "max_mm",
    "used",
    "saturated",
    "shut",
    "open",
    "variation",
    "states",
)


def is_on() -> bool:
    """Whether trainings keep the record: unless the environment variable ``NNUNET_DTC_COORDINATES`` is 0."""
    return os.environ.get(OFF_VARIABLE, "").strip().lower() not in OFF


def record_epoch(
    file: Path, epoch: int, network: nn.Module, data: Tensor, spacing_mm: Sequence[float], names: Sequence[str]
) -> list[str]:
    """Run the network once, and add an epoch's rows to the record.

    Args:
        file: the record; it is made where it is not there.
        epoch: rows of this epoch and later ones are replaced, as after a training that goes on from a checkpoint.
        network: as it is, without the wrappers of ``torch.compile`` and DistributedDataParallel, see
            :func:`nnunet_dtc.ops.coordinates.collect`. A network without DTC blocks leaves no record.
        data (Tensor[N, C, ..]): its input. About ``POSITIONS`` positions of each block are measured.
        spacing_mm, names: of the input's axes.

    Returns:
        One line a stage, for the log.

    Raises:
        ValueError: ``file`` has other columns, so it is not ours to continue.
        OSError: it cannot be written.
    """
    _, stages = collect(network, data, POSITIONS)
    if not stages:
        return []
    numbers = measure(stages, data.shape[2:], spacing_mm, names)
    write_epoch(file, epoch, as_rows(numbers, epoch))
    return [log_line(stage) for stage in numbers]


def write_epoch(file: Path, epoch: int, rows: Sequence[dict[str, Any]]) -> None:
    """Add an epoch's rows; those of this epoch and later ones are dropped first, so that every epoch is there once.

    Raises:
        ValueError: ``file`` has other columns.
        OSError: it cannot be written.
    """
    before = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    header, *lines = before.splitlines(keepends=True) or [""]
    if before and header.rstrip("\r\n") != ",".join(COLUMNS):
        raise ValueError(f"{file} has other columns than this version of nnunet-dtc writes; move it away")
    kept = [line for line in lines if _is_before(line, epoch)]
    if before and kept == lines:
        with file.open("a", encoding="utf-8", newline="") as stream:
            stream.write(as_csv(rows, header=False))
        return
    write_whole(file, as_csv((), header=True) + "".join(kept) + as_csv(rows, header=False))


def as_rows(stages: Sequence[StageNumbers], epoch: int) -> list[dict[str, Any]]:
    """One row for each stage and axis, with the columns ``COLUMNS``; numbers that there are not are NaN."""
    rows = []
    for stage in stages:
        for axis in stage.axes:
            there = {"epoch": epoch, "stage": stage.stage, "block": stage.block, "states": " ".join(axis.states)}
            rows.append({column: there[column] if column in there else getattr(axis, column) for column in COLUMNS})
    return rows


def as_csv(rows: Sequence[dict[str, Any]], header: bool = True) -> str:
    """Rows as text; NaN is empty."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return table.getvalue()


def log_line(stage: StageNumbers) -> str:
    """A stage in one short line."""
    axes = stage.axes
    spread = "  ".join(f"{axis.axis} {_short(axis.mean_mm)} ({_short(axis.max_mm)})" for axis in axes)
    used = " ".join("-" if math.isnan(axis.used) else f"{100 * axis.used:.0f}" for axis in axes)
    line = f"DTC {stage.title}: shift mm mean (max) {spread}, % of the bound {used}"
    if any(math.isnan(axis.bound_voxels) for axis in axes):
        line = line.replace("% of the bound", "% of lambda (no bound)")
    named = [f"{axis.axis} {' '.join(axis.states)}" for axis in axes if axis.states]
    return line + (f"; {', '.join(named)}" if named else "")


def _is_before(line: str, epoch: int) -> bool:
    """Whether a line is a whole row of an earlier epoch; a training that is killed can leave half a line."""
    cells = line.rstrip("\n").split(",")
    return line.endswith("\n") and len(cells) == len(COLUMNS) and cells[0].isdecimal() and int(cells[0]) < epoch


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
