"""Splits: nnU-Net's five folds as a file that every trainer shares, and parts drawn with a seed.

nnU-Net v2 reads `<nnUNet_preprocessed>/Dataset<ID>_<Name>/splits_final.json`, a list of {"train": [...], "val": [...]}
with case names, and draws one itself where none is (`nnUNetTrainer.do_split`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.files import write_whole

__all__ = ["SEED", "check_preprocessed", "check_splits", "draw", "draw_groups", "five_folds", "write_splits"]

SEED = 12345
"""For `draw`; nnU-Net's own number for its folds."""


def five_folds(names: Sequence[str], groups: Sequence[Sequence[str]] = ()) -> list[dict[str, list[str]]]:
    """Five folds, {"train": [...], "val": [...]} each, in which every group of cases is on one side.

    Args:
        names: the training cases.
        groups: of names that belong together; a name is in one group at most, those that are no training cases do not
            count. nnU-Net's draw decides about the first case of every group, and the others follow it: without groups
            the folds are those that nnU-Net itself would draw, with them they may differ in size by some cases.

    Raises:
        NnunetDtcError: for fewer than five cases that are independent of each other.
    """
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    units = _units(names, groups)
    if len(units) < 5:
        raise NnunetDtcError(
            f"five folds need at least 5 training cases of different groups, got {len(names)} cases in {len(units)}"
        )
    return [
        {part: sorted(name for first in fold[part] for name in units[str(first)]) for part in ("train", "val")}
        for fold in generate_crossval_split(sorted(units), seed=12345, n_splits=5)
    ]


def check_preprocessed(folder_preprocessed: Path, dataset: str) -> Path:
    """Where the splits of `dataset` ("Dataset017_BTCV") belong.

    Raises:
        NnunetDtcError: if nnUNet_preprocessed is a file.
        FileExistsError: if another data set's folder with this id is there (nnU-Net refuses two names of one id).
    """
    if folder_preprocessed.exists() and not folder_preprocessed.is_dir():
        raise NnunetDtcError(f"nnUNet_preprocessed must be a folder, got the file {folder_preprocessed}")
    for other in sorted(folder_preprocessed.glob(f"{dataset[:10]}_*")):
        if other.name != dataset:
            raise FileExistsError(
                f"nnU-Net wants one name for an id, found {other}: choose another id or move it away "
                "(nothing was written)"
            )
    return folder_preprocessed / dataset / "splits_final.json"


def check_splits(folder_preprocessed: Path, dataset: str, splits: list[dict[str, list[str]]]) -> Path:
    """Where the splits of `dataset` belong, if these can be written there.

    Raises:
        NnunetDtcError, FileExistsError: see `check_preprocessed`.
        FileExistsError: if other splits are there already (the order within a fold does not count).
    """
    file = check_preprocessed(folder_preprocessed, dataset)
    if file.exists() and not _same(file, splits):
        raise FileExistsError(
            f"{file} is there and holds other splits: move it away, with the results that it belongs to, or choose "
            "another id (nothing was written)"
        )
    return file


def write_splits(file: Path, splits: list[dict[str, list[str]]]) -> None:
    """Write `splits_final.json`, whole or not at all; one that is there is left as it is."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(splits, indent=4) + "\n")


def draw(names: Sequence[str], counts: Sequence[int], seed: int = SEED) -> list[list[str]]:
    """Draw parts without replacement: one list for every count and one with the rest, each sorted.

    The names are put in the order of the SHA-256 of "<seed> <name>", so that a seed means the same draw on every
    machine and with every version of every library.

    Raises:
        NnunetDtcError: for duplicate names or fewer than `counts` ask for.
    """
    order = _order(names, counts, seed)
    parts, start = [], 0
    for count in (*counts, len(names) - sum(counts)):
        parts.append(sorted(order[start : start + count]))
        start += count
    return parts


def draw_groups(
    names: Sequence[str], groups: Sequence[Sequence[str]], counts: Sequence[int], seed: int = SEED
) -> list[list[str]]:
    """Draw parts such that no two of them share a group; as `draw` where there are no groups.

    A group has the place of its first name in the order of `draw`, and goes as a whole into the first part that still
    needs that many cases. One that fits nowhere gives the emptiest part as many cases as that still needs; its others
    are in the rest, where groups may be divided, as the rest is not used. So the parts have exactly the sizes that are
    asked for unless the groups leave no such draw, and are never larger.

    Args:
        names: of all cases.
        groups: of names that belong together; a name is in one group at most.
        counts: cases of every part.

    Returns:
        One list for every count and one with the rest, each sorted.

    Raises:
        NnunetDtcError: as `draw`; or if a part would have no case at all.
    """
    _order(names, counts, seed)  # the same checks
    units = _units(names, groups)
    parts: list[list[str]] = [[] for _ in counts]
    waiting: list[list[str]] = []
    for first in _order(list(units), (), seed):
        unit = units[first]
        part = next((p for p, count in zip(parts, counts, strict=True) if len(p) + len(unit) <= count), None)
        if part is None:
            waiting.append(unit)
        else:
            part += unit
    rest: list[str] = []
    for unit in waiting:
        k = max(range(len(counts)), key=lambda k: counts[k] - len(parts[k]))
        missing = counts[k] - len(parts[k])
        parts[k] += unit[:missing]
        rest += unit[missing:]
    if any(count and not part for part, count in zip(parts, counts, strict=True)):
        raise NnunetDtcError(
            f"cannot draw {list(counts)} from {len(names)} cases in {len(units)} groups that must not be divided: a "
            "part would be empty (drawing every case for itself would divide them)"
        )
    return [sorted(part) for part in (*parts, rest)]


def _order(names: Sequence[str], counts: Sequence[int], seed: int) -> list[str]:
    if len(set(names)) != len(names) or sum(counts) > len(names):
        raise NnunetDtcError(f"cannot draw {list(counts)} from {len(names)} names, {len(set(names))} of them different")
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def _units(names: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """What must stay together, by its first name; sorted."""
    given = set(names)
    units: dict[str, list[str]] = {}
    for group in groups:
        if here := sorted(given.intersection(group)):
            units[here[0]] = here
            given.difference_update(here)
    units.update({name: [name] for name in given})
    return dict(sorted(units.items()))


def _same(file: Path, splits: list[dict[str, list[str]]]) -> bool:
    def plain(folds: list[dict[str, list[str]]]) -> list[list[list[str]]]:
        return [[sorted(fold["train"]), sorted(fold["val"])] for fold in folds]

    try:
        return plain(json.loads(file.read_text(encoding="utf-8"))) == plain(splits)
    except (ValueError, KeyError, TypeError):
        return False
