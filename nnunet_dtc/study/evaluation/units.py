"""How metrics are called and in which unit they are shown: Dice and NSD in per cent, HD95 in mm."""

from __future__ import annotations

import math

__all__ = ["difference_unit", "factor", "higher_is_better", "signed", "title", "unit", "value"]


def higher_is_better(metric: str) -> bool:
    """Whether a higher score is the better one: for all metrics but distances."""
    return metric != "hd95_mm"


def factor(metric: str) -> float:
    """The factor by which a score is multiplied to be shown."""
    return 100.0 if higher_is_better(metric) else 1.0


def unit(metric: str) -> str:
    """The unit in which a score is shown."""
    return "%" if higher_is_better(metric) else "mm"


def difference_unit(metric: str) -> str:
    """The unit in which a difference is shown: that of two percentages is in percentage points."""
    return "points" if higher_is_better(metric) else unit(metric)


def title(metric: str) -> str:
    """`Dice`, `NSD 1mm`, `HD95`."""
    if metric == "dice":
        return "Dice"
    return "HD95" if metric == "hd95_mm" else f"NSD {metric.removeprefix('nsd_')}"


def value(metric: str, score: float) -> str:
    """A score as it is shown, without its unit; a hyphen for NaN."""
    return "-" if math.isnan(score) else f"{score * factor(metric):.2f}"


def signed(metric: str, difference: float) -> str:
    """A difference as it is shown, with its sign and without its unit; a hyphen for NaN."""
    return "-" if math.isnan(difference) else f"{difference * factor(metric):+.2f}"
