"""The image files of cases, by nnU-Net's naming of channels and by the data set's own list."""

from __future__ import annotations

import json
import os
from pathlib import Path

from nnunet_dtc.files import check_utf8
from nnunet_dtc.study.comparison.models import ComparisonError

__all__ = ["image_cases", "training_images"]


def image_cases(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """The files of the channels of each case in a folder, found by names such as ``CASE_0000.nii.gz``.

    Raises:
        ComparisonError: there is no such folder.
        NnunetDtcError: a path is not UTF-8.
    """
    if not folder.is_dir():
        raise ComparisonError(f"there is no folder of images {folder}")
    cases: dict[str, list[Path]] = {}
    for file in sorted(folder.glob(f"*_[0-9][0-9][0-9][0-9]{ending}")):
        if not file.name.startswith("."):
            cases.setdefault(check_utf8(file).name.removesuffix(ending)[:-5], []).append(file)
    return {case: tuple(files) for case, files in cases.items()}


def training_images(raw: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    """The files of the channels of each training case of a raw data set.

    Args:
        raw: the folder of the data set in ``nnUNet_raw``. The cases are those that its dataset.json lists, or else
            those of ``imagesTr``. Without either of them, or with a malformed list, there are none.
        ending: the file ending of images.
    """
    try:
        listed = json.loads((raw / "dataset.json").read_text(encoding="utf-8")).get("dataset")
        if listed is not None:
            return {
                case: tuple(Path(os.path.abspath(raw / os.path.expandvars(image))) for image in entry["images"])
                for case, entry in listed.items()
            }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass  # images are needed for pictures alone: a comparison does not fail without them
    folder = raw / "imagesTr"
    return image_cases(folder, ending) if folder.is_dir() else {}
