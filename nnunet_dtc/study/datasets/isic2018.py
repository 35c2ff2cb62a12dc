"""ISIC 2018, task 1 (skin lesions in dermoscopic images), in nnU-Net's raw layout.

Source: https://challenge.isic-archive.com/data/#2018, six archives, unpacked or not:
`ISIC2018_Task1-2_{Training,Validation,Test}_Input/ISIC_NNNNNNN.jpg` with
`ISIC2018_Task1_{Training,Validation,Test}_GroundTruth/ISIC_NNNNNNN_segmentation.png`; 2594, 100 and 1000 images.

The paper (arXiv:2601.17939, experimental settings of the 2D data sets) joins all 3,694 and draws 2,600 for training and
1,094 for testing, resized to 256 x 256; it does not publish the draw. Ours is by a fixed seed, and keeps near
duplicates (see `nnunet_dtc.study.datasets.near_duplicates`) on one side unless it is asked for the plain draw.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_dtc.study.datasets.images_2d import SIZE, Case, Prepared2d, write_2d
from nnunet_dtc.study.datasets.sources import SourceError, SourceFile, open_source, single
from nnunet_dtc.study.datasets.splits import SEED

__all__ = ["COUNTS", "NAME", "TEST", "TRAINING", "write_isic2018"]

NAME = "ISIC2018"

COUNTS = {"Training": 2594, "Validation": 100, "Test": 1000}
"""Images in the challenge's parts."""

TRAINING, TEST = 2600, 1094
"""Images in the paper's parts."""

# A part's folder may hold one more folder, as some programs unpack archives.
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
        folder_raw: nnU-Net's `nnUNet_raw`; made if missing.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds, in which near duplicates are on one
            side, too; None: they are not written, and nnU-Net will draw its own.
        dataset_id: 1..999.
        size: pixels a side of all images, or None to keep each one's own.
        seed: of the draw of the paper's parts.
        split: "grouped": all near duplicates of each other are in the same part; "paper": every image is drawn for
            itself.
        duplicates: "keep" or "drop", see `nnunet_dtc.study.datasets.images_2d.write_2d`.
        overwrite: replace a data set `Dataset<ID>_ISIC2018`, once the new one is complete.
        progress: called with (what is being done, cases done, cases in all).
        counts, training, test: others than the real ones only for tests.

    Returns:
        What was written; near duplicates are also listed in the data set's `near_duplicates.csv`.

    Raises:
        NnunetDtcError: for arguments outside these limits, or if near duplicates leave no draw.
        SourceError: names every missing, duplicate or unreadable file, every image and mask of
            different size, every mask with values other than 0 and 255, and every lesion without a pixel.
        FileExistsError: if this id is taken, or if other folds are there already, see `check_splits`.
        FileNotFoundError: if there is no `source`.
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
    """The cases, and what is wrong with the layout, a line with a path each."""
    found: dict[tuple[str, str], dict[str, list[SourceFile]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        match = PATTERN.search(file.name)
        if match:
            what = "image" if match["image"] else "mask"
            if match["ending"].startswith("_segmentation") == (what == "mask"):
                found[match[what], what][match["name"]].append(file)
    if not any(found[part, "image"] for part in counts):
        raise SourceError(source, [f"{source}: must hold {_folder('Training', 'image')} and so on; found no image"])

    cases, problems = [], []
    of_part: dict[str, str] = {}
    for part, count in counts.items():
        images, masks = found[part, "image"], found[part, "mask"]
        here = f"{source}: {_folder(part, 'image')}"
        if len(images) != count:
            problems.append(f"{here} must hold {count} images, found {len(images)}")
        for name in sorted({*images, *masks} if images else ()):  # a missing folder is one problem, not thousands
            image = single(f"{here}/{name}.jpg", images[name], problems)
            mask_name = f"{source}: {_folder(part, 'mask')}/{name}_segmentation.png"
            mask = single(mask_name, masks[name], problems) if masks else None
            if image is not None and of_part.setdefault(name, part) != part:
                problems.append(f"{image.shown}: is also in {_folder(of_part[name], 'image')}")
            cases.append(Case(name, image, () if mask is None else (mask,)))
        if not masks:
            problems.append(f"{source}: {_folder(part, 'mask')} must hold {count} masks, found none")
    return cases, problems
