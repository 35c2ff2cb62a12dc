"""The statistics of the coordinates as rows of a CSV file, to which a training adds rows once an epoch."""

import csv
import io
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from nnunet_dtc.architectures.padding import size_inside
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import write_whole
from nnunet_dtc.ops.coordinates import StageStatistics, collect, measure

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
    "offset_saturated",
    "weight_at_0",
    "weight_at_1",
    "variation",
    "states",
)

# columns and states in files of development versions before 0.1.0, with their present names
_FORMER = {"saturated": "offset_saturated", "shut": "weight_at_0", "open": "weight_at_1", "dead": "constant"}
_FORMER_COLUMNS = tuple({new: old for old, new in _FORMER.items()}.get(column, column) for column in COLUMNS)


def is_on() -> bool:
    """Whether trainings record the coordinates: unless the environment variable ``NNUNET_DTC_COORDINATES`` is 0."""
    return os.environ.get(OFF_VARIABLE, "").strip().lower() not in OFF


def record_epoch(
    file: Path, epoch: int, network: nn.Module, data: Tensor, spacing_mm: Sequence[float], names: Sequence[str]
) -> list[str]:
    """Run the network once, and add the statistics of an epoch to the record.

    Args:
        file: the record; it is created if it does not exist.
        epoch: rows of this epoch and of later ones are replaced, as when a training continues from a checkpoint.
        network: the network without the wrappers of ``torch.compile`` and DistributedDataParallel, see
            :func:`nnunet_dtc.ops.coordinates.collect`. Nothing is recorded for a network without DTC blocks.
        data (Tensor[N, C, ..]): its input. About ``POSITIONS`` positions of each block are measured.
        spacing_mm: spacing of the input per axis.
        names: names of the axes.

    Returns:
        One line per stage for the log.

    Raises:
        NnunetDtcError: ``file`` is not a record of coordinates.
        OSError: ``file`` cannot be written.
    """
    _, stages = collect(network, data, POSITIONS)
    if not stages:
        return []
    statistics = measure(stages, size_inside(network, data.shape[2:]), spacing_mm, names)
    write_epoch(file, epoch, as_rows(statistics, epoch))
    return [log_line(stage) for stage in statistics]


def write_epoch(file: Path, epoch: int, rows: Sequence[dict[str, Any]]) -> None:
    """Add the rows of an epoch to a record.

    Rows of this epoch and of later ones are removed first, so that the record holds every epoch once. A record with
    the column names of an earlier version is converted.

    Raises:
        NnunetDtcError: ``file`` is not a record of coordinates.
        OSError: ``file`` cannot be written.
    """
    before = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    header, *lines = before.splitlines(keepends=True) or [",".join(COLUMNS)]
    columns = tuple(header.rstrip("\r\n").split(","))
    if columns not in (COLUMNS, _FORMER_COLUMNS):
        raise NnunetDtcError(f"{file} has other columns than this version of nnunet-dtc writes; move it away")
    kept = [line for line in lines if _is_before(line, epoch)]
    if before and kept == lines and columns == COLUMNS:
        with file.open("a", encoding="utf-8", newline="") as stream:
            stream.write(as_csv(rows, header=False))
        return
    if columns == _FORMER_COLUMNS:
        kept = [_with_present_states(line) for line in kept]
    write_whole(file, as_csv((), header=True) + "".join(kept) + as_csv(rows, header=False))


def as_rows(stages: Sequence[StageStatistics], epoch: int) -> list[dict[str, Any]]:
    """One row for each stage and axis, with the columns ``COLUMNS``; numbers that are not defined are NaN."""
    rows = []
    for stage in stages:
        for axis in stage.axes:
            own = {"epoch": epoch, "stage": stage.stage, "block": stage.block, "states": " ".join(axis.states)}
            rows.append({column: own[column] if column in own else getattr(axis, column) for column in COLUMNS})
    return rows


def as_csv(rows: Sequence[dict[str, Any]], header: bool = True) -> str:
    """Rows as the text of a CSV file, in which NaN is an empty cell."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows({column: _cell(value) for column, value in row.items()} for row in rows)
    return table.getvalue()


def log_line(stage: StageStatistics) -> str:
    """The statistics of a stage in one short line."""
    axes = stage.axes
    lengths = "  ".join(f"{axis.axis} {_short(axis.mean_mm)} ({_short(axis.max_mm)})" for axis in axes)
    used = " ".join("-" if math.isnan(axis.used) else f"{100 * axis.used:.0f}" for axis in axes)
    relative_to = "the bound" if stage.deformation.is_bounded else "lambda (no bound)"
    line = f"DTC {stage.title}: shift mm mean (max) {lengths}, % of {relative_to} {used}"
    states = [f"{axis.axis} {' '.join(axis.states)}" for axis in axes if axis.states]
    return line + (f"; {', '.join(states)}" if states else "")


def _is_before(line: str, epoch: int) -> bool:
    """Whether a line is a complete row of an earlier epoch; a training that is killed can leave a part of a line."""
    cells = line.rstrip("\n").split(",")
    return line.endswith("\n") and len(cells) == len(COLUMNS) and cells[0].isdecimal() and int(cells[0]) < epoch


def _with_present_states(line: str) -> str:
    """A row of an earlier version with the present names in its last cell."""
    cells, comma, states = line.rpartition(",")
    return cells + comma + re.sub(r"\w+", lambda word: _FORMER.get(word[0], word[0]), states)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
