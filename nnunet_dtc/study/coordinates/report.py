"""What ``nnunet-dtc coordinates`` writes and prints."""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nnunet_dtc._version import __version__
from nnunet_dtc.files import check_outputs, check_writable, write_all, writing
from nnunet_dtc.ops import coordinates
from nnunet_dtc.ops.checks import times
from nnunet_dtc.study.coordinates.model import Coordinates
from nnunet_dtc.study.coordinates.sentences import describe
from nnunet_dtc.trainers.record import as_csv, as_rows

FORMAT = 1
NAMES = ("coordinates.json", "coordinates.csv", "coordinates.png")
DPI = 170


def output_files(folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """The three files below the folder.

    Raises:
        FileExistsError: one of them is there and ``overwrite`` is not asked for, or the folder is a training's, whose
            ``coordinates.csv`` is its record.
        NotADirectoryError: the folder above it is not there, or it is a file.
        OSError: nothing can be written there, or a folder has the name of one of the files.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"-o takes a folder, got the file {folder}")
    if not folder.absolute().parent.is_dir():
        raise NotADirectoryError(f"there is no folder {folder.absolute().parent} to make {folder.name} in")
    if any(folder.glob("training_log_*.txt")) or any(folder.glob("checkpoint_*.pth")):
        raise FileExistsError(
            f"{folder} is the folder of a training, which keeps its own coordinates.csv: take another"
        )
    files = tuple(folder / name for name in NAMES)
    check_outputs(files, overwrite)
    check_writable(folder if folder.is_dir() else folder.absolute().parent)
    return files


def write_report(found: Coordinates, folder: Path, overwrite: bool = False) -> tuple[Path, ...]:
    """Write coordinates.json, .csv and .png, all or none.

    Raises:
        OSError: see :func:`output_files` and ``nnunet_dtc.files.write_all``.
    """
    files = output_files(folder, overwrite)
    picture = io.BytesIO()
    draw(found).savefig(picture, format="png", dpi=DPI)
    text = json.dumps(as_json(found), indent=2, allow_nan=False) + "\n"
    table = as_csv(as_rows(found.numbers, found.model.epochs - 1))
    with writing(folder):
        Path(folder).mkdir(exist_ok=True)
    write_all(dict(zip(files, (text, table, picture.getvalue()), strict=True)))
    return files


def as_json(found: Coordinates) -> dict[str, Any]:
    """All numbers; what there is not is null."""
    model, patch = found.model, found.patch
    return {
        "format": FORMAT,
        "nnunet_dtc": __version__,
        "model": {
            "folder": str(model.folder.absolute()),
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
        "thresholds": {
            name.lower(): getattr(coordinates, name)
            for name in ("SATURATED_OFFSET", "SHUT_WEIGHT", "OPEN_WEIGHT", "DEAD_VARIATION", "NAMED_SHARE")
        },
        "stages": [
            {
                **{key: value for key, value in _plain(asdict(stage)).items() if key not in ("axes", "deformation")},
                **_plain(asdict(stage.deformation)),
                "bounded": stage.deformation.is_bounded,
                "axes": [
                    _plain(asdict(axis) | {f"{key}_mm": getattr(axis, f"{key}_mm") for key in _LENGTHS})
                    for axis in stage.axes
                ],
            }
            for stage in found.numbers
        ],
        "sentences": sentences(found),
    }


def sentences(found: Coordinates) -> list[str]:
    """What is to be said of them, in plain words."""
    lines = describe(found.numbers)
    if not found.model.has_geometry:
        lines.append("The images have no spacing: nnU-Net takes a pixel as 1 mm, so lengths in mm are pixels.")
    return lines


def unit(found: Coordinates) -> str:
    """ "mm", or "pixels" for images without a spacing."""
    return "mm" if found.model.has_geometry else "pixels"


def draw(found: Coordinates) -> Any:
    """The picture, a matplotlib ``Figure``."""
    from nnunet_dtc.study.coordinates.figure import coordinates_figure

    data, model = found.patch.data, found.model
    channels = len(model.predictor.dataset_json.get("channel_names") or model.predictor.dataset_json["modality"])
    colour = channels == 3 and not model.has_geometry
    image = data[:3].transpose(*range(1, data.ndim), 0) if colour else data[0]  # (*S, 3) or (*S)
    where = f", slice {found.patch.slice + 1}" if found.patch.slice is not None else ""
    return coordinates_figure(
        found.stages,
        found.numbers,
        image,
        found.segmentation,
        model.spacing_mm,
        title=f"{model.trainer}, {model.configuration}, fold {model.fold}, {model.epochs} epochs: "
        f"{found.patch.case}{where}",
        unit=unit(found),
    )


def rich_table(found: Coordinates) -> Any:
    """A row for each stage and axis, as a ``rich.table.Table``."""
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
    for column in (f"mean {name}", f"95 % {name}", f"max {name}", f"bound {name}", "used %", "sat. %", "shut %"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state")
    for stage in found.numbers:
        output = [size * step for size, step in zip(stage.sizes, stage.stride, strict=True)]
        told = [
            f"{stage.stage} of {stage.stages}",
            f"{times(stage.sizes)} to",
            times(output),
        ]  # narrow, over the rows
        if len(stage.axes) == 2:
            told = [told[0], " ".join(told[1:])]
        for text, axis in zip(told, stage.axes, strict=True):
            lengths = [axis.mean_mm, axis.p95_mm, axis.max_mm, axis.bound_mm]
            shares = [axis.used, axis.saturated, axis.shut]
            table.add_row(
                text,
                axis.axis,
                *("-" if math.isnan(value) else f"{value:.3g}" for value in lengths),
                *("-" if math.isnan(value) else f"{100 * value:.1f}" for value in shares),
                f"[yellow]{' '.join(axis.states)}[/]" if axis.states else "",
            )
        table.add_section()
    return table


_LENGTHS = ("bound", "mean", "p95", "max")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """As JSON has it: null instead of NaN, and no infinity."""
    plain = {}
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            value = None if math.isnan(value) else "inf"
        plain[key] = value
    return plain
