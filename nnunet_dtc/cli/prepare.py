"""``nnunet-dtc prepare``: data sets in nnU-Net's raw layout."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nnunet_dtc.cli.console import fail, note, progress_bars, say
from nnunet_dtc.errors import NnunetDtcError

if TYPE_CHECKING:
    from nnunet_dtc.study.datasets.images_2d import Prepared2d

app = typer.Typer(help="Write a data set in nnU-Net's raw layout.", no_args_is_help=True)


class Split(str, Enum):
    """How training and test cases are drawn."""

    grouped = "grouped"
    paper = "paper"


class Duplicates(str, Enum):
    """Whether near duplicates are kept."""

    keep = "keep"
    drop = "drop"


RawFolder = Annotated[
    Path | None, typer.Option("--raw", envvar="nnUNet_raw", help="nnU-Net's folder for raw data sets.")
]
DatasetId = Annotated[int, typer.Option("-d", help="Number of the data set, 1 to 999.")]
Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace the data set with this number and name when the new one is complete."),
]
PreprocessedFolder = Annotated[
    Path | None,
    typer.Option("--preprocessed", envvar="nnUNet_preprocessed", help="nnU-Net's folder for the five folds."),
]
Size = Annotated[str, typer.Option("--size", help="Height and width of all images in pixels, or none to keep theirs.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the draw of training and test cases.")]
SplitOption = Annotated[
    Split,
    typer.Option(
        "--split",
        help="grouped: near duplicates are never divided between training and test or between folds; paper: all images "
        "are drawn independently.",
    ),
]
DuplicatesOption = Annotated[
    Duplicates,
    typer.Option(
        "--duplicates",
        help="Keep all near duplicates, or drop all but one of each group (all of them if their classes differ).",
    ),
]


@contextmanager
def _preparing(raw: Path | None) -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar per step, and report errors as one message."""
    if raw is None:
        raise fail("nnUNet_raw is not set: export nnUNet_raw=/a/folder, or give --raw")
    with progress_bars() as progress:
        try:
            yield progress
        except (NnunetDtcError, OSError) as error:
            raise fail(error) from error


def _folds_folder(preprocessed: Path | None) -> Path:
    if preprocessed is None:
        raise NnunetDtcError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=/a/folder, or --preprocessed")
    return preprocessed


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _numbers(text: str, option: str) -> list[int]:
    parts = text.replace(",", " ").split()
    if not parts or not all(_is_number(part) for part in parts):
        raise NnunetDtcError(f"{option} must be numbers with commas between them, got {text[:100]!r}")
    return [int(part) for part in parts]


def _size(text: str) -> int | None:
    if text.lower() != "none" and not _is_number(text):
        raise NnunetDtcError(f"--size must be a number of pixels or none, got {text[:100]!r}")
    return None if text.lower() == "none" else int(text)


@app.command("phantom")
def prepare_phantom(
    dataset_id: DatasetId = 917,
    cases: Annotated[int, typer.Option("--cases", help="Training cases, at least 5.")] = 12,
    test_cases: Annotated[int, typer.Option("--test-cases", help="Held-out cases, at least 1.")] = 4,
    seed: Annotated[int, typer.Option("--seed", help="Seed; the same seed gives the same bytes.")] = 917,
    raw: RawFolder = None,
) -> None:
    """Write synthetic abdominal CTs with BTCV's 13 organs, for demonstrations and tests without a download."""
    with _preparing(raw) as progress:
        from nnunet_dtc.study.datasets.phantom import write_phantom

        folder = write_phantom(
            raw, dataset_id, cases, test_cases, seed, lambda done, total: progress("drawing cases", done, total)
        )
    say(
        f"wrote {folder} ({cases} training and {test_cases} held-out cases)",
        f"Now: nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity",
    )


@app.command("btcv")
def prepare_btcv(
    source: Annotated[
        Path, typer.Argument(help="RawData.zip of Synapse syn3193805 (Abdomen), or the unpacked folder.")
    ],
    dataset_id: DatasetId = 17,
    test_cases: Annotated[
        str, typer.Option("--test-cases", help="Numbers of the test cases, such as 1,2,3; by default TransUNet's.")
    ] = "",
    overwrite: Overwrite = False,
    raw: RawFolder = None,
    preprocessed: PreprocessedFolder = None,
) -> None:
    """Write BTCV: 30 abdominal CTs with 13 organs, 18 for training and validation in five folds, 12 for testing."""
    with _preparing(raw) as progress:
        folds = _folds_folder(preprocessed)
        from nnunet_dtc.study.datasets.btcv import TEST_CASES, write_btcv

        chosen = _numbers(test_cases, "--test-cases") if test_cases else TEST_CASES
        done = write_btcv(source, raw, folds, dataset_id, chosen, overwrite, progress)
    for line in done.notes:
        note(line)
    say(
        f"wrote {done.folder} ({len(done.training)} training and {len(done.test)} test cases)",
        f"test cases: {', '.join(name.removeprefix('BTCV_') for name in done.test)}"
        + ("" if test_cases else " (those of TransUNet and Swin-Unet; the DTC paper uses 18/12 and names no cases)"),
        f"five folds, for every trainer: {done.splits}",
        f"Now: nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity",
    )


@app.command("isic2018")
def prepare_isic2018(
    source: Annotated[Path, typer.Argument(help="The folder with the six folders or archives of ISIC 2018, task 1.")],
    dataset_id: DatasetId = 18,
    size: Size = "256",
    seed: Seed = 12345,
    split: SplitOption = Split.grouped,
    duplicates: DuplicatesOption = Duplicates.keep,
    overwrite: Overwrite = False,
    raw: RawFolder = None,
    preprocessed: PreprocessedFolder = None,
) -> None:
    """Write ISIC 2018, task 1: 3694 dermoscopic images with a lesion, 2600 for training and 1094 for testing."""
    with _preparing(raw) as progress:
        from nnunet_dtc.study.datasets.isic2018 import write_isic2018

        pixels, folds = _size(size), _folds_folder(preprocessed)
        done = write_isic2018(
            source, raw, folds, dataset_id, pixels, seed, split.value, duplicates.value, overwrite, progress
        )
    _report(done, dataset_id, seed, split, duplicates)


@app.command("busi")
def prepare_busi(
    source: Annotated[Path, typer.Argument(help="The folder or archive of Dataset_BUSI_with_GT.")],
    dataset_id: DatasetId = 19,
    size: Size = "256",
    seed: Seed = 12345,
    split: SplitOption = Split.grouped,
    duplicates: DuplicatesOption = Duplicates.keep,
    overwrite: Overwrite = False,
    raw: RawFolder = None,
    preprocessed: PreprocessedFolder = None,
) -> None:
    """Write BUSI: 647 breast ultrasound images with a lesion, 520 for training, 87 for testing, 40 left out."""
    with _preparing(raw) as progress:
        from nnunet_dtc.study.datasets.busi import write_busi

        pixels, folds = _size(size), _folds_folder(preprocessed)
        done = write_busi(
            source, raw, folds, dataset_id, pixels, seed, split.value, duplicates.value, overwrite, progress
        )
    _report(done, dataset_id, seed, split, duplicates)


def _report(done: "Prepared2d", dataset_id: int, seed: int, split: Split, duplicates: Duplicates) -> None:
    """Print what was written, and the next command."""
    for line in done.notes:
        note(line)
    if not done.groups:
        near = "near duplicates: none found"
    else:
        images = sum(len(group) for group in done.groups)
        how = (
            "at most one of each group is used"
            if duplicates is Duplicates.drop
            else "each group is in one part and in one fold"
            if split is Split.grouped
            else "every image was drawn independently"
        )
        near = f"near duplicates: {images} images in {len(done.groups)} groups, listed in near_duplicates.csv; {how}"
    say(
        f"wrote {done.folder} ({len(done.training)} training and {len(done.test)} test cases)",
        near,
        f"drawn with seed {seed} (the DTC paper does not publish its draw)",
        *([f"left out: {len(done.left_out)} images, listed in left_out.txt"] if done.left_out else []),
        f"five folds, for every trainer: {done.splits}",
        f"Now: nnUNetv2_plan_and_preprocess -d {dataset_id} --verify_dataset_integrity -c 2d",
    )
