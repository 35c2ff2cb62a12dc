"""BUSI, the Breast Ultrasound Images of Al-Dhabyani et al. (2020), in nnU-Net's raw layout.

Source: https://scholar.cu.edu.eg/?q=afahmy/pages/dataset, `Dataset_BUSI_with_GT/{benign,malignant,normal}/` with
`benign (1).png`, `benign (1)_mask.png`, and for some images further masks `_mask_1.png`, `_mask_2.png`, which are
joined by OR; 437 benign and 210 malignant images. The 133 normal ones are left out, as in the paper.

The paper (arXiv:2601.17939, experimental settings of the 2D data sets) draws 520 images for training and 87 for
testing, resized to 256 x 256; it publishes neither the draw nor what became of the other 40 of the 647. Ours is by a
fixed seed, and the 40 are listed.

Many of its images show nearly the same picture as another one, some of them with the other class (see
`nnunet_dtc.study.datasets.near_duplicates`): the draw keeps these together unless it is asked for the plain draw. Some
patients have several images and the data set does not say which, so that other images of one patient may be on both
sides.

Files are grey, RGB or RGBA, masks too, and some images have coloured marks: all images are written as RGB.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path

from nnunet_dtc.study.datasets.images_2d import SIZE, Case, Prepared2d, write_2d
from nnunet_dtc.study.datasets.sources import SourceError, SourceFile, open_source, single
from nnunet_dtc.study.datasets.splits import SEED

__all__ = ["COUNTS", "NAME", "TEST", "TRAINING", "write_busi"]

NAME = "BUSI"

COUNTS = {"benign": 437, "malignant": 210}
"""Images with a lesion."""

TRAINING, TEST = 520, 87
"""Images in the paper's parts."""

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
        source: `Dataset_BUSI_with_GT`, a folder that holds it, or an archive of it.
        folder_raw: nnU-Net's `nnUNet_raw`; made if missing.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds, in which near duplicates are on one
            side, too; None: they are not written, and nnU-Net will draw its own.
        dataset_id: 1..999.
        size: pixels a side of all images, or None to keep each one's own.
        seed: of the draw of the paper's parts.
        split: "grouped": all near duplicates of each other are in the same part; "paper": every image is drawn for
            itself.
        duplicates: "keep" or "drop", see `nnunet_dtc.study.datasets.images_2d.write_2d`.
        overwrite: replace a data set `Dataset<ID>_BUSI`, once the new one is complete.
        progress: called with (what is being done, cases done, cases in all).
        counts, training, test: others than the real ones only for tests.

    Returns:
        What was written; the cases left out are also listed in the data set's `left_out.txt`, near duplicates in its
        `near_duplicates.csv`.

    Raises:
        NnunetDtcError: for arguments outside these limits, or if near duplicates leave no draw.
        SourceError: names every missing, duplicate, unknown or unreadable file, every image and mask of
            different size, every mask with values other than 0 and 255, and every lesion without a pixel.
        FileExistsError: if this id is taken, or if other folds are there already, see `check_splits`.
        FileNotFoundError: if there is no `source`.
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
    """The cases, and what is wrong with the layout, a line with a path each."""
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
        raise SourceError(source, [f"{source}: must hold benign/benign (1).png and so on; found no image"])

    cases = []
    for kind, count in counts.items():
        for number in range(1, count + 1):
            stem = f"{source}: {kind}/{kind} ({number})"
            image = single(f"{stem}.png", images[kind, number], problems)
            of_case = masks[kind, number]
            joined = [single(_mask_name(stem, k), of_case[k], problems) for k in sorted(of_case)]
            missing = next(k for k in range(len(of_case) + 1) if k not in of_case)  # numbered without a gap
            if missing < max(of_case, default=1):
                also = f", but {of_case[max(of_case)][0].shown} is there" if of_case else ""
                problems.append(f"{_mask_name(stem, missing)} is missing{also}")
            here = tuple(mask for mask in joined if mask is not None)
            cases.append(Case(f"{kind}_{number:03d}", image, here, kind))
    return cases, problems


def _mask_name(stem: str, number: int) -> str:
    return f"{stem}_mask{f'_{number}' if number else ''}.png"


def _number(digits: str) -> int:
    """The number; 10 to the 18th for one with more digits, which Python may refuse to convert."""
    return int(digits) if len(digits) <= 18 else 10**18
