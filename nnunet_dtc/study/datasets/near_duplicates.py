"""Images of one data set that are nearly identical.

Two images are near duplicates if their thumbnails of 16 x 16 grey values are equal or have a correlation above
`THRESHOLD`, which does not depend on brightness and contrast. Groups are the connected components of these pairs, so
that two images of a group may be similar only through other images.

Published for BUSI: the letter of Pawlowska et al. (Data in Brief 48, 2023, 109247; PMC10293973) counts 235 duplicates;
`benign (433)` and `malignant (145)` are the same picture. For the ISIC data sets, Cassidy et al. (Medical Image
Analysis 75, 2022, 102305) report duplicates within and between training and test sets.

The effect of the threshold was measured on 900 dermoscopic images of ISIC 2017 with 128 x 128 pixels:

- Different pictures: of the 404,550 pairs none has a correlation above 0.97, and 13 have one above 0.95. Those are
  different lesions with similar outlines in the middle of the picture. A second comparison of 64 x 64 grey values is
  not used, because it would exclude no pair above 0.995.
- Modified copies that are found: contrast x 0.8 and brightness x 0.7 100 %; gamma 0.8 or 1.25 99 %; JPEG at quality 50
  99 %, at quality 20 61 %; brightness x 1.3 with clipping 78 %; four coloured cross marks 73 %; 0.8 % of the side
  cropped all around 54 %, 1.6 % 22 %, 3 % of one side none. Mirrored and rotated copies are not found.

The groups are therefore a lower bound: the listed duplicates are almost certain, but further duplicates and other
images of the same patient remain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import sparse
from scipy.sparse.csgraph import connected_components

__all__ = ["THRESHOLD", "NearDuplicates", "find_near_duplicates", "thumbnail"]

THRESHOLD = 0.995
"""Correlation of two thumbnails above which their images are near duplicates."""

SIDE = 16
"""Height and width of a thumbnail."""

BLOCK = 512  # rows of the matrix of correlations that are computed at once


class NearDuplicates(NamedTuple):
    """A group of images that are nearly identical.

    Attributes:
        members: ascending indices of at least 2 images.
        correlations: the highest correlation of each member with another image.
    """

    members: list[int]
    correlations: list[float]


def thumbnail(image: Image.Image) -> np.ndarray:
    """The grey values of an image as (16, 16) float64, each the mean over its part of the image.

    Args:
        image: an image of any mode and size; the aspect ratio is not kept.
    """
    grey = image.convert("L").resize((4 * SIDE, 4 * SIDE), Image.Resampling.BOX)  # rounded, unlike the means below
    return np.asarray(grey, np.float64).reshape(SIDE, 4, SIDE, 4).mean(axis=(1, 3))


def find_near_duplicates(thumbnails: Sequence[np.ndarray], threshold: float = THRESHOLD) -> list[NearDuplicates]:
    """Find groups of near duplicates, in the order of their first members.

    An image without contrast is a duplicate only of images with an equal thumbnail.

    Args:
        thumbnails: n arrays of one shape; the memory is n times their size and 512 n numbers.
        threshold: minimum of the correlation, exclusive.

    Example:
        >>> picture = np.arange(16.0).reshape(4, 4)
        >>> [group.members for group in find_near_duplicates([picture, picture.T, 2 * picture])]
        [[0, 2]]
    """
    if not thumbnails:
        return []
    values = np.stack([np.ravel(each) for each in thumbnails]).astype(np.float64)  # (n, 256)
    equal: dict[bytes, list[int]] = defaultdict(list)
    for k, row in enumerate(values):
        equal[row.tobytes()].append(k)
    values -= values.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    values /= np.where(norms > 0, norms, 1)  # a constant image becomes 0 and correlates with no other

    count = len(values)
    highest = np.full(count, -1.0)
    pairs = [np.array([(same[0], other) for other in same[1:]], np.int64).reshape(-1, 2) for same in equal.values()]
    for same in equal.values():
        if len(same) > 1:
            highest[same] = 1.0
    for start in range(0, count, BLOCK):
        correlations = values[start : start + BLOCK] @ values.T  # (up to 512, n)
        own = np.arange(len(correlations))
        correlations[own, start + own] = -1.0
        np.maximum(highest[start : start + BLOCK], correlations.max(axis=1), out=highest[start : start + BLOCK])
        i, j = np.nonzero(correlations > threshold)
        pairs.append(np.column_stack([i + start, j])[i + start < j])
    first, second = np.concatenate(pairs).T
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    _, component = connected_components(graph, directed=False)

    groups: dict[int, list[int]] = defaultdict(list)
    for k, number in enumerate(component):
        groups[int(number)].append(k)
    return [
        NearDuplicates(members, [min(float(highest[k]), 1.0) for k in members])
        for members in sorted(groups.values())
        if len(members) > 1
    ]
