"""The cases of ISIC 2018 and BUSI: an 8-bit image and its masks, which are read and checked."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.datasets.near_duplicates import thumbnail
from nnunet_dtc.study.datasets.sources import SourceFile, unreadable

__all__ = ["Case", "CheckedCase", "check_case", "join_masks", "read_image", "read_mask"]

Result = TypeVar("Result")


class Case(NamedTuple):
    """An image and its masks. The files of an incomplete case are checked as well.

    Attributes:
        name: name of the case.
        image: file of the image; None if it is missing.
        masks: files of the masks, whose union is the label.
        kind: class of the image, such as "benign", in data sets with classes.
    """

    name: str
    image: SourceFile | None
    masks: tuple[SourceFile, ...]
    kind: str = ""


class CheckedCase(NamedTuple):
    """Problems of a case and remarks on it, each a line with a path, and the thumbnail of its image."""

    problems: list[str]
    notes: list[str]
    thumbnail: np.ndarray | None


def check_case(case: Case, size: int | None) -> CheckedCase:
    """Read all files of a case, and find what is wrong with them.

    Args:
        case: the case.
        size: height and width in pixels that it will be resized to, or None.
    """
    problems: list[str] = []
    notes: list[str] = []

    def attempt(read: Callable[[SourceFile], Result], file: SourceFile) -> Result | None:
        try:
            return read(file)
        except NnunetDtcError as error:
            problems.append(f"{file.shown}: {error}")
        except Exception as error:  # of any decoder
            problems.append(unreadable(file, error))
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
    return CheckedCase(problems, notes, None if image is None else thumbnail(image))


def read_image(file: SourceFile) -> Image.Image:
    """Read an image as RGB, (height, width, 3) uint8, without transparency.

    Raises:
        NnunetDtcError: the image has more than 8 bits per channel, or is neither a PNG nor a JPEG image.
        Exception: any exception of Pillow for a damaged file.
    """
    image = _open(file)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise NnunetDtcError(f"must have 8 bits per channel, has Pillow's mode {image.mode}")
    return image.convert("RGB")


def read_mask(file: SourceFile) -> np.ndarray:
    """Read a grey mask, or a colour one with equal channels, as (height, width) bool; transparency is ignored.

    Raises:
        NnunetDtcError: the mask has other values than 0 and 255 (or 0 and 1), or colours, or is neither a PNG nor a
            JPEG image.
        Exception: any exception of Pillow for a damaged file.
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
        raise NnunetDtcError(f"a mask must contain 0 and 255 only, found {some}")
    return mask > 0


def join_masks(masks: Sequence[np.ndarray], size: int | None) -> Image.Image:
    """The union of masks, (height, width) bool, resized by nearest-neighbour interpolation, as {0, 1} uint8."""
    joined = Image.fromarray(np.logical_or.reduce(masks).astype(np.uint8))
    return joined if size is None else joined.resize((size, size), Image.Resampling.NEAREST)


def _open(file: SourceFile) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(file.read()), formats=("PNG", "JPEG"))
    except UnidentifiedImageError as error:  # Pillow's message has the address of the buffer
        raise NnunetDtcError("cannot be read (it is neither a PNG nor a JPEG image)") from error
    image.load()
    return image
