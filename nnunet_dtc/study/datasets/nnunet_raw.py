"""Write a complete data set in nnU-Net's raw layout, or nothing.

nnU-Net v2 reads `<nnUNet_raw>/Dataset<ID>_<Name>/` with `imagesTr`, `labelsTr`, optionally `imagesTs`, `labelsTs`, and
a `dataset.json` (nnU-Net's documentation/dataset_format.md). A data set is first written into a hidden folder and then
renamed, so that an interrupted run leaves no incomplete data set.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError, check_utf8, write_whole, writing
from nnunet_dtc.work_folders import REPLACED, work_folder

__all__ = [
    "check_dataset_id",
    "check_nothing_there",
    "check_raw_folder",
    "check_target",
    "make_image_folders",
    "new_raw_dataset",
    "write_dataset_json",
]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors that occur only when writing: no space, quota exceeded, read-only, file too large."""


def check_dataset_id(dataset_id: int) -> int:
    """Return the number of a data set if nnU-Net can use it.

    Raises:
        NnunetDtcError: it is not an integer from 1 to 999, nnU-Net's three digits.
    """
    if isinstance(dataset_id, bool) or not isinstance(dataset_id, int) or not 1 <= dataset_id <= 999:
        raise NnunetDtcError(f"the data set id must be an integer in 1..999, got {dataset_id!r}")
    return dataset_id


def check_raw_folder(folder_raw: Path) -> Path:
    """Return the folder nnUNet_raw if data sets can be written there; it need not exist.

    Raises:
        NnunetDtcError: it is a file, or its path is not UTF-8, for which SimpleITK ends the process.
    """
    if folder_raw.exists() and not folder_raw.is_dir():
        raise NnunetDtcError(f"nnUNet_raw must be a folder, got the file {folder_raw}")
    check_utf8(folder_raw.absolute(), "nnUNet_raw")
    return folder_raw


def check_nothing_there(folder_raw: Path, dataset_id: int, name: str, overwrite: bool | None = None) -> Path:
    """Return the folder of a new data set, `folder_raw / Dataset<ID>_<name>`, if it can be created.

    Args:
        folder_raw: the folder nnUNet_raw.
        dataset_id: number of the data set.
        name: name of the data set.
        overwrite: whether a data set with this number and name may be replaced; None if the caller does not offer this
            option, which the message then does not mention.

    Raises:
        FileExistsError: there is a data set with this number and any name, because nnU-Net does not accept two. An
            empty folder of this name is allowed.
    """
    folder = folder_raw / f"Dataset{dataset_id:03d}_{name}"
    for other in sorted(folder_raw.glob(f"Dataset{dataset_id:03d}_*")):
        if other != folder or not other.is_dir() or any(other.iterdir()):
            if other == folder and overwrite and other.is_dir() and not other.is_symlink():
                continue
            replace = ", or replace it with --overwrite" if other == folder and overwrite is False else ""
            raise FileExistsError(
                f"there must be no data set with id {dataset_id} yet, found {other}: choose another id or move it away"
                f"{replace} (nothing was written)"
            )
    return folder


def check_target(source: Path, folder_raw: Path, dataset_id: int, name: str, overwrite: bool) -> Path:
    """Return the folder of the data set that will be made from `source`, after all checks that are possible in advance.

    Raises:
        NnunetDtcError: nnU-Net cannot use the number, nnUNet_raw is a file, or the source is inside the data set that
            would be replaced.
        FileExistsError: there is a data set with this number, see `check_nothing_there`.
    """
    check_dataset_id(dataset_id)
    check_raw_folder(folder_raw)
    folder = check_nothing_there(folder_raw, dataset_id, name, overwrite)
    if source.resolve().is_relative_to(folder.resolve()):
        raise NnunetDtcError(f"the source must be outside the data set that it replaces, got {source} in {folder}")
    return folder


@contextmanager
def new_raw_dataset(folder_raw: Path, dataset_id: int, name: str, overwrite: bool | None = None) -> Iterator[Path]:
    """A temporary folder for a new data set, which is renamed to `Dataset<ID>_<name>` at the end of the block.

    If the block raises an exception (also for Ctrl-C), the folder is removed. `folder_raw` is created if it does not
    exist. With `overwrite`, a data set of this number and name is replaced at the end and not before. Folders that a
    killed run has left are removed, see `nnunet_dtc.work_folders`.

    Raises:
        NnunetDtcError: nnU-Net cannot use the number.
        FileExistsError: there is a data set with this number, see `check_nothing_there`.
        WriteError: the data set cannot be written, for example on a full disk.
    """
    folder_raw = Path(folder_raw)
    final = check_nothing_there(folder_raw, check_dataset_id(dataset_id), name, overwrite)
    with writing(folder_raw):
        folder_raw.mkdir(parents=True, exist_ok=True)
    with work_folder(folder_raw, final.name) as work:
        unfinished, replaced = work / final.name, work / REPLACED
        try:
            unfinished.mkdir()
            replaced.mkdir()
            yield unfinished
            check_nothing_there(folder_raw, dataset_id, name, overwrite)  # again, after what may be minutes
            if final.exists():
                final.rename(replaced / final.name)
            unfinished.rename(final)
        except OSError as error:
            if _is_about(error, work):
                raise WriteError(final, error) from error
            raise


def make_image_folders(folder: Path) -> None:
    """Create the four folders for images and labels of training and test cases in a new data set."""
    for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (folder / part).mkdir()


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error was raised by writing into a folder, and not by reading or by writing to another place."""
    if isinstance(error, WriteError):
        return error.target.is_relative_to(folder)
    if error.errno in _FULL:
        return True
    return isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(folder)


def write_dataset_json(
    folder: Path,
    channels: list[str],
    labels: dict[str, int],
    num_training: int,
    file_ending: str = ".nii.gz",
    **more: str | int,
) -> None:
    """Write nnU-Net's `dataset.json`.

    Args:
        folder: folder of the data set.
        channels: names of the image channels in their order; "CT" selects nnU-Net's CT normalisation.
        labels: label name to number, "background" (0) first.
        num_training: number of training cases.
        file_ending: file ending of all images and labels.
        more: descriptive entries, such as `description` or `reference`, which nnU-Net ignores.
    """
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels,
        "numTraining": num_training,
        "file_ending": file_ending,
        **more,
    }
    write_whole(folder / "dataset.json", json.dumps(content, indent=4) + "\n")
