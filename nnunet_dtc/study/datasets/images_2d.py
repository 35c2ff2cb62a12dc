"""Data sets of 2D images with one lesion class, as ISIC 2018 and BUSI: cases are checked, drawn, resized and written.

nnU-Net v2 reads PNG files with its NaturalImage2DIO: an RGB file `<case>_0000.png` has three channels, a grey one has
one channel, and all cases must have the same number. Images and labels have the same file ending, so that JPEG images
become (lossless) PNG files.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from PIL import Image

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import write_whole
from nnunet_dtc.study.datasets.cases_2d import Case, check_case, join_masks, read_image, read_mask
from nnunet_dtc.study.datasets.near_duplicates import NearDuplicates, find_near_duplicates
from nnunet_dtc.study.datasets.nnunet_raw import (
    check_target,
    make_image_folders,
    new_raw_dataset,
    write_dataset_json,
)
from nnunet_dtc.study.datasets.sources import SourceError
from nnunet_dtc.study.datasets.splits import (
    check_preprocessed,
    check_splits,
    draw,
    draw_groups,
    five_folds,
    write_splits,
)

__all__ = ["DUPLICATES", "LABELS", "SIZE", "SPLITS", "Prepared2d", "check_size", "write_2d"]

LABELS = {"background": 0, "lesion": 1}

SIZE = 256
"""Height and width in pixels, as in the paper (arXiv:2601.17939, experimental settings of the 2D data sets)."""

LARGEST_SIZE = 8192
"""Maximum of height and width; the largest image of ISIC has 6748 pixels."""

SPLITS = ("grouped", "paper")
"""How cases are drawn: groups of near duplicates stay together, or all images are independent as in the paper."""

DUPLICATES = ("keep", "drop")
"""Whether all near duplicates are kept, or one of each group."""

Item, Result = TypeVar("Item"), TypeVar("Result")
Progress = Callable[[str, int, int], None]


class Prepared2d(NamedTuple):
    """A data set that was written.

    Attributes:
        folder: folder of the data set.
        training: names of the training cases.
        test: names of the test cases.
        left_out: names of the cases in neither part.
        groups: names of the cases in each group of near duplicates, at least 2.
        splits: file of the five folds; None if they were not written.
        notes: remarks on the source and the draw for the user.
    """

    folder: Path
    training: list[str]
    test: list[str]
    left_out: list[str]
    groups: list[list[str]]
    splits: Path | None
    notes: list[str]


def check_size(size: int | None) -> int | None:
    """Return the size if images can be resized to it, or None to keep theirs.

    Raises:
        NnunetDtcError: the size is neither None nor an integer from 1 to 8192.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE):
        raise NnunetDtcError(f"the size must be a number of pixels in 1..{LARGEST_SIZE} or none, got {size!r}")
    return size


def write_2d(
    source: Path,
    find: Callable[[], tuple[list[Case], list[str]]],
    *,
    folder_raw: Path,
    folder_preprocessed: Path | None,
    dataset_id: int,
    name: str,
    training: int,
    test: int,
    seed: int,
    split: str,
    duplicates: str,
    size: int | None,
    overwrite: bool,
    progress: Progress | None,
    **description: str,
) -> Prepared2d:
    """Check all cases, find near duplicates, draw the parts, and write the data set.

    Images are written as RGB; the three channels of grey images are equal. They are resized by linear interpolation,
    with antialiasing where they shrink, and labels {0, 1} by nearest-neighbour interpolation. The aspect ratio is not
    kept.

    Near duplicates (see `nnunet_dtc.study.datasets.near_duplicates`) are listed in `near_duplicates.csv` of the data
    set.

    Args:
        source: the source of the data set, for messages.
        find: returns the cases of the source, and a line with a path for each problem of its layout. There must be a
            problem for every incomplete case.
        folder_raw: nnU-Net's `nnUNet_raw`.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds; None not to write them.
        dataset_id: number of the data set, 1 to 999.
        name: name of the data set.
        training: number of cases for `imagesTr`.
        test: number of cases for `imagesTs`. All other cases are listed in the data set's `left_out.txt`.
        seed: seed of the draw, see `nnunet_dtc.study.datasets.splits.draw`.
        split: "grouped" to keep near duplicates in the same part and in the same fold, "paper" to draw every image
            independently, with the folds that nnU-Net itself would draw.
        duplicates: "keep", or "drop" to use only the first case of each group. Groups with images of several classes
            are left out, because at least one of these images has the wrong class. If fewer cases than `training +
            test` remain, all of them are drawn in the same proportion.
        size: height and width in pixels, or None to keep the size of each image.
        overwrite: replace a data set of this number and name, once the new one is complete.
        progress: called with the step, the number of finished cases and that of all cases.
        description: further entries of `dataset.json`.

    Raises:
        NnunetDtcError: `size`, `split`, `duplicates` or their combination is not allowed, or see `check_target`,
            `check_splits` and `draw_groups`.
        FileExistsError: see `check_target` and `check_splits`.
        SourceError: the source has problems; the error lists all of them.
    """
    _check_options(size, split, duplicates)
    folder = check_target(source, folder_raw, dataset_id, name, overwrite)
    if folder_preprocessed is not None:
        check_preprocessed(folder_preprocessed, folder.name)
    cases, problems = find()
    checked = list(_for_all(lambda case: check_case(case, size), cases, "checking", progress))
    if problems := [*problems, *(problem for case in checked for problem in case.problems)]:
        raise SourceError(source, problems)

    found = find_near_duplicates([case.thumbnail for case in checked])
    groups = [[cases[k].name for k in group.members] for group in found]  # names of cases
    parts = _draw_parts(cases, found, groups, (training, test), seed, split, duplicates)
    part_of = {case: part for part, drawn in zip(("training", "test"), parts, strict=False) for case in drawn}
    notes = [note for case in checked for note in case.notes]
    notes += _notes(parts, (training, test), groups, _contradicting(cases, found), part_of)
    splits, splits_file = [], None
    if folder_preprocessed is not None:
        splits = five_folds(parts[0], groups if split == "grouped" else ())
        splits_file = check_splits(folder_preprocessed, folder.name, splits)

    with new_raw_dataset(folder_raw, dataset_id, name, overwrite) as unfinished:
        _write_images(unfinished, [case for case in cases if case.name in part_of], part_of, size, progress)
        if parts[2]:
            write_whole(unfinished / "left_out.txt", "".join(f"{case}\n" for case in parts[2]))
        if found:
            _write_near_duplicates(unfinished / "near_duplicates.csv", cases, found, part_of)
        write_dataset_json(
            unfinished,
            ["R", "G", "B"],
            LABELS,
            len(parts[0]),
            ".png",
            name=name,
            size="original" if size is None else f"{size} x {size}",
            split=split,
            split_seed=seed,
            near_duplicates=duplicates,
            **description,
        )
        if splits_file is not None:
            write_splits(splits_file, splits)
    return Prepared2d(folder, *parts, groups, splits_file, notes)


def _check_options(size: int | None, split: str, duplicates: str) -> None:
    check_size(size)
    for what, value, known in (("split", split, SPLITS), ("duplicates", duplicates, DUPLICATES)):
        if value not in known:
            raise NnunetDtcError(f"{what} must be {' or '.join(map(repr, known))}, got {value!r}")
    if split == "paper" and duplicates == "drop":
        raise NnunetDtcError(
            "the split 'paper' draws from all images, but near duplicates are to be left out: choose one of the two"
        )


def _draw_parts(
    cases: Sequence[Case],
    found: Sequence[NearDuplicates],
    groups: Sequence[Sequence[str]],
    counts: tuple[int, int],
    seed: int,
    split: str,
    duplicates: str,
) -> list[list[str]]:
    """Names of the training cases, of the test cases and of those that are left out."""
    names = [case.name for case in cases]
    if duplicates == "drop":
        names = _without_duplicates(cases, found)
        counts = _proportional(counts, len(names))
        if 0 in counts:
            raise NnunetDtcError(
                f"a training and a test part need at least 2 cases, {len(names)} remain without near duplicates"
            )
    training, test, _ = draw(names, counts, seed) if split == "paper" else draw_groups(names, groups, counts, seed)
    return [training, test, sorted({case.name for case in cases}.difference(training, test))]


def _contradicting(cases: Sequence[Case], found: Sequence[NearDuplicates]) -> list[list[str]]:
    """Names of the cases of each group that has images of several classes."""
    return [
        [cases[k].name for k in group.members] for group in found if len({cases[k].kind for k in group.members}) > 1
    ]


def _without_duplicates(cases: Sequence[Case], found: Sequence[NearDuplicates]) -> list[str]:
    """Names of the cases without near duplicates: the first case of each group, but none of contradicting groups."""
    dropped = {cases[k].name for group in found for k in group.members[1:]}
    dropped.update(name for names in _contradicting(cases, found) for name in names)
    return [case.name for case in cases if case.name not in dropped]


def _proportional(counts: tuple[int, int], available: int) -> tuple[int, int]:
    """The counts, or smaller ones in the same proportion whose sum is the number of available cases."""
    if sum(counts) <= available:
        return counts
    test = round(available * counts[1] / sum(counts))
    return available - test, test


def _notes(
    parts: Sequence[Sequence[str]],
    wanted: tuple[int, int],
    groups: Sequence[Sequence[str]],
    contradicting: Sequence[Sequence[str]],
    part_of: Mapping[str, str],
) -> list[str]:
    """Remarks on the draw for the user."""
    notes = []
    if contradicting:
        some = "; ".join(" and ".join(names) for names in contradicting[:5]) + "; ..." * (len(contradicting) > 5)
        notes.append(f"groups of near duplicates with different classes: {len(contradicting)} ({some})")
    if (drawn := (len(parts[0]), len(parts[1]))) != wanted:
        notes.append(
            f"{drawn[0]} training and {drawn[1]} test cases were drawn, not {wanted[0]} and {wanted[1]}, because near "
            "duplicates are left out or must not be divided"
        )
    leaks = 0
    for group in groups:
        parts_of_group = [part_of.get(name) for name in group]
        leaks += parts_of_group.count("test") if "training" in parts_of_group else 0
    if leaks:
        notes.append(f"{leaks} of the {len(parts[1])} test cases have a near duplicate among the training cases")
    return notes


def _write_near_duplicates(
    file: Path, cases: Sequence[Case], found: Sequence[NearDuplicates], part_of: Mapping[str, str]
) -> None:
    """Write a row for every case with a near duplicate: group, case, part, highest correlation and image."""
    with file.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("group", "case", "part", "correlation", "source"))
        for number, group in enumerate(found, start=1):
            for k, correlation in zip(group.members, group.correlations, strict=True):
                case = cases[k]
                table.writerow(
                    (number, case.name, part_of.get(case.name, "left out"), f"{correlation:.4f}", case.image.name)
                )


def _write_images(
    folder: Path, cases: Sequence[Case], part_of: Mapping[str, str], size: int | None, progress: Progress | None
) -> None:
    """Write the images and labels of cases into a data set."""
    make_image_folders(folder)

    def write(case: Case) -> None:
        image = read_image(case.image)
        if size is not None:
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        label = join_masks([read_mask(file) for file in case.masks], size)
        part = "Tr" if part_of[case.name] == "training" else "Ts"
        image.save(folder / f"images{part}" / f"{case.name}_0000.png", "PNG")
        label.save(folder / f"labels{part}" / f"{case.name}.png", "PNG")

    for _ in _for_all(write, cases, "writing", progress):
        pass


def _for_all(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    step: str,
    progress: Progress | None,
) -> Iterable[Result]:
    """The results of `work` for all items in order, computed in threads: decoders and zlib release Python's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), start=1):
                yield result
                if progress is not None:
                    progress(step, done, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
