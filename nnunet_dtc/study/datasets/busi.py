"""BUSI, the Breast Ultrasound Images of Al-Dhabyani et al. (2020), in nnU-Net's raw layout.

Source: https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, `Dataset_BUSI_with_GT/{benign,malignant,normal}/` with
`benign (1).png`, `benign (1)_mask.png`, and for some images further masks `_mask_1.png`, `_mask_2.png`, which are
joined; 437 benign and 210 malignant images. The 133 normal ones are left out, as in the paper.

The paper (arXiv:2601.17939, experimental settings of the 2D data sets) draws 520 images for training and 87 for
testing, resized to 256 x 256. It publishes neither the draw nor the use of the other 40 of the 647 images. Our draw has
a fixed seed, and the 40 images that are left out are listed.

Many images are nearly identical to another one, some of them with the other class (see
`nnunet_dtc.study.datasets.near_duplicates`). By default the draw keeps them together. Some patients have several
images, but the data set does not identify patients, so that images of one patient may still be in both parts.

Images and masks are grey, RGB or RGBA, and some images have coloured marks. All images are written as RGB.
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

__all__ = ["COUNTS", "NAME", "TEST", "TRAINING", "write_busi"]

NAME = "BUSI"

COUNTS = {"benign": 437, "malignant": 210}
"""Images with a lesion."""

TRAINING, TEST = 520, 87
"""Number of training and of test images in the paper."""

PATTERN = re.compile(
    r"(?:^|/)(?P<kind>benign|malignant) \((?P<number>[0-9]+)\)(?P<mask>_mask(?:_(?P<more>[0-9]+))?)?(?i:\.png)$"
)


def write_busi(
    source: Path,
    folder_raw: Path,
    folder_preprocessed: Path | None = None,
    dataset_id: int = 19,
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
    """Write BUSI in nnU-Net's raw layout; everything is checked before anything is written.

    Cases are named `benign_001`, `malignant_001`; RGB and {0, 1}, PNG.

    Args:
        source: `Dataset_BUSI_with_GT`, a folder that contains it, or an archive of it.
        folder_raw: nnU-Net's `nnUNet_raw`; it is created if it does not exist.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds, which keep near duplicates together as
            well; None not to write folds, so that nnU-Net draws its own.
        dataset_id: number of the data set, 1 to 999.
        size: height and width in pixels, or None to keep the size of each image.
        seed: seed of the draw.
        split: "grouped" to keep near duplicates in the same part, "paper" to draw every image independently.
        duplicates: "keep" or "drop", see `nnunet_dtc.study.datasets.images_2d.write_2d`.
        overwrite: replace a data set `Dataset<ID>_BUSI`, once the new one is complete.
        progress: called with the step, the number of finished cases and that of all cases.
        counts: number of images in the source; other numbers are for tests.
        training: number of training cases; other numbers are for tests.
        test: number of test cases; other numbers are for tests.

    Returns:
        The data set. The cases that are left out are also listed in its `left_out.txt`, near duplicates in its
        `near_duplicates.csv`.

    Raises:
        NnunetDtcError: an argument is outside these limits, or near duplicates do not allow a draw.
        SourceError: lists all files that are missing, duplicate, unknown or unreadable, images and masks of different
            size, masks with other values than 0 and 255, and masks without a lesion.
        FileExistsError: there is a data set with this number, or there are other folds, see `check_splits`.
        FileNotFoundError: there is no `source`.
    """
    source = Path(source)
    with open_source(source) as files:
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
            description="Breast ultrasound images with benign and malignant lesions, BUSI",
            reference="https://doi.org/10.1016/j.dib.2019.104863",
        )


def _find(source: Path, files: list[SourceFile], counts: Mapping[str, int]) -> tuple[list[Case], list[str]]:
    """The cases, and a line with a path for each problem of the layout."""
    images: dict[tuple[str, int], list[SourceFile]] = defaultdict(list)
    masks: dict[tuple[str, int], dict[int, list[SourceFile]]] = defaultdict(lambda: defaultdict(list))
    problems: list[str] = []
    for file in files:
        match = PATTERN.search(file.name)
        if not match:
            continue
        key = match["kind"], _number(match["number"])
        if not 1 <= key[1] <= counts[key[0]]:
            problems.append(f"{file.shown}: is not one of the {counts[key[0]]} {key[0]} images")
        elif match["mask"]:
            masks[key][_number(match["more"] or "0")].append(file)
        else:
            images[key].append(file)
    if not images:
        raise SourceError(source, [f"{source}: must contain benign/benign (1).png and so on; found no image"])

    cases = []
    for kind, count in counts.items():
        for number in range(1, count + 1):
            stem = f"{source}: {kind}/{kind} ({number})"
            image = single(f"{stem}.png", images[kind, number], problems)
            of_case = masks[kind, number]
            joined = [single(_mask_name(stem, k), of_case[k], problems) for k in sorted(of_case)]
            missing = next(k for k in range(len(of_case) + 1) if k not in of_case)  # masks are numbered consecutively
            if missing < max(of_case, default=1):
                also = f", but {of_case[max(of_case)][0].shown} is there" if of_case else ""
                problems.append(f"{_mask_name(stem, missing)} is missing{also}")
            here = tuple(mask for mask in joined if mask is not None)
            cases.append(Case(f"{kind}_{number:03d}", image, here, kind))
    return cases, problems


def _mask_name(stem: str, number: int) -> str:
    return f"{stem}_mask{f'_{number}' if number else ''}.png"


def _number(digits: str) -> int:
    """The number, or 10 ** 18 if it has more digits, which Python may not convert."""
    return int(digits) if len(digits) <= 18 else 10**18
