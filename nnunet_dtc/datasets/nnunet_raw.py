"""Write a data set in nnU-Net's raw layout, all of it or nothing.

nnU-Net v2 reads `<nnUNet_raw>/Dataset<ID>_<Name>/` with `imagesTr`, `labelsTr`, optionally `imagesTs`, `labelsTs`, and
a `dataset.json` (nnU-Net's documentation/dataset_format.md). What is written here is first written into a hidden folder
beside its final place and then renamed, so that an interrupted run leaves no data set that only looks complete.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError

__all__ = [
    "check_dataset_id",
    "check_nothing_there",
    "check_raw_folder",
    "check_target",
    "new_raw_dataset",
    "write_dataset_json",
]


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
    try:
        str(folder_raw.absolute()).encode()
    except UnicodeEncodeError as error:
        raise NnunetDtcError(f"the path of nnUNet_raw must be UTF-8, got {str(folder_raw)!a}") from error
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

    Raises:
        NnunetDtcError: for an id that nnU-Net cannot use.
        FileExistsError: if this id is taken, see `check_nothing_there`.
    """
    folder_raw = Path(folder_raw)
    final = check_nothing_there(folder_raw, check_dataset_id(dataset_id), name, overwrite)
    folder_raw.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=folder_raw))
    unfinished.chmod(0o755)  # mkdtemp makes it private, a data set is not
    try:
        yield unfinished
        check_nothing_there(folder_raw, dataset_id, name, overwrite)  # again: this may have taken minutes
        if final.exists() and any(final.iterdir()):
            _replace(final, unfinished)
        else:
            if final.exists():
                final.rmdir()
            unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _replace(old: Path, new: Path) -> None:
    """Give `new` the place and name of `old`, and remove what was there; when that fails, `old` is back."""
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old.", dir=old.parent))
    old.rename(aside / old.name)
    try:
        new.rename(old)
    except BaseException:
        (aside / old.name).rename(old)
        aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


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
