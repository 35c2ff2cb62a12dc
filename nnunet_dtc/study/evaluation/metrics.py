"""The registry of metrics. Tables, files, figures and statistics take from it all that they need to know of a metric.

An organ is absent where it has no voxel outside the ignore label. The scores of absent organs:

| | Dice | NSD | HD95 |
|---|---|---|---|
| absent in both, `skip` (default) | not counted (NaN) | not counted (NaN) | not counted (NaN) |
| absent in both, `flare` | 1 | 1 | not counted (NaN) |
| absent in one | 0 | 0 | infinite |

`flare` is the rule for absent organs in the evaluation code of the MICCAI FLARE challenges (github.com/JunMa11/FLARE).
FLARE differs in three other points, which are not reproduced: it has no HD95, it scores aorta, vena cava and esophagus
only in slices that are labelled, and from 2023 on it sets NSD to 0 where Dice is below 0.1.

An organ that is present, but whose surface touches the ignore label everywhere, has an NSD and HD95 of NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal

import numpy as np

from nnunet_dtc.study.evaluation.overlap import dice
from nnunet_dtc.study.evaluation.surfaces import SurfaceDistances, surface_distances
from nnunet_dtc.study.evaluation.tolerances import Distance, Tolerance

__all__ = ["ABSENT_RULES", "METRICS", "Absent", "Metric", "OrganMasks", "metric", "metrics_for", "stored_units"]

Absent = Literal["skip", "flare"]
ABSENT_RULES: tuple[Absent, ...] = ("skip", "flare")


@dataclass(frozen=True)
class OrganMasks:
    """An organ that both the prediction and the reference have, which is what metrics are computed from.

    Attributes:
        name: the organ's name.
        prediction, reference (bool[*S]): the masks, S = (H, W) or (D, H, W), cropped to the organ and False at the
            ignore label.
        spacing_mm: voxel size in mm of each axis, in the order of the array's axes.
        ignored (bool[*S]): the voxels of the ignore label; None if there is no such label.
    """

    name: str
    prediction: np.ndarray
    reference: np.ndarray
    spacing_mm: tuple[float, ...]
    ignored: np.ndarray | None = None

    @cached_property
    def surfaces(self) -> SurfaceDistances:
        """The distances between the two surfaces in mm."""
        return surface_distances(self.prediction, self.reference, self.spacing_mm, self.ignored)

    @cached_property
    def surfaces_in_voxels(self) -> SurfaceDistances:
        """The distances between the two surfaces with a spacing of 1 along every axis."""
        return surface_distances(self.prediction, self.reference, (1.0,) * self.prediction.ndim, self.ignored)


@dataclass(frozen=True)
class Metric:
    """A metric: its function, its names and how its scores are shown.

    Attributes:
        key: the name of its column in CSV files and of its entry in JSON files.
        title: its name in tables and figures.
        compute: from an `OrganMasks` to the score; with `per_tolerance`, from `OrganMasks` and `Tolerance`.
        stored: the unit of the scores in files.
        unit: the unit in which scores are shown.
        factor: what a score is multiplied by to be shown.
        higher_is_better: whether the higher of two scores is the better one.
        absent_in_one: the score of an organ that is absent in either the prediction or the reference.
        absent_in_both: the score of an organ that is absent in both, for each of `ABSENT_RULES`.
        per_tolerance: whether there is one such metric for each tolerance: its name is then appended to key and title.
    """

    key: str
    title: str
    compute: Callable[..., float]
    stored: str
    unit: str
    factor: float
    higher_is_better: bool
    absent_in_one: float
    absent_in_both: Mapping[Absent, float] = field(hash=False)
    per_tolerance: bool = False

    @property
    def heading(self) -> str:
        """Title and unit: ``NSD 1mm (%)``."""
        return f"{self.title} ({self.unit})"

    @property
    def difference_unit(self) -> str:
        """The unit in which a difference is shown: percentage points if scores are shown in per cent."""
        return "points" if self.unit == "%" else self.unit

    @property
    def infinite_key(self) -> str | None:
        """The name in JSON files of the number of infinite scores, ``hd95_infinite``; None if no score is infinite."""
        return f"{self.key.removesuffix(f'_{self.unit}')}_infinite" if math.isinf(self.absent_in_one) else None

    def shown(self, score: float) -> str:
        """A score as it is shown, without its unit; a hyphen for NaN."""
        return "-" if math.isnan(score) else f"{score * self.factor:.2f}"

    def signed(self, difference: float) -> str:
        """A difference of scores as it is shown, with its sign and without its unit; a hyphen for NaN."""
        return "-" if math.isnan(difference) else f"{difference * self.factor:+.2f}"

    def named(self, tolerance: str) -> Metric:
        """The entry of a metric with `per_tolerance` for the tolerance of this name."""
        return replace(self, key=f"{self.key}_{tolerance}", title=f"{self.title} {tolerance}", per_tolerance=False)


def _nsd(organ: OrganMasks, tolerance: Tolerance) -> float:
    distance: Distance = tolerance.of(organ.name)
    surfaces = organ.surfaces_in_voxels if distance.unit == "voxel" else organ.surfaces
    return surfaces.nsd(distance.value)


_DICE = Metric(
    "dice",
    "Dice",
    lambda organ: dice(organ.prediction, organ.reference),
    stored="0 to 1",
    unit="%",
    factor=100.0,
    higher_is_better=True,
    absent_in_one=0.0,
    absent_in_both={"skip": math.nan, "flare": 1.0},
)
_NSD = replace(_DICE, key="nsd", title="NSD", compute=_nsd, per_tolerance=True)
_HD95 = Metric(
    "hd95_mm",
    "HD95",
    lambda organ: organ.surfaces.hausdorff(95),
    stored="mm",
    unit="mm",
    factor=1.0,
    higher_is_better=False,
    absent_in_one=math.inf,
    absent_in_both={"skip": math.nan, "flare": math.nan},
)

METRICS = {entry.key: entry for entry in (_DICE, _NSD, _HD95)}
"""All metrics by key, in the order of the columns."""


def metric(key: str) -> Metric:
    """The metric of this key, to show its scores: ``dice``, ``nsd_1mm``, ``hd95_mm``.

    Raises:
        ValueError: there is no such metric.

    Example:
        >>> nsd = metric("nsd_1mm")
        >>> nsd.heading, nsd.shown(0.98765), nsd.signed(-0.01), nsd.difference_unit
        ('NSD 1mm (%)', '98.77', '-1.00', 'points')
    """
    if key in METRICS and not METRICS[key].per_tolerance:
        return METRICS[key]
    for entry in METRICS.values():
        if entry.per_tolerance and key.startswith(f"{entry.key}_"):
            return entry.named(key.removeprefix(f"{entry.key}_"))
    raise ValueError(f"metric must be one of {', '.join(METRICS)} (nsd with a tolerance: nsd_1mm), got {key!r}")


def metrics_for(tolerances: Iterable[Tolerance]) -> list[Metric]:
    """All metrics with these tolerances, in the order of the columns; `compute` of each takes an `OrganMasks` alone."""
    tolerances = list(tolerances)
    found = []
    for entry in METRICS.values():
        if entry.per_tolerance:
            found += [
                replace(entry.named(tolerance.name), compute=partial(entry.compute, tolerance=tolerance))
                for tolerance in tolerances
            ]
        else:
            found.append(entry)
    return found


def stored_units() -> str:
    """The units of the scores in files: ``dice and nsd: 0 to 1; hd95_mm: mm``."""
    keys: dict[str, list[str]] = {}
    for entry in METRICS.values():
        keys.setdefault(entry.stored, []).append(entry.key)
    return "; ".join(f"{' and '.join(of_unit)}: {unit}" for unit, of_unit in keys.items())
