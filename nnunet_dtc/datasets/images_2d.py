"""The part that ISIC 2018 and BUSI share: 8-bit images with masks of one lesion class, checked, resized, written.

nnU-Net v2 reads PNG with its NaturalImage2DIO: one RGB file `<case>_0000.png` is three channels, a grey one is one, and
all cases must have equally many. It takes one file ending for images and labels, so JPEGs become (lossless) PNGs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_dtc.datasets.nnunet_raw import check_target, new_raw_dataset, write_dataset_json
from nnunet_dtc.datasets.sources import SourceError, SourceFile
from nnunet_dtc.datasets.splits import draw
from nnunet_dtc.errors import NnunetDtcError

__all__ = ["LABELS", "SIZE", "Case", "Prepared2d", "check_size", "write_2d"]

LABELS = {"background": 0, "lesion": 1}

SIZE = 256
"""Pixels a side, as in the paper (arXiv:2601.17939, experimental settings of the 2D data sets)."""

Item, Result = TypeVar("Item"), TypeVar("Result")


class Case(NamedTuple):
    """An image and the masks that are joined by OR. What is there of an incomplete one is still checked."""

    name: str
    image: SourceFile | None
    masks: tuple[SourceFile, ...]


class Prepared2d(NamedTuple):
    """What was written: the data set, its case names, and those that were drawn for neither part."""

    folder: Path
    training: list[str]
    test: list[str]
    left_out: list[str]


def check_size(size: int | None) -> int | None:
    """The size, if images can be resized to it; None keeps theirs.

    Raises:
        ValueError: unless it is None or a positive integer.
    """
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise ValueError(f"the size must be a positive number of pixels or none, got {size!r}")
    return size


def write_2d(
    source: Path,
    find: Callable[[], tuple[list[Case], list[str]]],
    *,
    folder_raw: Path,
    dataset_id: int,
    name: str,
    training: int,
    test: int,
    seed: int,
    size: int | None,
    overwrite: bool,
    progress: Callable[[str, int, int], None] | None,
    **described: str,
) -> Prepared2d:
    """Check all cases, draw the parts, write the data set.

    Images are written as RGB, grey ones with three equal channels; resized they are interpolated linearly, with
    antialiasing where they shrink. Labels are {0, 1}, resized by nearest neighbour. The aspect ratio is not kept.

    Args:
        find: the cases of the source, and a line with a path for everything that is wrong with its layout: there is one
            for every incomplete case.
        training, test: how many cases are drawn for `imagesTr` and `imagesTs`; the rest is left out and listed in the
            data set's `left_out.txt`.
        seed: of the draw, see `nnunet_dtc.datasets.splits.draw`.
        size: pixels a side, or None to keep each image's own.
        progress: called with (what is being done, cases done, cases in all).
        described: entries for `dataset.json`.

    Raises:
        ValueError, FileExistsError: see `check_target` and `check_size`.
        SourceError: what `find` and the content checks found wrong, all of it.
    """
    check_size(size)
    folder = check_target(source, folder_raw, dataset_id, name, overwrite)
    cases, problems = find()
    for more in _for_all(_check, cases, "checking", progress):
        problems += more
    if problems:
        raise SourceError(source, problems)
    parts = draw([case.name for case in cases], (training, test), seed)
    place = {name: part for part, names in zip(("Tr", "Ts"), parts, strict=False) for name in names}

    with new_raw_dataset(folder_raw, dataset_id, name, overwrite) as unfinished:
        for part in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (unfinished / part).mkdir()

        def write(case: Case) -> None:
            part = place[case.name]
            image, label = read_image(case.image), join_masks(case.masks)
            if size is not None:
                image = image.resize((size, size), Image.Resampling.BILINEAR)
                label = label.resize((size, size), Image.Resampling.NEAREST)
            image.save(unfinished / f"images{part}" / f"{case.name}_0000.png", "PNG")
            label.save(unfinished / f"labels{part}" / f"{case.name}.png", "PNG")

        for _ in _for_all(write, [case for case in cases if case.name in place], "writing", progress):
            pass
        if parts[2]:
            text = "".join(f"{name}\n" for name in parts[2])
            (unfinished / "left_out.txt").write_text(text, encoding="utf-8")
        write_dataset_json(
            unfinished,
            ["R", "G", "B"],
            LABELS,
            training,
            ".png",
            name=name,
            size="original" if size is None else f"{size} x {size}",
            split_seed=seed,
            **described,
        )
    return Prepared2d(folder, *parts)


def read_image(file: SourceFile) -> Image.Image:
    """An image as RGB, (height, width, 3) uint8; transparency is dropped.

    Raises:
        ValueError: for more than 8 bits a channel.
        Exception: whatever Pillow raises for a damaged file.
    """
    image = _open(file)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(f"must have 8 bits a channel, is of Pillow's mode {image.mode}")
    return image.convert("RGB")


def read_mask(file: SourceFile) -> np.ndarray:
    """A mask, (height, width) bool. Grey, or colour with equal channels; transparency is dropped.

    Raises:
        ValueError: if it has values other than 0 and 255 (or 0 and 1), or colours.
        Exception: whatever Pillow raises for a damaged file.
    """
    image = _open(file)
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    mask = np.asarray(image)
    if mask.ndim == 3:  # (height, width, channels)
        mask = mask[:, :, : len(image.getbands()) - image.mode.endswith("A")]
        if not (mask == mask[:, :, :1]).all():
            raise ValueError("a mask must be black and white, found colours")
        mask = mask[:, :, 0]
    values = np.unique(mask)
    if not (np.isin(values, (0, 255)).all() or np.isin(values, (0, 1)).all()):
        some = ", ".join(str(value) for value in values[:10]) + (" ..." if len(values) > 10 else "")
        raise ValueError(f"a mask must hold 0 and 255 only, found {some}")
    return mask > 0


def join_masks(files: Iterable[SourceFile]) -> Image.Image:
    """The masks joined by OR, (height, width) uint8 in {0, 1}."""
    return Image.fromarray(np.logical_or.reduce([read_mask(file) for file in files]).astype(np.uint8))


def _open(file: SourceFile) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.read()), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:  # Pillow's own message names the address of the buffer
        raise NnunetDtcError("must be a PNG or JPEG image, its content is neither") from error
    image.load()
    return image


def _check(case: Case) -> list[str]:
    """What is wrong with the content of a case, a line with a path each."""
    problems = []

    def attempt(read: Callable[[SourceFile], Result], file: SourceFile) -> Result | None:
        try:
            return read(file)
        except ValueError as error:
            problems.append(f"{file.shown}: {error}")
        except Exception as error:  # whatever a decoder raises: the file is unreadable
            problems.append(f"{file.shown}: cannot be read ({' '.join(str(error).split()) or type(error).__name__})")
        return None

    image = attempt(read_image, case.image) if case.image is not None else None
    for file in case.masks:
        mask = attempt(read_mask, file)
        if image is not None and mask is not None and mask.shape != (image.height, image.width):
            problems.append(
                f"{file.shown}: must have the size of {case.image.shown}, {image.width} x {image.height} pixels, has "
                f"{mask.shape[1]} x {mask.shape[0]}"
            )
    return problems


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
