"""Read images and label images as nnU-Net does: with the reader that plans.json or dataset.json names.

nnU-Net's readers return arrays (channels, z, y, x) in single precision. Files for its most common reader,
`SimpleITKIO`, are read here with SimpleITK in the type in which they are stored, which takes less memory. All other
readers are nnU-Net's own classes, or classes that others have registered with it.
"""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from nnunet_dtc.files import printable
from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.plugin.plans_safety import UnsafePlansError, reader_class
from nnunet_dtc.study.evaluation.images import EvaluationError, Grid, voxel_difference
from nnunet_dtc.study.label_files import ImageFileError, check_complete, last_line, stored_values, unknown_values

__all__ = ["Image", "Reader", "check_image_file", "check_labels_fit", "find_reader", "reader_of_folder"]

SIMPLE_ITK = "SimpleITKIO"
TIFF_VOLUMES = "Tiff3DIO"
_OF_SIMPLE_ITK_ALONE = (".nii.gz", ".nrrd", ".mha", ".mhd", ".gipl")
_NOT_ORTHONORMAL = "only supports orthonormal direction"


@dataclass(frozen=True)
class Image:
    """An image or label image.

    Attributes:
        array: (z, y, x), or (z, y, x, components) if there are several numbers per voxel. Labels are integers, or
            single precision if they are stored as floating-point numbers.
        grid: the places of its voxels.
    """

    array: np.ndarray
    grid: Grid

    @property
    def evaluated(self) -> np.ndarray:
        """The array along `Grid.kept_axes`: (z, y, x), or two of these axes."""
        return self.array.squeeze(axis=tuple(set(range(3)) - set(self.grid.kept_axes)))


@dataclass(frozen=True)
class Reader:
    """A reader of image files, which can be sent to other processes.

    Attributes:
        io_class: one of nnU-Net's reader classes; None stands for `SimpleITKIO`.
    """

    io_class: type | None = None

    @property
    def name(self) -> str:
        """Its name in plans.json and dataset.json."""
        return SIMPLE_ITK if self.io_class is None else self.io_class.__name__

    def labels(self, file: Path) -> Image:
        """Read a label image.

        Raises:
            EvaluationError: the file cannot be read, or has several numbers per voxel; names the file.
        """
        image = self._read(file, "read_seg")
        if image.array.ndim != 3:
            raise EvaluationError(
                "a label image must have 2 or 3 axes and one number per voxel, got "
                f"{image.array.shape[3]} numbers per voxel in {file}"
            )
        if image.array.dtype.kind == "f" and image.array.dtype != np.float32:
            with np.errstate(over="ignore"):
                return Image(image.array.astype(np.float32), image.grid)
        return image

    def has_spacing(self, file: Path) -> bool:
        """Whether a label image has a spacing. nnU-Net reads that of a TIFF volume from a JSON file beside it."""
        return self.name != TIFF_VOLUMES or Path(file).with_suffix(".json").is_file()

    def image(self, file: Path) -> Image:
        """Read an image, or one of its channels if each channel has a file.

        Raises:
            EvaluationError: the file cannot be read; names it.
        """
        return self._read(file, "read_images")

    def check_labels(self, file: Path, known: set[int]) -> tuple[Grid, list[float]]:
        """Read a label image to its end.

        Args:
            file: the label image.
            known: the values that it may have.

        Returns:
            Its grid, and the values in it that are not known, as they are stored.

        Raises:
            EvaluationError: the file is damaged, cannot be read, or has complex numbers; names it.
        """
        check_image_file(file)
        image = self.labels(file)
        try:
            stored = stored_values(file)
            return image.grid, unknown_values(image.array if stored is None else stored, known)
        except ImageFileError as error:
            raise EvaluationError(f"cannot use {file}: {error}") from error

    def _read(self, file: Path, method: str) -> Image:
        file = Path(file)
        if not file.is_file():
            raise EvaluationError(f"cannot read {printable(file)}: there is no such file")
        if printable(file) != str(file):  # SimpleITK would end the process
            raise EvaluationError(f"cannot read {printable(file)}: its path is not UTF-8")
        return _by_simple_itk(file) if self.io_class is None else _by_nnunet(file, self.io_class, method)


def find_reader(
    ending: str,
    example: Path | None = None,
    dataset_json: Mapping[str, Any] | None = None,
    plans: Mapping[str, Any] | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> Reader:
    """Find the reader that nnU-Net uses for files.

    It is the reader that the plans name (`image_reader_writer`), otherwise the one that dataset.json names
    (`overwrite_image_reader_writer`), otherwise nnU-Net's choice for the ending. Names are looked up only among
    nnU-Net's registered readers. Without plans and dataset.json, SimpleITK reads every NIfTI file, including those of
    two axes.

    Args:
        ending: the ending of the files, such as `.nii.gz`.
        example: one of the files, which for TIFF decides between images and volumes.
        dataset_json: the content of dataset.json.
        plans: the content of plans.json.
        warn: called with a sentence if dataset.json names a reader that nnU-Net does not have. Like nnU-Net, this
            function then chooses by the ending.

    Raises:
        EvaluationError: the plans name a reader that nnU-Net does not have.
    """
    if plans is not None and "image_reader_writer" in plans:
        return _named(plans["image_reader_writer"], "image_reader_writer in plans.json")
    name = (dataset_json or {}).get("overwrite_image_reader_writer", "None")
    if name not in ("None", None):
        try:
            return _named(name, "overwrite_image_reader_writer in dataset.json")
        except EvaluationError as error:
            warn(f"{error}. As in nnU-Net, the file ending decides.")
    if ending.lower() in _OF_SIMPLE_ITK_ALONE or (ending.lower() == ".nii" and dataset_json is None):
        return Reader()
    return _by_ending(ending, example)


def reader_of_planner(example: Path, ending: str, dataset_json: Mapping[str, Any]) -> Reader:
    """Find the reader that nnU-Net's planner will choose for a data set.

    It is the one that dataset.json names, or the first one of nnU-Net's readers for the ending that can read the first
    training image.

    Args:
        example: the first training image.
        ending: the ending of the files.
        dataset_json: the content of dataset.json.
    """
    if dataset_json.get("overwrite_image_reader_writer", "None") not in ("None", None):
        return find_reader(ending, example, dataset_json)
    return _by_ending(ending, example)


def reader_of_folder(
    folder: Path, ending: str, example: Path | None = None, warn: Callable[[str], None] = lambda line: None
) -> Reader:
    """Call `find_reader` with the plans.json and dataset.json of a folder, as far as it has them.

    nnU-Net writes both into the folders of models and of predictions.

    Args:
        folder: the folder.
        ending: see `find_reader`.
        example: see `find_reader`.
        warn: see `find_reader`.

    Raises:
        EvaluationError: the plans name a reader that nnU-Net does not have.
        NnunetDtcError: one of the two files is not JSON.
    """
    files = (Path(folder) / name for name in ("dataset.json", "plans.json"))
    contents = (read_json(file) if file.is_file() else None for file in files)
    return find_reader(ending, example, *(each if isinstance(each, dict) else None for each in contents), warn)


def check_image_file(file: Path) -> None:
    """Check that a file is complete and that its header has a voxel size.

    Raises:
        EvaluationError: see `nnunet_dtc.study.label_files.check_complete`; names the file.
    """
    try:
        check_complete(Path(file))
    except ImageFileError as error:
        raise EvaluationError(f"cannot read {printable(file)}: {error}") from error


def check_labels_fit(labels: Path, image: Path, reader: Reader) -> None:
    """Check that labels have the size and spacing of their image, which is also what nnU-Net checks.

    Raises:
        EvaluationError: they have not, or one of the files cannot be read.
    """
    if difference := voxel_difference(reader.labels(labels).grid, reader.image(image).grid):
        raise EvaluationError(f"{labels} is not on the grid of {image} (are they labels of this image?): {difference}")


def _named(name: Any, where: str) -> Reader:
    """The reader of this name.

    Raises:
        EvaluationError: nnU-Net has no such reader.
    """
    if name == SIMPLE_ITK:
        return Reader()
    try:
        return Reader(reader_class(name, where))
    except UnsafePlansError as error:
        raise EvaluationError(str(error)) from error


def _by_ending(ending: str, example: Path | None) -> Reader:
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

    with _quiet():
        try:
            found = determine_reader_writer_from_file_ending(
                ending, None if example is None else str(example), False, False
            )
        except RuntimeError:  # no reader has this ending or can read the example; reading the files reports it
            return Reader()
    return Reader(None if found.__name__ == SIMPLE_ITK else found)


def _by_simple_itk(file: Path) -> Image:
    """Read a file as nnU-Net's SimpleITKIO does, but in the stored type."""
    try:
        image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        hint = ""
        if _NOT_ORTHONORMAL in str(error):
            hint = (
                ' nnU-Net reads such headers with nibabel if dataset.json has "overwrite_image_reader_writer": '
                '"NibabelIO": add that to the dataset.json of these labels, and to that of the raw data set before '
                "planning."
            )
        raise EvaluationError(f"cannot read {file}: {last_line(error)}{hint}") from error
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:  # for nnU-Net, the fourth axis is that of channels
        image = sitk.Extract(image, (*image.GetSize()[:3], 0), (0, 0, 0, 0))
    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise EvaluationError(f"an image must have 2 or 3 axes, got {dimension} axes in {file}")
    array = sitk.GetArrayFromImage(image)
    if dimension == 2:
        array = array[None]
    spacing, origin, direction = image.GetSpacing(), image.GetOrigin(), image.GetDirection()
    return Image(array, _grid(file, array.shape[2::-1], spacing, origin, direction))


def _by_nnunet(file: Path, io_class: type, method: str) -> Image:
    """Read a file with one of nnU-Net's readers."""
    with _quiet() as printed:
        try:
            argument = str(file) if method == "read_seg" else (str(file),)
            array, properties = getattr(io_class(), method)(argument)
            spacing = [float(step) for step in properties["spacing"]]
        except Exception as error:  # readers of others may raise anything
            reason = last_line(error) if str(error).strip() else (printed.getvalue().strip() or type(error).__name__)
            raise EvaluationError(f"nnU-Net's {io_class.__name__} cannot read {file}: {reason}") from error
    array = np.asarray(array)
    if array.ndim != 4 or len(spacing) != 3:
        raise EvaluationError(
            f"a reader must return an array of four axes and a spacing of three numbers, {io_class.__name__} returned "
            f"{array.shape} and {tuple(spacing)} for {file}"
        )
    origin, direction = (), ()
    if "nibabel_stuff" in properties:
        of_file = properties["nibabel_stuff"]
        affine = np.asarray(of_file.get("reoriented_affine", of_file["original_affine"]), dtype=float)
        affine = np.diag((-1.0, -1.0, 1.0, 1.0)) @ affine  # nibabel's RAS to LPS
        origin, direction = affine[:3, 3], (affine[:3, :3] / np.array(spacing[::-1])).ravel()
    elif "sitk_stuff" in properties:
        origin, direction = properties["sitk_stuff"]["origin"], properties["sitk_stuff"]["direction"]
    array = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)  # (z, y, x) or (z, y, x, channels)
    return Image(array, _grid(file, array.shape[2::-1], spacing[::-1], origin, direction))


def _grid(file: Path, size: Any, spacing: Any, origin: Any, direction: Any) -> Grid:
    """The grid of an image of two or three axes; all arguments are along x, y, z.

    Raises:
        EvaluationError: the voxel size is not a positive number along every axis.
    """
    spacing = [abs(float(step)) for step in spacing]  # as nnU-Net does
    origin = [float(place) for place in origin]
    matrix = np.eye(3)
    axes = math.isqrt(len(direction))
    matrix[:axes, :axes] = np.array(direction, dtype=float).reshape(axes, axes)
    if len(spacing) == 2:
        spacing.append(1.0)
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise EvaluationError(f"the voxel size must be positive along every axis, got {tuple(spacing)} mm in {file}")
    return Grid(
        tuple(int(count) for count in size),
        tuple(spacing),
        tuple(origin + [0.0] * (3 - len(origin))),
        tuple(matrix.ravel().tolist()),
    )


@contextlib.contextmanager
def _quiet() -> Any:
    """Catch what nnU-Net's readers print, and suppress their warnings."""
    printed = io.StringIO()
    with (
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield printed
