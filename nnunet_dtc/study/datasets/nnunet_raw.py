"""Write a data set in nnU-Net's raw layout, all of it or nothing.

nnU-Net v2 reads `<nnUNet_raw>/Dataset<ID>_<Name>/` with `imagesTr`, `labelsTr`, optionally `imagesTs`, `labelsTs`, and
a `dataset.json` (nnU-Net's documentation/dataset_format.md). What is written here is first written into a hidden folder
beside its final place and then renamed, so that an interrupted run leaves no data set that only looks complete.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import WriteError, check_utf8, writing
from nnunet_dtc.work_folders import REPLACED, work_folder

__all__ = [
    "check_dataset_id",
    "check_nothing_there",
    "check_raw_folder",
    "check_target",
    "new_raw_dataset",
    "write_dataset_json",
]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors that only writing has: no space, beyond the quota, read-only, too large a file."""


def check_dataset_id(dataset_id: int) -> int:
    """The id, if nnU-Net can use it.

    Raises:
        NnunetDtcError: unless it is an integer in 1..999, nnU-Net's three digits.
    """
    if isinstance(dataset_id, bool) or not isinstance(dataset_id, int) or not 1 <= dataset_id <= 999:
        raise NnunetDtcError(f"the data set id must be an integer in 1..999, got {dataset_id!r}")
    return dataset_id


def check_raw_folder(folder_raw: Path) -> Path:
    """nnUNet_raw, if data sets can be written there; it need not exist.

    Raises:
        NnunetDtcError: if it is a file, or if its path is not UTF-8 (SimpleITK would end the process).
    """
    if folder_raw.exists() and not folder_raw.is_dir():
        raise NnunetDtcError(f"nnUNet_raw must be a folder, got the file {folder_raw}")
    check_utf8(folder_raw.absolute(), "nnUNet_raw")
    return folder_raw


def check_nothing_there(folder_raw: Path, dataset_id: int, name: str, overwrite: bool | None = None) -> Path:
    """The folder that a new data set would have: `folder_raw / Dataset<ID>_<name>`.

    Args:
        overwrite: whether a data set of exactly this name may be there, to be replaced; None where the caller does not
            offer that (the message then does not speak of it).

    Raises:
        FileExistsError: if a data set with this id is there already under whatever name (nnU-Net refuses two of one
            id). An empty folder of exactly this name does not count.
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
    """The folder that the data set made from `source` would have, all that can be known in advance being checked.

    Raises:
        NnunetDtcError: for an id that nnU-Net cannot use, an nnUNet_raw that is a file, or a source inside the data set
            that would be replaced.
        FileExistsError: if this id is taken, see `check_nothing_there`.
    """
    check_dataset_id(dataset_id)
    check_raw_folder(folder_raw)
    folder = check_nothing_there(folder_raw, dataset_id, name, overwrite)
    if source.resolve().is_relative_to(folder.resolve()):
        raise NnunetDtcError(f"the source must be outside the data set that it replaces, got {source} in {folder}")
    return folder


@contextmanager
def new_raw_dataset(folder_raw: Path, dataset_id: int, name: str, overwrite: bool | None = None) -> Iterator[Path]:
    """A folder to write a new data set into; it gets its real name `Dataset<ID>_<name>` when the block ends well.

    When the block raises (Ctrl-C included) everything in it is removed and `folder_raw` is as it was, apart from having
    been created if it was missing. With `overwrite`, a data set of exactly this name is replaced then, and not before.
    What a run that was killed has left there is removed, see `nnunet_dtc.work_folders`.

    Raises:
        NnunetDtcError: for an id that nnU-Net cannot use.
        FileExistsError: if this id is taken, see `check_nothing_there`.
        WriteError: if the data set cannot be written (the disk is full, for example); names its folder.
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
            check_nothing_there(folder_raw, dataset_id, name, overwrite)  # again: this may have taken minutes
            if final.exists():
                final.rename(replaced / final.name)
            unfinished.rename(final)
        except OSError as error:
            if _is_about(error, work):
                raise WriteError(final, error) from error
            raise


def _is_about(error: OSError, folder: Path) -> bool:
    """Whether an error came from writing into a folder, and not from reading or from writing elsewhere."""
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
        channels: names of the image channels in order; "CT" chooses nnU-Net's CT normalisation.
        labels: label name to number, "background" (0) first.
        file_ending: of all images and labels.
        more: descriptive entries, such as `description` or `reference`, that nnU-Net ignores.
    """
    content = {
        "channel_names": {str(i): name for i, name in enumerate(channels)},
        "labels": labels,
        "numTraining": num_training,
        "file_ending": file_ending,
        **more,
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
