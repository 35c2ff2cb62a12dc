"""The part that ISIC 2018 and BUSI share: 8-bit images with masks of one lesion class, checked, resized, written.

nnU-Net v2 reads PNG with its NaturalImage2DIO: one RGB file `<case>_0000.png` is three channels, a grey one is one, and
all cases must have equally many. It takes one file ending for images and labels, so JPEGs become (lossless) PNGs.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.datasets.near_duplicates import NearDuplicates, find_near_duplicates, thumbnail
from nnunet_dtc.study.datasets.nnunet_raw import check_target, new_raw_dataset, write_dataset_json
from nnunet_dtc.study.datasets.sources import SourceError, SourceFile
from nnunet_dtc.study.datasets.splits import (
    check_preprocessed,
    check_splits,
    draw,
    draw_groups,
    five_folds,
    write_splits,
)

__all__ = ["DUPLICATES", "LABELS", "SIZE", "SPLITS", "Case", "Prepared2d", "check_size", "write_2d"]

LABELS = {"background": 0, "lesion": 1}

SIZE = 256
"""Pixels a side, as in the paper (arXiv:2601.17939, experimental settings of the 2D data sets)."""

LARGEST_SIZE = 8192
"""Pixels a side that images can be resized to; ISIC's largest has 6748."""

SPLITS = ("grouped", "paper")
"""How cases are drawn: each group of near duplicates on one side, or every image for itself as the paper must have."""

DUPLICATES = ("keep", "drop")
"""What becomes of near duplicates: all are kept, or one of each group."""

Item, Result = TypeVar("Item"), TypeVar("Result")


class Case(NamedTuple):
    """An image and the masks that are joined by OR. What is there of an incomplete one is still checked.

    `kind` is the class of the image ("benign") where the data set has classes.
    """

    name: str
    image: SourceFile | None
    masks: tuple[SourceFile, ...]
    kind: str = ""


class Prepared2d(NamedTuple):
    """What was written.

    Attributes:
        folder: the data set.
        training, test, left_out: names of the cases in the two parts, and of those that are in neither.
        groups: names of the cases that are near duplicates of each other, at least 2 each.
        splits: the file of the five folds, or None if none was asked for.
        notes: what a user should know about the source and the draw.
    """

    folder: Path
    training: list[str]
    test: list[str]
    left_out: list[str]
    groups: list[list[str]]
    splits: Path | None
    notes: list[str]


class _Checked(NamedTuple):
    """What is wrong with a case and what is worth knowing about it, a line with a path each; and its thumbnail."""

    problems: list[str]
    notes: list[str]
    thumbnail: np.ndarray | None


def check_size(size: int | None) -> int | None:
    """The size, if images can be resized to it; None keeps theirs.

    Raises:
        NnunetDtcError: unless it is None or an integer in 1..8192.
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
    progress: Callable[[str, int, int], None] | None,
    **described: str,
) -> Prepared2d:
    """Check all cases, find near duplicates, draw the parts, write the data set.

    Images are written as RGB, grey ones with three equal channels; resized they are interpolated linearly, with
    antialiasing where they shrink. Labels are {0, 1}, resized by nearest neighbour. The aspect ratio is not kept.

    Near duplicates (see `nnunet_dtc.study.datasets.near_duplicates`) are listed in `near_duplicates.csv` of the data
    set.

    Args:
        find: the cases of the source, and a line with a path for everything that is wrong with its layout: there is one
            for every incomplete case.
        folder_preprocessed: nnU-Net's `nnUNet_preprocessed`, for the five folds; None: they are not written.
        training, test: how many cases are drawn for `imagesTr` and `imagesTs`; the rest is left out and listed in the
            data set's `left_out.txt`.
        seed: of the draw, see `nnunet_dtc.study.datasets.splits.draw`.
        split: "grouped": all near duplicates of each other are in the same part and in the same fold. "paper": every
            image is drawn for itself, and the folds are those that nnU-Net itself would draw.
        duplicates: "keep", or "drop": of every group only the first case is drawn from, and none of a group that holds
            images of several classes, since at least one of them is in the wrong one. Where fewer cases than
            `training + test` remain, all of them are drawn, in the same proportion.
        size: pixels a side, or None to keep each image's own.
        progress: called with (what is being done, cases done, cases in all).
        described: entries for `dataset.json`.

    Raises:
        NnunetDtcError, FileExistsError: see `check_target`, `check_size`, `check_splits` and `draw_groups`; or for
            another `split` or `duplicates`, or "paper" with "drop".
        SourceError: what `find` and the content checks found wrong, all of it.
    """
    check_size(size)
    for what, value, known in (("split", split, SPLITS), ("duplicates", duplicates, DUPLICATES)):
        if value not in known:
            raise NnunetDtcError(f"{what} must be {' or '.join(map(repr, known))}, got {value!r}")
    if split == "paper" and duplicates == "drop":
        raise NnunetDtcError(
            "the split 'paper' draws from all images, but near duplicates are to be left out: choose one of the two"
        )
    folder = check_target(source, folder_raw, dataset_id, name, overwrite)
    if folder_preprocessed is not None:
        check_preprocessed(folder_preprocessed, folder.name)
    cases, problems = find()
    notes: list[str] = []
    thumbnails: list[np.ndarray | None] = []
    for checked in _for_all(lambda case: _check(case, size), cases, "checking", progress):
        problems += checked.problems
        notes += checked.notes
        thumbnails.append(checked.thumbnail)
    if problems:
        raise SourceError(source, problems)

    found = find_near_duplicates(thumbnails)
    groups = [[cases[k].name for k in group.members] for group in found]  # names of cases
    kept, contradicting = _without_duplicates(cases, found)
    names = kept if duplicates == "drop" else [case.name for case in cases]
    counts = _proportional((training, test), len(names)) if duplicates == "drop" else (training, test)
    if 0 in counts:
        raise NnunetDtcError(
            f"a training and a test part need at least 2 cases, {len(names)} remain without near duplicates"
        )
    parts = draw(names, counts, seed) if split == "paper" else draw_groups(names, groups, counts, seed)
    parts[2] = sorted({case.name for case in cases}.difference(parts[0], parts[1]))
    place = {case: part for part, drawn in zip(("training", "test"), parts, strict=False) for case in drawn}
    notes += _notes(parts, (training, test), groups, contradicting, place)
    splits, splits_file = [], None
    if folder_preprocessed is not None:
        splits = five_folds(parts[0], groups if split == "grouped" else ())
        splits_file = check_splits(folder_preprocessed, folder.name, splits)

    with new_raw_dataset(folder_raw, dataset_id, name, overwrite) as unfinished:
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (unfinished / part).mkdir()

        def write(case: Case) -> None:
            part = "Tr" if place[case.name] == "training" else "Ts"
            image = read_image(case.image)
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
            label = join_masks([read_mask(file) for file in case.masks], size)
            image.save(unfinished / f"images{part}" / f"{case.name}_0000.png", "PNG")
            label.save(unfinished / f"labels{part}" / f"{case.name}.png", "PNG")

        for _ in _for_all(write, [case for case in cases if case.name in place], "writing", progress):
            pass
        if parts[2]:
            text = "".join(f"{name}\n" for name in parts[2])
            (unfinished / "left_out.txt").write_text(text, encoding="utf-8")
        if found:
            _write_near_duplicates(unfinished / "near_duplicates.csv", cases, found, place)
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
            **described,
        )
        if splits_file is not None:
            write_splits(splits_file, splits)
    return Prepared2d(folder, *parts, groups, splits_file, notes)


def _without_duplicates(cases: Sequence[Case], found: Sequence[NearDuplicates]) -> tuple[list[str], list[list[str]]]:
    """The cases without duplicates, the first of each group kept; and the groups of several classes, all left out."""
    dropped: set[str] = set()
    contradicting = []
    for group in found:
        names = [cases[k].name for k in group.members]
        if len({cases[k].kind for k in group.members}) > 1:
            contradicting.append(names)
            dropped.update(names)
        else:
            dropped.update(names[1:])
    return [case.name for case in cases if case.name not in dropped], contradicting


def _proportional(counts: tuple[int, int], available: int) -> tuple[int, int]:
    """The counts, or smaller ones in the same proportion that need no more than what is available."""
    if sum(counts) <= available:
        return counts
    test = round(available * counts[1] / sum(counts))
    return available - test, test


def _notes(
    parts: Sequence[Sequence[str]],
    wanted: tuple[int, int],
    groups: Sequence[Sequence[str]],
    contradicting: Sequence[Sequence[str]],
    place: Mapping[str, str],
) -> list[str]:
    """What a user should know about the draw, a line each."""
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
        where = [place.get(name) for name in group]
        leaks += where.count("test") if "training" in where else 0
    if leaks:
        notes.append(f"{leaks} of the {len(parts[1])} test cases have a near duplicate among the training cases")
    return notes


def _write_near_duplicates(
    file: Path, cases: Sequence[Case], found: Sequence[NearDuplicates], place: Mapping[str, str]
) -> None:
    """A line for every case that has a near duplicate: its group, its part, its highest correlation, its image."""
    with file.open("x", encoding="utf-8", errors="backslashreplace", newline="") as stream:
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(("group", "case", "part", "correlation", "source"))
        for number, group in enumerate(found, start=1):
            for k, correlation in zip(group.members, group.correlations, strict=True):
                case = cases[k]
                table.writerow(
                    (number, case.name, place.get(case.name, "left out"), f"{correlation:.4f}", case.image.name)
                )


def read_image(file: SourceFile) -> Image.Image:
    """An image as RGB, (height, width, 3) uint8; transparency is dropped.

    Raises:
        NnunetDtcError: for more than 8 bits a channel, or if it is neither a PNG nor a JPEG image.
        Exception: whatever Pillow raises for a damaged file.
    """
    image = _open(file)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise NnunetDtcError(f"must have 8 bits a channel, is of Pillow's mode {image.mode}")
    return image.convert("RGB")


def read_mask(file: SourceFile) -> np.ndarray:
    """A mask, (height, width) bool. Grey, or colour with equal channels; transparency is dropped.

    Raises:
        NnunetDtcError: if it has values other than 0 and 255 (or 0 and 1), or colours, or is neither a PNG nor a JPEG
            image.
        Exception: whatever Pillow raises for a damaged file.
    """
    image = _open(file)
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    mask = np.asarray(image)
    if mask.ndim == 3:  # (height, width, channels)
        mask = mask[:, :, : len(image.getbands()) - image.mode.endswith("A")]
        if not (mask == mask[:, :, :1]).all():
            raise NnunetDtcError("a mask must be black and white, found colours")
        mask = mask[:, :, 0]
    values = np.unique(mask)
    if not (np.isin(values, (0, 255)).all() or np.isin(values, (0, 1)).all()):
        some = ", ".join(str(value) for value in values[:10]) + (" ..." if len(values) > 10 else "")
        raise NnunetDtcError(f"a mask must hold 0 and 255 only, found {some}")
    return mask > 0


def join_masks(masks: Sequence[np.ndarray], size: int | None) -> Image.Image:
    """Masks, (height, width) bool, joined by OR and resized by nearest neighbour: {0, 1}, uint8."""
    joined = Image.fromarray(np.logical_or.reduce(masks).astype(np.uint8))
    return joined if size is None else joined.resize((size, size), Image.Resampling.NEAREST)


def _open(file: SourceFile) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.read()), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:  # Pillow's own message names the address of the buffer
        raise NnunetDtcError("cannot be read (it is neither a PNG nor a JPEG image)") from error
    image.load()
    return image


def _check(case: Case, size: int | None) -> _Checked:
    """Read all of a case; `size` is what it will be resized to."""
    problems: list[str] = []
    notes: list[str] = []

    def attempt(read: Callable[[SourceFile], Result], file: SourceFile) -> Result | None:
        try:
            return read(file)
        except NnunetDtcError as error:
            problems.append(f"{file.shown}: {error}")
        except Exception as error:  # whatever a decoder raises: the file is unreadable
            problems.append(f"{file.shown}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})")
        return None

    image = attempt(read_image, case.image) if case.image is not None else None
    masks = [attempt(read_mask, file) for file in case.masks]
    for file, mask in zip(case.masks, masks, strict=True):
        if image is not None and mask is not None and mask.shape != (image.height, image.width):
            problems.append(
                f"{file.shown}: must have the size of {case.image.shown}, {image.width} x {image.height} pixels, has "
                f"{mask.shape[1]} x {mask.shape[0]}"
            )
    if masks and not any(mask is None or mask.shape != masks[0].shape for mask in masks):
        empty = [file.shown for file, mask in zip(case.masks, masks, strict=True) if not mask.any()]
        if len(empty) == len(masks):
            problems += [f"{shown}: a mask must have foreground pixels, all of its pixels are 0" for shown in empty]
        else:
            notes += [f"{shown}: has no foreground pixel; the case has other masks" for shown in empty]
            if not np.asarray(join_masks(masks, size)).any():
                problems.append(
                    f"{case.masks[0].shown}: a lesion must keep a pixel when its mask is resized to {size} x {size}, "
                    f"all of its {np.logical_or.reduce(masks).sum()} pixels vanish"
                )
    return _Checked(problems, notes, None if image is None else thumbnail(image))


def _for_all(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    step: str,
    progress: Callable[[str, int, int], None] | None,
) -> Iterable[Result]:
    """`work` on all items, in threads (decoding, resizing and zlib run outside of Python's lock), in order."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        try:
            for done, result in enumerate(pool.map(work, items), start=1):
                yield result
                if progress is not None:
                    progress(step, done, len(items))
        finally:
            pool.shutdown(cancel_futures=True)
