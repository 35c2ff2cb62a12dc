"""The distances at which NSD is reported: in mm or in voxels, for all organs or organ by organ.

The paper does not publish its tolerance; 1 mm and 2 mm are our defaults. `0.5voxel` takes every spacing as 1 and counts
surface elements that are at most half a voxel apart. Elements lie at the corners of voxels, so their distances are then
0, 1, sqrt(2), ... voxels, and 0.5 voxel counts the elements that coincide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.file_rules import read_json
from nnunet_dtc.study.texts import visible

__all__ = ["DEFAULT_TOLERANCES", "Distance", "Tolerance", "check_tolerances", "parse_tolerance"]

_DISTANCE = re.compile(r"(\d+\.?\d*|\.\d+)\s*(mm|voxels?)?")
_RULE = "a tolerance is a distance such as 1, 1mm or 0.5voxel, or organ by organ 2,liver=5,spleen=3 or a .json file"


@dataclass(frozen=True)
class Distance:
    """A length in mm, or in voxels (then the spacing is taken as 1 along every axis)."""

    value: float
    unit: Literal["mm", "voxel"] = "mm"

    def __str__(self) -> str:
        return f"{self.value:g}{self.unit}"


@dataclass(frozen=True)
class Tolerance:
    """The distances of one column of NSD.

    Attributes:
        name: its name in the column's heading and, after `nsd_`, in its key.
        default: the distance of the organs that `organs` does not name; None if it names all of them.
        organs: distance by organ.
    """

    name: str
    default: Distance | None
    organs: Mapping[str, Distance] = field(default_factory=dict)

    def of(self, organ: str) -> Distance:
        """The distance of an organ.

        Raises:
            KeyError: the organ has none, which `check_tolerances` refuses.
        """
        distance = self.organs.get(organ, self.default)
        if distance is None:
            raise KeyError(organ)
        return distance


DEFAULT_TOLERANCES = (Tolerance("1mm", Distance(1.0)), Tolerance("2mm", Distance(2.0)))


def parse_tolerance(text: str) -> Tolerance:
    """Parse a tolerance.

    Args:
        text: one of three forms. `1`, `1mm` or `0.5voxel` is the same distance for all organs.
            `2,liver=5,spleen=0.5voxel` is organ by organ; the first distance, which may be left out, is that of the
            organs that are not named. `FILE.json` names a file with an object such as
            {"default": 2, "liver": 5, "spleen": "0.5voxel"}; the tolerance has the file's name.

    Raises:
        NnunetDtcError: the text has none of these forms, a distance is negative or not finite, or the file cannot be
            read.

    Example:
        >>> tolerance = parse_tolerance("2,liver=5,spleen=0.5voxel")
        >>> tolerance.name
        '2mm,liver=5mm,spleen=0.5voxel'
        >>> str(tolerance.of("liver")), str(tolerance.of("aorta"))
        ('5mm', '2mm')
    """
    if text.endswith(".json"):
        path = Path(text)
        content: Any = read_json(path)
        if not isinstance(content, dict) or not content:
            raise NnunetDtcError(f'{path} must hold an object such as {{"default": 2, "liver": 5}}, got {content!r}')
        organs = {organ: _distance(str(value)) for organ, value in content.items()}
        return Tolerance(visible(path.stem), organs.pop("default", None), organs)

    first, *rest = (part.strip() for part in text.split(","))
    default = None
    if "=" in first:
        rest.insert(0, first)
    else:
        default = _distance(first)
    organs = {}
    for part in rest:
        organ, equals, value = (piece.strip() for piece in part.rpartition("="))
        if not equals or not organ or organ in organs:
            raise NnunetDtcError(f"{_RULE}; got {part!r} in {text!r}")
        organs[organ] = _distance(value)
    name = ",".join([*([str(default)] if default else []), *(f"{organ}={value}" for organ, value in organs.items())])
    return Tolerance(name, default, organs)


def check_tolerances(tolerances: Sequence[Tolerance], organs: Sequence[str]) -> None:
    """Check that tolerances fit the organs.

    Raises:
        NnunetDtcError: there is no tolerance, two have the same name, one names an unknown organ, or one has no
            distance for an organ.
    """
    if not tolerances:
        raise NnunetDtcError("at least one tolerance is needed")
    names = [tolerance.name for tolerance in tolerances]
    if len(set(names)) < len(names):
        raise NnunetDtcError(f"tolerances must be different, got {', '.join(names)}")
    for tolerance in tolerances:
        if strange := sorted(set(tolerance.organs) - set(organs)):
            raise NnunetDtcError(
                f"tolerance {tolerance.name} names {', '.join(strange)}; the organs are {', '.join(organs)}"
            )
        if tolerance.default is None and (without := [organ for organ in organs if organ not in tolerance.organs]):
            raise NnunetDtcError(
                f"tolerance {tolerance.name} has neither a distance for {', '.join(without)} nor a default"
            )


def _distance(text: str) -> Distance:
    match = _DISTANCE.fullmatch(text.strip())
    if not match or not math.isfinite(float(match[1])):
        raise NnunetDtcError(f"{_RULE}; got {text!r}")
    return Distance(float(match[1]), "voxel" if (match[2] or "").startswith("voxel") else "mm")
