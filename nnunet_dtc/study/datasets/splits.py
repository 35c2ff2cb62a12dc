"""The file of nnU-Net's five folds, and parts of a data set drawn with a seed.

nnU-Net v2 reads `<nnUNet_preprocessed>/Dataset<ID>_<Name>/splits_final.json`, a list of {"train": [...], "val": [...]}
with case names. If there is no such file, it draws the folds itself (`nnUNetTrainer.do_split`).
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
"""Default seed of `draw`, the same as nnU-Net's seed for its folds."""


def five_folds(names: Sequence[str], groups: Sequence[Sequence[str]] = ()) -> list[dict[str, list[str]]]:
    """Draw five folds, {"train": [...], "val": [...]} each, that do not divide groups of cases.

    nnU-Net's own draw is applied to the first case of each group, and the other cases follow it. Without groups the
    folds are those that nnU-Net itself would draw; with groups their sizes may differ by some cases.

    Args:
        names: names of the training cases.
        groups: groups of names that must stay together. A name is in at most one group; names of other cases are
            ignored.

    Raises:
        NnunetDtcError: there are fewer than five groups, where a case without a group counts as one.
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
    """The file for the splits of `dataset`, such as "Dataset017_BTCV".

    Raises:
        NnunetDtcError: nnUNet_preprocessed is a file.
        FileExistsError: there is a data set with this number and another name, because nnU-Net does not accept two.
    """
    if folder_preprocessed.exists() and not folder_preprocessed.is_dir():
        raise NnunetDtcError(f"nnUNet_preprocessed must be a folder, got the file {folder_preprocessed}")
    for other in sorted(folder_preprocessed.glob(f"{dataset[:10]}_*")):
        if other.name != dataset:
            raise FileExistsError(
                f"nnU-Net needs one name per id, found {other}: choose another id or move it away (nothing was written)"
            )
    return folder_preprocessed / dataset / "splits_final.json"


def check_splits(folder_preprocessed: Path, dataset: str, splits: list[dict[str, list[str]]]) -> Path:
    """The file for the splits of `dataset`, if these splits can be written there.

    Raises:
        NnunetDtcError: see `check_preprocessed`.
        FileExistsError: see `check_preprocessed`, or there are other splits, apart from the order of cases in a fold.
    """
    file = check_preprocessed(folder_preprocessed, dataset)
    if file.exists() and not _same(file, splits):
        raise FileExistsError(
            f"{file} exists with other splits: move it away together with the results that belong to it, or choose "
            "another id (nothing was written)"
        )
    return file


def write_splits(file: Path, splits: list[dict[str, list[str]]]) -> None:
    """Write `splits_final.json`; an existing file is kept."""
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(splits, indent=4) + "\n")


def draw(names: Sequence[str], counts: Sequence[int], seed: int = SEED) -> list[list[str]]:
    """Draw parts without replacement.

    The names are sorted by the SHA-256 of "<seed> <name>", so that the draw of a seed does not depend on the machine or
    the versions of libraries.

    Returns:
        One sorted list per count, and one with the rest.

    Raises:
        NnunetDtcError: there are duplicate names, or fewer names than the sum of the counts.

    Example:
        >>> draw(["a", "b", "c", "d", "e"], (2, 2), seed=12345)
        [['b', 'e'], ['c', 'd'], ['a']]
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
    """Draw parts without dividing groups between them; without groups this is `draw`.

    In the order of `draw` for their first names, groups are assigned to the first part with enough space. From a group
    that fits into no part, the part with the most space takes as many cases as it needs, and the others belong to the
    rest, which is not used. The parts therefore have the given sizes if the groups allow it, and are never larger.

    Args:
        names: names of all cases.
        groups: groups of names that must stay together; a name is in at most one group.
        counts: number of cases in each part.
        seed: seed of the draw.

    Returns:
        One sorted list per count, and one with the rest.

    Raises:
        NnunetDtcError: see `draw`, or a part would be empty.
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
            "part would be empty (a draw of independent cases would divide them)"
        )
    return [sorted(part) for part in (*parts, rest)]


def _order(names: Sequence[str], counts: Sequence[int], seed: int) -> list[str]:
    if len(set(names)) != len(names) or sum(counts) > len(names):
        raise NnunetDtcError(f"cannot draw {list(counts)} from {len(names)} names, {len(set(names))} of them different")
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def _units(names: Sequence[str], groups: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """The groups, and each other name as a group of its own, by their first names; sorted."""
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
