"""Splits: nnU-Net's five folds as a file that every trainer shares, and parts drawn with a seed.

nnU-Net v2 reads `<nnUNet_preprocessed>/Dataset<ID>_<Name>/splits_final.json`, a list of {"train": [...], "val": [...]}
with case names, and draws one itself where none is (`nnUNetTrainer.do_split`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from nnunet_dtc.files import write_whole

__all__ = ["SEED", "check_splits", "draw", "five_folds", "write_splits"]

SEED = 12345
"""For `draw`; nnU-Net's own number for its folds."""


def five_folds(names: Sequence[str]) -> list[dict[str, list[str]]]:
    """The five folds that nnU-Net itself would draw for these training cases."""
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    return [
        {part: [str(name) for name in fold[part]] for part in ("train", "val")}
        for fold in generate_crossval_split(sorted(names), seed=12345, n_splits=5)
    ]


def check_splits(folder_preprocessed: Path, dataset: str, splits: list[dict[str, list[str]]]) -> Path:
    """Where the splits of `dataset` ("Dataset017_BTCV") belong.

    Raises:
        ValueError: if nnUNet_preprocessed is a file.
        FileExistsError: if other splits are there already (the order within a fold does not count), or if another data
            set's folder with this id is (nnU-Net refuses two names of one id).
    """
    if folder_preprocessed.exists() and not folder_preprocessed.is_dir():
        raise ValueError(f"nnUNet_preprocessed must be a folder, got the file {folder_preprocessed}")
    for other in sorted(folder_preprocessed.glob(f"{dataset[:10]}_*")):
        if other.name != dataset:
            raise FileExistsError(
                f"nnU-Net wants one name for an id, found {other}: choose another id or move it away "
                "(nothing was written)"
            )
    file = folder_preprocessed / dataset / "splits_final.json"
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
        ValueError: for doubled names or fewer than `counts` ask for.
    """
    if len(set(names)) != len(names) or sum(counts) > len(names):
        raise ValueError(f"cannot draw {list(counts)} from {len(names)} names, {len(set(names))} of them different")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    parts, start = [], 0
    for count in (*counts, len(names) - sum(counts)):
        parts.append(sorted(order[start : start + count]))
        start += count
    return parts


def _same(file: Path, splits: list[dict[str, list[str]]]) -> bool:
    def plain(folds: list[dict[str, list[str]]]) -> list[list[list[str]]]:
        return [[sorted(fold["train"]), sorted(fold["val"])] for fold in folds]

    try:
        return plain(json.loads(file.read_text(encoding="utf-8"))) == plain(splits)
    except (ValueError, KeyError, TypeError):
        return False
