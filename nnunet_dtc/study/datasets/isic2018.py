"""ISIC 2018, task 1 (skin lesions in dermoscopic images), in nnU-Net's raw layout.

Source: https://challenge.isic-archive.com/data/#2018, six archives, unpacked or not:
`ISIC2018_Task1-2_{Training,Validation,Test}_Input/ISIC_NNNNNNN.jpg` with
`ISIC2018_Task1_{Training,Validation,Test}_GroundTruth/ISIC_NNNNNNN_segmentation.png`; 2594, 100 and 1000 images.

The paper (arXiv:2601.17939, experimental settings of the 2D data sets) draws 2,600 of all 3,694 images for training and
1,094 for testing, resized to 256 x 256, and does not publish the draw. Our draw has a fixed seed, and by default keeps
near duplicates (see `nnunet_dtc.study.datasets.near_duplicates`) in the same part.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_dtc.study.datasets.cases_2d import Case
from nnunet_dtc.study.datasets.images_2d import SIZE, Prepared2d, write_2d
from nnunet_dtc.study.datasets.sources import SourceError, SourceFile, open_source, single
from nnunet_dtc.study.datasets.splits import SEED

__all__ = ["COUNTS", "NAME", "TEST", "TRAINING", "write_isic2018"]

NAME = "ISIC2018"

COUNTS = {"Training": 2594, "Validation": 100, "Test": 1000}
"""Number of images in the parts of the challenge."""

TRAINING, TEST = 2600, 1094
"""Number of training and of test images in the paper."""

# The folder of a part may contain another folder, as some programs unpack archives.
PATTERN = re.compile(
    r"(?:^|/)ISIC2018_(?:Task1-2_(?P<image>\w+)_Input|Task1_(?P<mask>\w+)_GroundTruth)/(?:[^/]+/)?"
    r"(?P<name>ISIC_[0-9]{7})(?P<ending>(?i:\.jpe?g)|_segmentation(?i:\.png))$"
)


def write_isic2018(
    source: Path,
    folder_raw: Path,
    folder_preprocessed: Path | None = None,
    dataset_id: int = 18,
    size: int | None = SIZE,
    seed: int = SEED,
    split: str = "grouped",
    duplicates: str = "keep",
    overwrite: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    counts: Mapping[str, int] = COUNTS,
    training: int = TRAINING,
    test: int = TEST,
) -> Prepared2d:
    """Write ISIC 2018's task 1 in nnU-Net's raw layout; everything is checked before anything is written.

    Cases keep their names, `ISIC_0000000`; RGB and {0, 1}, PNG.

    Args:
        source: a folder with the six folders or their archives `<folder>.zip`, or one archive of the six folders.
        folder_raw: nnU-Net's `nnUNet_raw`; it is created if it does not exist.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds, which keep near duplicates together as
            well; None not to write folds, so that nnU-Net draws its own.
        dataset_id: number of the data set, 1 to 999.
        size: height and width in pixels, or None to keep the size of each image.
        seed: seed of the draw.
        split: "grouped" to keep near duplicates in the same part, "paper" to draw every image independently.
        duplicates: "keep" or "drop", see `nnunet_dtc.study.datasets.images_2d.write_2d`.
        overwrite: replace a data set `Dataset<ID>_ISIC2018`, once the new one is complete.
        progress: called with the step, the number of finished cases and that of all cases.
        counts: number of images in the source; other numbers are for tests.
        training: number of training cases; other numbers are for tests.
        test: number of test cases; other numbers are for tests.

    Returns:
        The data set; near duplicates are also listed in its `near_duplicates.csv`.

    Raises:
        NnunetDtcError: an argument is outside these limits, or near duplicates do not allow a draw.
        SourceError: lists all files that are missing, duplicate or unreadable, images and masks of different size,
            masks with other values than 0 and 255, and masks without a lesion.
        FileExistsError: there is a data set with this number, or there are other folds, see `check_splits`.
        FileNotFoundError: there is no `source`.
    """
    source = Path(source)
    with open_source(source, [_folder(part, what) for part in counts for what in ("image", "mask")]) as files:
        return write_2d(
            source,
            lambda: _find(source, files, counts),
            folder_raw=Path(folder_raw),
            folder_preprocessed=None if folder_preprocessed is None else Path(folder_preprocessed),
            dataset_id=dataset_id,
            name=NAME,
            training=training,
            test=test,
            seed=seed,
            split=split,
            duplicates=duplicates,
            size=size,
            overwrite=overwrite,
            progress=progress,
            description="Skin lesions in dermoscopic images, ISIC 2018 task 1, all three parts joined",
            reference="https://challenge.isic-archive.com/data/#2018",
        )


def _folder(part: str, what: str) -> str:
    return f"ISIC2018_Task1-2_{part}_Input" if what == "image" else f"ISIC2018_Task1_{part}_GroundTruth"


def _find(source: Path, files: list[SourceFile], counts: Mapping[str, int]) -> tuple[list[Case], list[str]]:
    """The cases, and a line with a path for each problem of the layout."""
    found: dict[tuple[str, str], dict[str, list[SourceFile]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        match = PATTERN.search(file.name)
        if match:
            what = "image" if match["image"] else "mask"
            if match["ending"].startswith("_segmentation") == (what == "mask"):
                found[match[what], what][match["name"]].append(file)
    if not any(found[part, "image"] for part in counts):
        raise SourceError(source, [f"{source}: must contain {_folder('Training', 'image')} and so on; found no image"])

    cases, problems = [], []
    of_part: dict[str, str] = {}
    for part, count in counts.items():
        images, masks = found[part, "image"], found[part, "mask"]
        here = f"{source}: {_folder(part, 'image')}"
        if len(images) != count:
            problems.append(f"{here} must contain {count} images, found {len(images)}")
        for name in sorted({*images, *masks} if images else ()):  # a missing folder is one problem, not thousands
            image = single(f"{here}/{name}.jpg", images[name], problems)
            mask_name = f"{source}: {_folder(part, 'mask')}/{name}_segmentation.png"
            mask = single(mask_name, masks[name], problems) if masks else None
            if image is not None and of_part.setdefault(name, part) != part:
                problems.append(f"{image.shown}: is also in {_folder(of_part[name], 'image')}")
            cases.append(Case(name, image, () if mask is None else (mask,)))
        if not masks:
            problems.append(f"{source}: {_folder(part, 'mask')} must contain {count} masks, found none")
    return cases, problems
