"""What ``nnunet-dtc coordinates`` writes and prints."""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnunet_dtc._version import __version__
from nnunet_dtc.architectures.padding import pad_to, size_inside
from nnunet_dtc.files import check_outputs, check_writable, write_all, writing
from nnunet_dtc.ops import coordinates
from nnunet_dtc.ops.checks import times
from nnunet_dtc.ops.coordinates import StageStatistics
from nnunet_dtc.study.coordinates.forward_pass import PatchCoordinates
from nnunet_dtc.study.coordinates.state_sentences import describe
from nnunet_dtc.trainers.coordinates_csv import as_csv, as_rows

FORMAT = 2
NAMES = ("coordinates.json", "coordinates.csv", "coordinates.png")
DPI = 170
_THRESHOLDS = ("CONSTANT_SHIFT", "SATURATED_OFFSET", "WEIGHT_NEAR_0", "WEIGHT_NEAR_1", "MOST_POSITIONS")
_LENGTHS = ("mean", "p95", "max", "bound")


def output_files(folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """The three files of the report in a folder, checked before anything is computed.

    Raises:
        FileExistsError: one of them exists and ``overwrite`` is false, or the folder is that of a training, whose
            ``coordinates.csv`` is the training's record.
        NotADirectoryError: the folder above it does not exist, or ``folder`` is a file.
        OSError: nothing can be written there, or a folder has the name of one of the files.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the output must be a folder, got the file {folder}")
    if not folder.absolute().parent.is_dir():
        raise NotADirectoryError(f"there is no folder {folder.absolute().parent} to make {folder.name} in")
    if any(folder.glob("training_log_*.txt")) or any(folder.glob("checkpoint_*.pth")):
        raise FileExistsError(
            f"{folder} is the folder of a training, which keeps its own coordinates.csv: choose another"
        )
    files = tuple(folder / name for name in NAMES)
    check_outputs(files, overwrite)
    check_writable(folder if folder.is_dir() else folder.absolute().parent)
    return files


def write_report(found: PatchCoordinates, folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write coordinates.json, coordinates.csv and coordinates.png, all of them or none.

    Raises:
        OSError: see :func:`output_files` and ``nnunet_dtc.files.write_all``.
    """
    files = output_files(folder, overwrite)
    picture = io.BytesIO()
    draw(found).savefig(picture, format="png", dpi=DPI)
    text = json.dumps(as_json(found), indent=2, allow_nan=False) + "\n"
    table = as_csv(as_rows(found.statistics, found.model.epochs - 1))
    with writing(folder):
        Path(folder).mkdir(exist_ok=True)
    write_all(dict(zip(files, (text, table, picture.getvalue()), strict=True)))
    return files


def as_json(found: PatchCoordinates) -> dict[str, Any]:
    """The content of coordinates.json; numbers that are not defined are null."""
    model, patch = found.model, found.patch
    return {
        "format": FORMAT,
        "nnunet_dtc": __version__,
        "model": {
            "folder": str(model.folder.path),
            "fold": model.fold,
            "checkpoint": model.checkpoint,
            "trainer": model.trainer,
            "configuration": model.configuration,
            "epochs": model.epochs,
        },
        "image": {
            "case": patch.case,
            "files": [str(file.absolute()) for file in patch.files],
            "axes": list(model.axes),
            "unit": unit(found),
            "spacing_mm": list(model.spacing_mm),
            "preprocessed_size": list(patch.image_size),
            "patch_start": list(patch.start),
            "patch_size": list(patch.data.shape[1:]),
            "slice": patch.slice,
        },
        "thresholds": {name.lower(): getattr(coordinates, name) for name in _THRESHOLDS},
        "stages": [_stage_as_json(stage) for stage in found.statistics],
        "sentences": sentences(found),
    }


def sentences(found: PatchCoordinates) -> list[str]:
    """Sentences that explain the states of the stages, and the unit where it is not mm."""
    lines = describe(found.statistics)
    if not found.model.has_spacing:
        lines.append("The images have no spacing: nnU-Net takes a pixel as 1 mm, so lengths in mm are pixels.")
    given = tuple(found.patch.data.shape[1:])
    if (size := size_inside(found.model.network, given)) != given:
        lines.append(f"The network pads the patch of {given} with zeros to {size}, as the figure shows it.")
    return lines


def _as_padded(found: PatchCoordinates, array: np.ndarray) -> np.ndarray:
    """A patch (C, *S) with the zeros that the network adds around it: the samples are positions in this map."""
    size = size_inside(found.model.network, array.shape[1:])
    return pad_to(torch.from_numpy(np.ascontiguousarray(array))[None], size)[0][0].numpy()


def unit(found: PatchCoordinates) -> str:
    """The unit of lengths: "mm", or "pixels" for images without a spacing."""
    return "mm" if found.model.has_spacing else "pixels"


def draw(found: PatchCoordinates) -> Any:
    """The figure of the report, a matplotlib ``Figure``."""
    from nnunet_dtc.study.coordinates.sampling_figure import coordinates_figure

    model = found.model
    data, segmentation = (_as_padded(found, array) for array in (found.patch.data, found.segmentation[None]))
    is_colour = model.channels == 3 and not model.has_spacing
    image = data[:3].transpose(*range(1, data.ndim), 0) if is_colour else data[0]  # (*S, 3) or (*S)
    case = found.patch.case if found.patch.slice is None else f"{found.patch.case}, slice {found.patch.slice + 1}"
    return coordinates_figure(
        found.stages,
        found.statistics,
        image,
        segmentation[0],
        model.spacing_mm,
        title=f"{model.trainer}, {model.configuration}, fold {model.fold}, {model.epochs} epochs: {case}",
        unit=unit(found),
    )


def rich_table(found: PatchCoordinates) -> Any:
    """A ``rich.table.Table`` with a row for each stage and axis."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    name = escape(unit(found))
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=escape(f"{found.model.trainer}, {found.patch.case}: shifts of the samples"),
    )
    table.add_column("stage", no_wrap=True)
    table.add_column("axis")
    for column in (f"mean {name}", f"95 % {name}", f"max {name}", f"bound {name}", "used %", "sat. %", "w=0 %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state")
    for stage in found.statistics:
        for text, axis in zip(_cells_of_stage(stage), stage.axes, strict=True):
            table.add_row(
                text,
                axis.axis,
                *(_number(getattr(axis, f"{length}_mm"), ".3g") for length in _LENGTHS),
                *(_number(100 * value, ".1f") for value in (axis.used, axis.offset_saturated, axis.weight_at_0)),
                f"[yellow]{' '.join(axis.states)}[/]" if axis.states else "",
            )
        table.add_section()
    return table


def _cells_of_stage(stage: StageStatistics) -> list[str]:
    """The number and sizes of a stage in a narrow column, one cell per axis."""
    number = f"{stage.stage} of {stage.stages}"
    sizes = [f"{times(stage.sizes)} to", times(stage.output_sizes)]
    return [number, *sizes] if len(stage.axes) == 3 else [number, " ".join(sizes)]


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _stage_as_json(stage: StageStatistics) -> dict[str, Any]:
    own = {key: value for key, value in asdict(stage).items() if key not in ("axes", "deformation")}
    lengths = [{f"{length}_mm": getattr(axis, f"{length}_mm") for length in _LENGTHS} for axis in stage.axes]
    return {
        **_plain(own | asdict(stage.deformation)),
        "bounded": stage.deformation.is_bounded,
        "axes": [_plain(asdict(axis) | in_mm) for axis, in_mm in zip(stage.axes, lengths, strict=True)],
    }


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Values for JSON, which has neither NaN nor infinity."""
    plain = {}
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            value = None if math.isnan(value) else "inf"
        plain[key] = value
    return plain
