"""BTCV, the abdominal CTs of "Multi-Atlas Labeling Beyond the Cranial Vault", in nnU-Net's raw layout.

The source is Synapse syn3193805, `Abdomen/RawData.zip` (registration needed), with
`RawData/Training/img/img0001.nii.gz` and `RawData/Training/label/label0001.nii.gz` for 30 cases with the numbers
0001-0010 and 0021-0040 and 13 organs. The unlabelled images `RawData/Testing/img/img0061-0080` are not used.

The paper (arXiv:2601.17939, "Dataset" of the 3D experiments) tests on 12 scans, trains and validates on 18 in five
folds, and does not name the cases. We use the 18/12 split of TransUNet and Swin-Unet (`TEST_CASES`).
"""

from __future__ import annotations

import gzip
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError
from nnunet_dtc.study.datasets.btcv_labels import LABELS
from nnunet_dtc.study.datasets.nnunet_raw import (
    check_target,
    make_image_folders,
    new_raw_dataset,
    write_dataset_json,
)
from nnunet_dtc.study.datasets.sources import SourceError, SourceFile, open_source, single, unreadable
from nnunet_dtc.study.datasets.splits import check_splits, five_folds, write_splits
from nnunet_dtc.study.label_files import ImageFileError, check_complete, shown_values, stored_values, unknown_values

__all__ = ["CASES", "NAME", "TEST_CASES", "PreparedBTCV", "write_btcv"]

NAME = "BTCV"

CASES = (*range(1, 11), *range(21, 41))
"""Numbers of the labelled cases."""

UNLABELLED = range(61, 81)

PATTERN = re.compile(r"(?:^|/)(?P<what>img|label)(?P<number>[0-9]{4})(?P<ending>(?i:\.nii(?:\.gz)?))$")

TEST_CASES = (1, 2, 3, 4, 8, 22, 25, 29, 32, 35, 36, 38)
"""Numbers of the test cases of TransUNet (arXiv:2102.04306) and Swin-Unet (arXiv:2105.05537)."""


class PreparedBTCV(NamedTuple):
    """A data set that was written.

    Attributes:
        folder: folder of the data set.
        training: names of the training cases.
        test: names of the test cases.
        splits: file of the five folds.
        notes: remarks on the source for the user.
    """

    folder: Path
    training: list[str]
    test: list[str]
    splits: Path
    notes: list[str]


class _Volume(NamedTuple):
    """Geometry of an image or its labels along x, y, z: size in voxels, spacing and origin in mm."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def write_btcv(
    source: Path,
    folder_raw: Path,
    folder_preprocessed: Path,
    dataset_id: int = 17,
    test_cases: Sequence[int] = TEST_CASES,
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    cases: Sequence[int] = CASES,
) -> PreparedBTCV:
    """Write BTCV in nnU-Net's raw layout, and the file of the five folds.

    Everything is checked before anything is written. The files are copied byte for byte (a plain .nii file is
    compressed), so that voxels, spacing, origin and direction are those of the challenge. Cases are named `BTCV_0001`;
    test cases go to `imagesTs` and `labelsTs`. The folds are those that nnU-Net itself would draw.

    Args:
        source: `RawData.zip`, or a folder with its files at any depth.
        folder_raw: nnU-Net's `nnUNet_raw`; it is created if it does not exist.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for `Dataset<ID>_BTCV/splits_final.json`.
        dataset_id: number of the data set, 1 to 999.
        test_cases: numbers of the held-out cases, at least 1; at least 5 cases must remain.
        overwrite: replace a data set `Dataset<ID>_BTCV`, once the new one is complete. Folds are never replaced.
        progress: called with the step, the number of finished files and that of all files.
        cases: numbers of all cases; other numbers are for tests.

    Raises:
        NnunetDtcError: an argument is outside these limits.
        SourceError: lists all files that are missing, duplicate, unreadable or unknown, images and labels of different
            size or spacing, and labels that are not integers in 0..13 or have no organ.
        FileExistsError: there is a data set with this number, or there are other folds, see `check_splits`.
        FileNotFoundError: there is no `source`.
    """
    source, folder_raw = Path(source), Path(folder_raw)
    folder = check_target(source, folder_raw, dataset_id, NAME, overwrite)
    _check_test_cases(test_cases, cases)
    training = [_name(number) for number in sorted(cases) if number not in test_cases]
    test = [_name(number) for number in sorted(test_cases)]
    splits = five_folds(training)
    splits_file = check_splits(Path(folder_preprocessed), folder.name, splits)

    def report(step: str, done: int) -> None:
        if progress is not None:
            progress(step, done, 2 * len(cases))

    with open_source(source) as files:
        found, notes = _check(source, files, cases, folder_raw, lambda done: report("checking", done))
        with new_raw_dataset(folder_raw, dataset_id, NAME, overwrite) as unfinished:
            make_image_folders(unfinished)
            for k, number in enumerate(sorted(cases)):
                part = "Ts" if number in test_cases else "Tr"
                _copy(found["img", number], unfinished / f"images{part}" / f"{_name(number)}_0000.nii.gz")
                report("copying", 2 * k + 1)
                _copy(found["label", number], unfinished / f"labels{part}" / f"{_name(number)}.nii.gz")
                report("copying", 2 * k + 2)
            write_dataset_json(
                unfinished,
                ["CT"],
                LABELS,
                len(training),
                name=NAME,
                description="Abdominal CTs with 13 organs, Multi-Atlas Labeling Beyond the Cranial Vault",
                reference="https://www.synapse.org/Synapse:syn3193805",
                test_cases=_numbers(sorted(test_cases)),
            )
            write_splits(splits_file, splits)
    return PreparedBTCV(folder, training, test, splits_file, notes)


def _check_test_cases(test_cases: Sequence[int], cases: Sequence[int]) -> None:
    unknown = [number for number in test_cases if number not in cases]
    if unknown or len(set(test_cases)) != len(test_cases):
        raise NnunetDtcError(f"test cases must be different ones of {_ranges(cases)}, got {_some(test_cases)}")
    if not 1 <= len(test_cases) <= len(cases) - 5:
        raise NnunetDtcError(
            f"there must be 1 to {len(cases) - 5} test cases (nnU-Net trains five folds on the others), got "
            f"{len(test_cases)}"
        )


def _check(
    source: Path, files: list[SourceFile], cases: Sequence[int], scratch: Path, report: Callable[[int], None]
) -> tuple[dict[tuple[str, int], SourceFile], list[str]]:
    """The file of every ("img" or "label", number) and remarks; raises SourceError with all problems."""
    all_found: dict[tuple[str, int], list[SourceFile]] = defaultdict(list)
    problems: list[str] = []
    for file in files:
        match = PATTERN.search(file.name)
        if not match:
            continue
        what, number = match["what"], int(match["number"])
        if number in cases:
            all_found[what, number].append(file)
        elif what == "label" or number not in UNLABELLED:
            problems.append(f"{file.shown}: is not one of the labelled cases {_ranges(cases)}")
    if not all_found:
        raise SourceError(source, [f"{source}: must contain img0001.nii.gz and so on, as RawData.zip does; found none"])

    found: dict[tuple[str, int], SourceFile] = {}
    notes: list[str] = []
    for k, number in enumerate(sorted(cases)):
        volumes = []
        for j, what in enumerate(("img", "label")):
            expected = f"{source}: Training/{what}/{what}{number:04d}.nii.gz"
            file = single(expected, all_found[what, number], problems)
            if file is not None:
                found[what, number] = file
                volumes.append(_read(file, what == "label", scratch, problems))
            report(2 * k + j + 1)
        if len(volumes) == 2 and None not in volumes:
            _compare(found["img", number], found["label", number], *volumes, problems, notes)
    if problems:
        raise SourceError(source, problems)
    return found, notes


def _read(file: SourceFile, is_label: bool, scratch: Path, problems: list[str]) -> _Volume | None:
    """Read a complete volume; its problems are added to `problems`."""
    name = file.name.rpartition("/")[2]
    lower = name[: name.index(".")] + name[name.index(".") :].lower()  # SimpleITK does not read .nii.GZ files
    try:
        with file.on_disk(scratch, lower) as path:
            str(path).encode()  # SimpleITK ends the process for paths that are not UTF-8
            check_complete(path)
            volume = sitk.ReadImage(str(path))
            stored = stored_values(path) if is_label else None  # SimpleITK reads NaN as 0
    except UnicodeEncodeError:
        problems.append(f"{file.shown}: cannot be read (its path is not UTF-8)")
        return None
    except WriteError:  # no problem of the source, but for example a full disk of the target
        raise
    except Exception as error:  # of any decoder
        problems.append(unreadable(file, error))
        return None
    if volume.GetDimension() != 3 or volume.GetNumberOfComponentsPerPixel() != 1:
        problems.append(f"{file.shown}: must be a volume with three axes, has the size {volume.GetSize()}")
        return None
    if is_label and (wrong := _wrong_labels(sitk.GetArrayViewFromImage(volume) if stored is None else stored)):
        problems.append(f"{file.shown}: {wrong}")
    return _Volume(volume.GetSize(), volume.GetSpacing(), volume.GetOrigin(), volume.GetDirection())


def _wrong_labels(labels: np.ndarray) -> str | None:
    """The problem of the values of a label volume, of any shape and dtype; None if there is none."""
    try:
        unknown = unknown_values(labels, LABELS.values())
    except ImageFileError as error:
        return str(error)
    if unknown:
        return f"labels must be integers in 0..{max(LABELS.values())}, found {shown_values(unknown, 10)}"
    return None if labels.any() else "must contain organs, all of its voxels are background"


def _compare(
    image: SourceFile, label: SourceFile, a: _Volume, b: _Volume, problems: list[str], notes: list[str]
) -> None:
    """Compare as nnU-Net's verify_dataset_integrity: size and spacing must agree, origin and direction are remarks."""
    if a.size != b.size:
        problems.append(f"{label.shown}: must have the size of {image.shown}, {a.size}, has {b.size}")
    elif not np.allclose(a.spacing, b.spacing):
        problems.append(f"{label.shown}: must have the spacing of {image.shown}, {a.spacing} mm, has {b.spacing} mm")
    for what in ("origin", "direction"):
        if not np.allclose(getattr(a, what), getattr(b, what)):
            notes.append(
                f"{label.shown}: its {what} is not that of the image, {getattr(b, what)} and {getattr(a, what)}; it is "
                "kept, because nnU-Net compares voxel by voxel"
            )


def _copy(file: SourceFile, to: Path) -> None:
    if file.name.lower().endswith(".gz"):
        file.copy_to(to)
    else:
        with file.open() as stream, to.open("xb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            shutil.copyfileobj(stream, packed, 1 << 20)


def _name(number: int) -> str:
    return f"{NAME}_{number:04d}"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(str(number) for number in numbers)


def _some(numbers: Sequence[int]) -> str:
    return _numbers(numbers[:10]) + ", ..." * (len(numbers) > 10)


def _ranges(numbers: Sequence[int]) -> str:
    """Ranges of consecutive numbers, such as "0001-0010, 0021-0040"."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(f"{a:04d}" if a == b else f"{a:04d}-{b:04d}" for a, b in runs)
