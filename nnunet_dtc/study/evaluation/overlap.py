"""The Dice coefficient of two binary masks."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["check_masks", "dice"]


def dice(prediction: np.ndarray, reference: np.ndarray) -> float:
    """The Dice coefficient 2 |A and B| / (|A| + |B|), in [0, 1].

    Args:
        prediction, reference (bool[*S]): the masks.

    Returns:
        The coefficient; NaN if both masks are empty, 0 if one of them is.

    Raises:
        ValueError: the masks are not boolean or have different shapes.

    Example:
        >>> import numpy as np
        >>> prediction = np.array([[True, True, False], [True, False, False]])
        >>> reference = np.array([[True, False, False], [False, False, False]])
        >>> dice(prediction, reference)
        0.5
    """
    check_masks(prediction, reference)
    total = np.count_nonzero(prediction) + np.count_nonzero(reference)
    return float(2 * np.count_nonzero(prediction & reference) / total) if total else math.nan


def check_masks(*masks: np.ndarray) -> None:
    """Check that masks are boolean and have one shape.

    Raises:
        ValueError: they are not or have not.
    """
    if any(mask.dtype != bool for mask in masks):
        raise ValueError(f"masks must be boolean, got {[str(mask.dtype) for mask in masks]}")
    if any(mask.shape != masks[0].shape for mask in masks):
        raise ValueError(f"masks must have the same shape, got {[mask.shape for mask in masks]}")
