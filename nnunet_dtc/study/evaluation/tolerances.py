"""At which distances NSD is reported: in mm, in voxels, for all organs or organ by organ.

The paper does not publish its tolerance; 1 mm and 2 mm are our default. `0.5voxel` sets every spacing to 1 and counts
what is at most half a voxel off. Surface elements sit on the corners of voxels, so that their distances are 0, 1,
sqrt(2), ... voxels then: 0.5 voxel counts what coincides.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.plugin.nnunet_files import read_json
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
    """One column of NSD.

    Attributes:
        name: its heading and, after `nsd_`, its key in files.
        default: for the organs that `organs` does not name; None if it names them all.
        organs: distance by organ.
    """

    name: str
    default: Distance | None
    organs: Mapping[str, Distance] = field(default_factory=dict)

    def of(self, organ: str) -> Distance:
        """The distance for an organ; KeyError if there is none, see `check_tolerances`."""
        distance = self.organs.get(organ, self.default)
        if distance is None:
            raise KeyError(organ)
        return distance


DEFAULT_TOLERANCES = (Tolerance("1mm", Distance(1.0)), Tolerance("2mm", Distance(2.0)))


def parse_tolerance(text: str) -> Tolerance:
    """A tolerance from what a user writes.

    - `1`, `1mm`, `0.5voxel`: the same for all organs;
    - `2,liver=5,spleen=0.5voxel`: organ by organ, the first for those not named (it may be left out if all are);
    - `FILE.json`: the same as an object, {"default": 2, "liver": 5, "spleen": "0.5voxel"}; its name is the file's.

    Raises:
        NnunetDtcError: if it is neither, a distance is not finite or negative, or the file cannot be read.
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
    """Whether these tolerances fit these organs.

    Raises:
        NnunetDtcError: if there is none, two have one name, one names an organ that there is not, or leaves one out.
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
                f"tolerance {tolerance.name} says nothing about {', '.join(without)} and has no default"
            )


def _distance(text: str) -> Distance:
    match = _DISTANCE.fullmatch(text.strip())
    if not match or not math.isfinite(float(match[1])):
        raise NnunetDtcError(f"{_RULE}; got {text!r}")
    return Distance(float(match[1]), "voxel" if (match[2] or "").startswith("voxel") else "mm")
