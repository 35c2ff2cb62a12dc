"""ISIC 2018 and BUSI in nnU-Net's raw layout: valid and invalid sources, the draw, resizing."""

from __future__ import annotations

import io
import json
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_trees import (
    BUSI,
    IDS,
    ISIC,
    RNG,
    busi_file,
    colours,
    content,
    isic_image,
    isic_mask,
    mask,
    save,
    write_busi_source,
    write_isic_source,
    write_zip,
)
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.crossval_split import generate_crossval_split
from PIL import Image
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.datasets import busi, isic2018
from nnunet_dtc.study.datasets.busi import write_busi
from nnunet_dtc.study.datasets.isic2018 import write_isic2018
from nnunet_dtc.study.datasets.sources import SourceError
from nnunet_dtc.study.datasets.splits import draw


@pytest.fixture(scope="module")
def trees(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    return {"isic": write_isic_source(folder / "isic"), "busi": write_busi_source(folder / "Dataset_BUSI_with_GT")}


@pytest.fixture
def isic(trees, tmp_path) -> Path:
    return shutil.copytree(trees["isic"], tmp_path / "isic")


@pytest.fixture
def busi_source(trees, tmp_path) -> Path:
    return shutil.copytree(trees["busi"], tmp_path / "Dataset_BUSI_with_GT")


def pixels(file: Path, mode: str | None = None) -> np.ndarray:
    image = Image.open(file)
    return np.asarray(image.convert(mode) if mode else image)


def written(folder: Path, name: str) -> tuple[Image.Image, Image.Image]:
    part = "Tr" if (folder / "labelsTr" / f"{name}.png").exists() else "Ts"
    return Image.open(folder / f"images{part}" / f"{name}_0000.png"), Image.open(
        folder / f"labels{part}" / f"{name}.png"
    )


# ------------------------------------------------------------------------------------------------------------------
# Valid sources.


def test_the_numbers_of_the_paper():
    assert sum(isic2018.COUNTS.values()) == isic2018.TRAINING + isic2018.TEST == 3694
    assert (isic2018.TRAINING, isic2018.TEST) == (2600, 1094)
    assert sum(busi.COUNTS.values()) == 647 == busi.TRAINING + busi.TEST + 40
    assert (busi.TRAINING, busi.TEST) == (520, 87)


def test_isic_keeps_the_pixels_with_size_none(isic, tmp_path, capfd):
    steps = []
    done = write_isic2018(isic, tmp_path / "raw", size=None, progress=lambda *step: steps.append(step), **ISIC)
    assert done.folder == tmp_path / "raw" / "Dataset018_ISIC2018"
    assert len(done.training) == 5
    assert len(done.test) == 2
    assert not done.left_out
    assert sorted(done.training + done.test) == sorted(f"ISIC_{n:07d}" for ids in IDS.values() for n in ids)
    for part, numbers in IDS.items():
        for number in numbers:
            image, label = written(done.folder, f"ISIC_{number:07d}")
            assert image.mode == "RGB"
            assert np.array_equal(image, pixels(isic_image(isic, part, number)))  # as the JPEG decodes
            assert np.array_equal(label, pixels(isic_mask(isic, part, number)) // 255)
    described = json.loads((done.folder / "dataset.json").read_text(encoding="utf-8"))
    assert described["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert described["labels"] == {"background": 0, "lesion": 1}
    assert described["file_ending"] == ".png"
    assert described["numTraining"] == 5
    assert described["split_seed"] == 12345
    assert described["size"] == "original"
    assert {d: len(list((done.folder / d).iterdir())) for d in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")} == {
        "imagesTr": 5,
        "labelsTr": 5,
        "imagesTs": 2,
        "labelsTs": 2,
    }
    assert steps == [(step, k, 7) for step in ("checking", "writing") for k in range(1, 8)]
    assert [f.name for f in (tmp_path / "raw").iterdir()] == ["Dataset018_ISIC2018"]
    verify_dataset_integrity(str(done.folder), num_processes=1)
    assert "verify_dataset_integrity Done" in capfd.readouterr().out


def test_isic_is_the_same_from_nested_folders_and_archives(isic, tmp_path):
    whole = write_zip(tmp_path / "all.zip", isic)
    plain = content(write_isic2018(isic, tmp_path / "plain", **ISIC).folder)
    assert content(write_isic2018(whole, tmp_path / "whole", **ISIC).folder) == plain

    archives = tmp_path / "archives"
    archives.mkdir()
    for folder in sorted(isic.iterdir()):
        write_zip(archives / f"{folder.name}.zip", folder)
    assert content(write_isic2018(archives, tmp_path / "zips", **ISIC).folder) == plain
    shutil.copytree(isic, archives, dirs_exist_ok=True)  # unpacked in the folder of the archives
    assert content(write_isic2018(archives, tmp_path / "both", **ISIC).folder) == plain

    for folder in sorted(isic.iterdir()):
        folder.rename(tmp_path / "aside")
        folder.mkdir()
        (tmp_path / "aside").rename(folder / folder.name)
    assert content(write_isic2018(isic, tmp_path / "nested", **ISIC).folder) == plain


def test_busi(busi_source, tmp_path, capfd):
    done = write_busi(busi_source, tmp_path / "raw", size=None, **BUSI)
    assert done.folder == tmp_path / "raw" / "Dataset019_BUSI"
    assert [len(names) for names in done[1:4]] == [4, 2, 1]
    assert done[4:] == ([], None, [])
    assert (done.folder / "left_out.txt").read_text() == f"{done.left_out[0]}\n"
    assert not list(done.folder.rglob(f"{done.left_out[0]}*"))
    verify_dataset_integrity(str(done.folder), num_processes=1)
    assert "verify_dataset_integrity Done" in capfd.readouterr().out

    everything = {"counts": BUSI["counts"], "training": 5, "test": 2}
    folder = write_busi(busi_source, tmp_path / "all", size=None, **everything).folder
    for kind, count in BUSI["counts"].items():
        for number in range(1, count + 1):
            image, label = written(folder, f"{kind}_{number:03d}")
            assert image.mode == "RGB"  # nnU-Net needs the same number of channels in all images
            assert label.mode == "L"
            assert np.array_equal(image, pixels(busi_file(busi_source, kind, number), "RGB"))
            masks = sorted((busi_source / kind).glob(f"{kind} ({number})_mask*.png"))
            assert len(masks) == (3 if (kind, number) == ("malignant", 3) else 1)
            assert np.array_equal(label, np.any([pixels(file, "L") > 0 for file in masks], axis=0))
            assert set(np.unique(label)) == {0, 1}
    assert not list(folder.rglob("normal*"))


def test_busi_is_the_same_from_an_archive_and_the_parent(busi_source, tmp_path):
    plain = content(write_busi(busi_source, tmp_path / "plain", **BUSI).folder)
    archive = write_zip(tmp_path / "archive.zip", busi_source)
    assert content(write_busi(archive, tmp_path / "zip", **BUSI).folder) == plain
    (tmp_path / "parent").mkdir()
    busi_source.rename(tmp_path / "parent" / "Dataset_BUSI_with_GT")
    assert content(write_busi(tmp_path / "parent", tmp_path / "raw", **BUSI).folder) == plain


def test_endings_in_capitals(isic, busi_source, tmp_path):
    expected = content(write_isic2018(isic, tmp_path / "plain", **ISIC).folder)
    for number, ending in zip(IDS["Training"], (".JPG", ".JPEG", ".jpeg", ".Jpg"), strict=True):
        file = isic_image(isic, "Training", number)
        file.rename(file.with_suffix(ending))
        file = isic_mask(isic, "Training", number)
        file.rename(file.with_suffix(".PNG"))
    assert content(write_isic2018(isic, tmp_path / "capitals", **ISIC).folder) == expected
    archives = tmp_path / "archives"
    archives.mkdir()
    for folder in sorted(isic.iterdir()):
        write_zip(archives / f"{folder.name}.ZIP", folder)
    assert content(write_isic2018(archives, tmp_path / "zips", **ISIC).folder) == expected

    expected = content(write_busi(busi_source, tmp_path / "plain", **BUSI).folder)
    for file in [*busi_source.rglob("*.png")]:
        file.rename(file.with_suffix(".PNG"))
    assert content(write_busi(busi_source, tmp_path / "capitals", **BUSI).folder) == expected


def test_one_empty_mask_of_several_is_noted(busi_source, tmp_path):
    save(busi_file(busi_source, "malignant", 3, "_mask_1"), np.zeros((18, 23), np.uint8))
    done = write_busi(busi_source, tmp_path / "raw", size=None, counts=BUSI["counts"], training=5, test=2)
    assert len(done.notes) == 1
    assert done.notes[0].endswith("malignant (3)_mask_1.png: has no foreground pixel; the case has other masks")
    both = [pixels(busi_file(busi_source, "malignant", 3, more), "L") > 0 for more in ("_mask", "_mask_2")]
    assert np.array_equal(written(done.folder, "malignant_003")[1], np.logical_or(*both))


def test_resizing(tmp_path):
    """Images shrink with antialiasing and labels by nearest neighbours, both relative to pixel centres."""
    x, y = np.meshgrid(np.arange(1024), np.arange(512))
    grey = np.where((x + y) % 2, 255, 0).astype(np.uint8)  # a checkerboard, whose average is grey
    disc = ((x - 300) ** 2 / 4 + (y - 200) ** 2 < 100**2).astype(np.uint8) * 255
    source = tmp_path / "source"
    for k in range(2):
        save(busi_file(source, "benign", k + 1), grey)
        save(busi_file(source, "benign", k + 1, "_mask"), disc)
    one = {"counts": {"benign": 2, "malignant": 0}, "training": 1, "test": 1, "split": "paper"}
    folder = write_busi(source, tmp_path / "raw", **one).folder
    image, label = written(folder, "benign_001")
    assert image.size == label.size == (256, 256)
    inner = np.asarray(image)[2:-2, 2:-2]
    assert inner.min() >= 125
    assert inner.max() <= 130
    assert set(np.unique(label)) == {0, 1}
    rows, columns = np.nonzero(np.asarray(label))
    assert abs((rows.mean() + 0.5) * 2 - 0.5 - 200) < 0.6
    assert abs((columns.mean() + 0.5) * 4 - 0.5 - 300) < 0.6
    described = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert described["size"] == "256 x 256"
    assert written(write_busi(source, tmp_path / "raw", size=7, overwrite=True, **one).folder, "benign_002")[
        0
    ].size == (7, 7)


def test_the_draw():
    names = [f"case_{k:03d}" for k in range(200)]
    a, b, rest = draw(names, (120, 50), seed=1)
    assert (len(a), len(b), len(rest)) == (120, 50, 30)
    assert sorted(a + b + rest) == names
    assert a == sorted(a)
    assert draw(names[::-1], (120, 50), seed=1) == [a, b, rest]
    assert draw(names, (120, 50), seed=2)[0] != a
    assert 0.2 < np.mean([int(name[5:]) < 100 for name in b]) < 0.8
    assert draw(["a", "b", "c", "d", "e"], (2, 2), seed=12345) == [
        ["b", "e"],
        ["c", "d"],
        ["a"],
    ]  # the same in all versions
    with pytest.raises(NnunetDtcError, match=r"cannot draw \[3\] from 2 names"):
        draw(["a", "b"], (3,))
    with pytest.raises(NnunetDtcError, match="1 of them different"):
        draw(["a", "a"], (1,))


# ------------------------------------------------------------------------------------------------------------------
# Invalid sources: each function damages a source and returns the expected problems.


def isic_missing(source: Path) -> list[str]:
    isic_image(source, "Training", 1).unlink()
    isic_mask(source, "Test", 12169).unlink()
    return [
        r"ISIC2018_Task1-2_Training_Input must contain 4 images, found 3",
        r"ISIC2018_Task1-2_Training_Input/ISIC_0000001\.jpg is missing",
        r"ISIC2018_Task1_Test_GroundTruth/ISIC_0012169_segmentation\.png is missing",
    ]


def isic_missing_both(source: Path) -> list[str]:
    isic_image(source, "Training", 1).unlink()
    isic_mask(source, "Training", 1).unlink()
    return [r"ISIC2018_Task1-2_Training_Input must contain 4 images, found 3"]


def isic_missing_folders(source: Path) -> list[str]:
    shutil.rmtree(isic_image(source, "Training", 0).parent)
    shutil.rmtree(isic_mask(source, "Test", 0).parent)
    return [r"Training_Input must contain 4 images, found 0", r"Test_GroundTruth must contain 2 masks, found none"]


def isic_too_many(source: Path) -> list[str]:
    shutil.copy(isic_image(source, "Test", 12169), isic_image(source, "Test", 12170))
    shutil.copy(isic_mask(source, "Test", 12169), isic_mask(source, "Test", 12170))
    return [r"ISIC2018_Task1-2_Test_Input must contain 2 images, found 3"]


def isic_doubled(source: Path) -> list[str]:
    folder = isic_image(source, "Validation", 0).parent
    shutil.copytree(folder, folder / folder.name)
    return [r"ISIC_0012255\.jpg exists 2 times: .*Input/ISIC2018_Task1-2_Validation_Input/ISIC.*, .*Input/ISIC_0012255"]


def isic_in_two_parts(source: Path) -> list[str]:
    isic_image(source, "Test", 12169).rename(isic_image(source, "Test", 3))
    isic_mask(source, "Test", 12169).rename(isic_mask(source, "Test", 3))
    return [r"Test_Input/ISIC_0000003\.jpg: is also in ISIC2018_Task1-2_Training_Input"]


def isic_unreadable(source: Path) -> list[str]:
    file = isic_image(source, "Training", 0)
    file.write_bytes(file.read_bytes()[:-40])
    isic_mask(source, "Training", 1).write_bytes(b"no image")
    isic_image(source, "Training", 3).write_bytes(b"")
    return [
        r"ISIC_0000000\.jpg: cannot be read \(image file is truncated",
        r"ISIC_0000001_segmentation\.png: cannot be read \(it is neither a PNG nor a JPEG image\)$",
        r"ISIC_0000003\.jpg: cannot be read",
    ]


def isic_other_size(source: Path) -> list[str]:
    save(isic_mask(source, "Training", 1), mask(31, 21))
    return [r"ISIC_0000001_segmentation\.png: must have the size of .*ISIC_0000001\.jpg, 31 x 21 pixels, has 21 x 31"]


def isic_unknown_values(source: Path) -> list[str]:
    array = mask(20, 31)
    array[0, :2] = 1, 254
    save(isic_mask(source, "Training", 0), array)
    save(isic_mask(source, "Validation", 12255), colours(20, 31))
    return [
        r"ISIC_0000000_segmentation\.png: a mask must contain 0 and 255 only, found 0, 1, 254, 255$",
        r"ISIC_0012255_segmentation\.png: a mask must be black and white, found colours",
    ]


def isic_sixteen_bits(source: Path) -> list[str]:
    file = isic_image(source, "Training", 0)
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((20, 31), np.uint16)).save(buffer, "PNG")
    file.write_bytes(buffer.getvalue())
    return [r"ISIC_0000000\.jpg: must have 8 bits per channel"]


def isic_no_lesion(source: Path) -> list[str]:
    save(isic_mask(source, "Training", 1), np.zeros((21, 31), np.uint8))
    save(isic_mask(source, "Test", 12169), np.zeros((20, 31), np.uint8), "RGB")
    return [
        r"ISIC_0000001_segmentation\.png: a mask must have foreground pixels, all of its pixels are 0$",
        r"ISIC_0012169_segmentation\.png: a mask must have foreground",
    ]


def isic_lesion_vanishes(source: Path) -> list[str]:
    """Three pixels of 900 x 700, between the columns 300 and 304 that nearest neighbours select at 256 x 256."""
    dot = np.zeros((700, 900), np.uint8)
    dot[341:344, 302] = 255
    save(isic_image(source, "Training", 1), colours(700, 900))
    save(isic_mask(source, "Training", 1), dot)
    return [
        r"ISIC_0000001_segmentation\.png: a lesion must keep a pixel when its mask is resized to 256 x 256, all of its "
        r"3 pixels vanish$"
    ]


def busi_no_lesion(source: Path) -> list[str]:
    for more in ("_mask", "_mask_1", "_mask_2"):
        save(busi_file(source, "malignant", 3, more), np.zeros((18, 23), np.uint8))
    return [rf"malignant \(3\)_mask{more}\.png: a mask must have foreground pixels" for more in ("", "_1", "_2")]


def busi_date(source: Path) -> list[str]:
    """A file name that looks like a mask with a very large number must not make a list of all numbers."""
    for number, ending in ((1, "20201231"), (2, "9" * 40)):
        shutil.copy(
            busi_file(source, "benign", number, "_mask"), busi_file(source, "benign", number, f"_mask_{ending}")
        )
    shutil.copy(busi_file(source, "benign", 1), source / "benign" / f"benign ({'8' * 100}).png")
    return [
        r"benign \(1\)_mask_1\.png is missing, but .*benign \(1\)_mask_20201231\.png is there$",
        r"benign \(2\)_mask_1\.png is missing, but .*benign \(2\)_mask_9+\.png is there$",
        r"benign \(8+\)\.png: is not one of the 4 benign images$",
    ]


def busi_missing(source: Path) -> list[str]:
    busi_file(source, "benign", 4).unlink()
    busi_file(source, "malignant", 1, "_mask").unlink()
    busi_file(source, "malignant", 3, "_mask_1").unlink()
    return [
        r"benign/benign \(4\)\.png is missing",
        r"malignant/malignant \(1\)_mask\.png is missing",
        r"malignant/malignant \(3\)_mask_1\.png is missing",
    ]


def busi_doubled(source: Path) -> list[str]:
    shutil.copytree(source / "malignant", source / "again" / "malignant")
    return [r"malignant \(1\)\.png exists 2 times: .*again/malignant/malignant \(1\)\.png, .*malignant \(1\)"]


def busi_unknown(source: Path) -> list[str]:
    shutil.copy(busi_file(source, "benign", 1), busi_file(source, "benign", 5))
    return [r"benign \(5\)\.png: is not one of the 4 benign images"]


def busi_unreadable(source: Path) -> list[str]:
    file = busi_file(source, "benign", 1)
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 255  # the chunk's checksum
    file.write_bytes(whole)
    return [r"benign \(1\)\.png: cannot be read"]


def busi_other_size(source: Path) -> list[str]:
    save(busi_file(source, "malignant", 3, "_mask_2"), mask(18, 22))
    return [r"malignant \(3\)_mask_2\.png: must have the size of .*malignant \(3\)\.png, 23 x 18 pixels, has 22 x 18"]


def busi_unknown_values(source: Path) -> list[str]:
    save(busi_file(source, "benign", 1, "_mask"), RNG.integers(0, 256, (18, 21)).astype(np.uint8))
    return [r"benign \(1\)_mask\.png: a mask must contain 0 and 255 only, found \d+, .* \.\.\.$"]


WRONG_ISIC = [
    isic_missing,
    isic_missing_both,
    isic_missing_folders,
    isic_too_many,
    isic_doubled,
    isic_in_two_parts,
    isic_unreadable,
    isic_other_size,
    isic_unknown_values,
    isic_sixteen_bits,
    isic_no_lesion,
    isic_lesion_vanishes,
]
WRONG_BUSI = [
    busi_missing,
    busi_doubled,
    busi_unknown,
    busi_unreadable,
    busi_other_size,
    busi_unknown_values,
    busi_no_lesion,
    busi_date,
]


def assert_named(error: SourceError, patterns: list[str]) -> None:
    assert "nothing was written" in str(error)
    for pattern in patterns:
        assert any(re.search(pattern, problem) for problem in error.problems), (pattern, error.problems)
        assert any(re.search(pattern, line) for line in str(error).splitlines())


@pytest.mark.parametrize("spoil", WRONG_ISIC, ids=lambda spoil: spoil.__name__)
def test_problems_of_isic_are_listed_before_anything_is_written(isic, tmp_path, spoil):
    patterns = spoil(isic)
    with pytest.raises(SourceError) as caught:
        write_isic2018(isic, tmp_path / "raw", **ISIC)
    assert_named(caught.value, patterns)
    assert len(caught.value.problems) == len(patterns)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("spoil", WRONG_BUSI, ids=lambda spoil: spoil.__name__)
def test_problems_of_busi_are_listed_before_anything_is_written(busi_source, tmp_path, spoil):
    patterns = spoil(busi_source)
    with pytest.raises(SourceError) as caught:
        write_busi(write_zip(tmp_path / "busi.zip", busi_source), tmp_path / "raw", **BUSI)
    assert_named(caught.value, patterns)
    assert len(caught.value.problems) == (8 if spoil is busi_doubled else len(patterns))
    assert not (tmp_path / "raw").exists()


def test_one_error_lists_all_problems(isic, tmp_path):
    patterns = [p for spoil in (isic_unreadable, isic_too_many, isic_missing) for p in spoil(isic)]
    with pytest.raises(SourceError, match=r"^7 problems in ") as caught:
        write_isic2018(isic, tmp_path / "raw", **ISIC)
    assert_named(caught.value, patterns)


@pytest.mark.parametrize(("write", "counts"), [(write_isic2018, ISIC), (write_busi, BUSI)], ids=["isic", "busi"])
def test_no_source(tmp_path, write, counts):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write(tmp_path / "nowhere", tmp_path / "raw", **counts)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="found no image"):
        write(tmp_path / "empty", tmp_path / "raw", **counts)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png", "..\\evil.png", "C:evil.png", "link"])
@pytest.mark.parametrize("of", ["isic", "busi"])
def test_a_zip_that_points_outside_is_refused(isic, busi_source, tmp_path, name, of):
    if of == "isic":  # one of the six archives
        folder = isic_image(isic, "Test", 0).parent
        file, given = write_zip(folder.with_suffix(".zip"), folder), isic
        shutil.rmtree(folder)
    else:
        file = given = write_zip(tmp_path / "busi.zip", busi_source)
    with zipfile.ZipFile(file, "a") as archive:
        member = zipfile.ZipInfo(name)
        if name == "link":
            member.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(member, b"/etc/passwd")
    before = content(tmp_path)
    with pytest.raises(SourceError, match="is a link" if name == "link" else "points outside of the archive"):
        write_isic2018(given, tmp_path / "raw", **ISIC) if of == "isic" else write_busi(given, tmp_path / "raw", **BUSI)
    assert content(tmp_path) == before
    assert not (tmp_path / "raw").exists()


def test_a_zip_with_a_member_without_a_name_is_refused(busi_source, tmp_path):
    file = write_zip(tmp_path / "busi.zip", busi_source)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("#", b"")
    whole = file.read_bytes()
    at = whole.rindex(b"PK\x01\x02")  # the length of the name in the directory becomes that of a comment
    entry = bytearray(whole[at : at + 46])
    entry[28:30], entry[32:34] = b"\0\0", b"\1\0"
    file.write_bytes(whole[:at] + entry + whole[at + 46 :])
    with pytest.raises(SourceError, match=r"busi\.zip/: has no name"):
        write_busi(file, tmp_path / "raw", **BUSI)


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "256", 8193, 10**12])
def test_a_bad_size(busi_source, tmp_path, size):
    with pytest.raises(NnunetDtcError, match=r"must be a number of pixels in 1\.\.8192 or none"):
        write_busi(busi_source, tmp_path / "raw", size=size, **BUSI)
    assert not (tmp_path / "raw").exists()


# ------------------------------------------------------------------------------------------------------------------
# Interruptions and overwriting.


@pytest.mark.parametrize("at", [("checking", 1), ("writing", 1), ("writing", 6)])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(busi_source, tmp_path, at):
    def interrupt(step: str, done: int, total: int) -> None:
        if (step, done) == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_busi(busi_source, tmp_path / "raw", progress=interrupt, **BUSI)
    assert not list((tmp_path / "raw").glob("*"))
    first = content(write_busi(busi_source, tmp_path / "raw", **BUSI).folder)
    with pytest.raises(KeyboardInterrupt):
        write_busi(busi_source, tmp_path / "raw", progress=interrupt, overwrite=True, size=7, **BUSI)
    assert content(tmp_path / "raw" / "Dataset019_BUSI") == first
    assert [f.name for f in (tmp_path / "raw").iterdir()] == ["Dataset019_BUSI"]


def test_nothing_is_overwritten_unless_asked(isic, tmp_path):
    first = content(write_isic2018(isic, tmp_path / "raw", **ISIC).folder)
    with pytest.raises(FileExistsError, match=r"id 18 .* or replace it with --overwrite"):
        write_isic2018(isic, tmp_path / "raw", seed=7, **ISIC)
    assert content(tmp_path / "raw" / "Dataset018_ISIC2018") == first
    write_isic2018(isic, tmp_path / "raw", seed=7, overwrite=True, **ISIC)
    second = content(tmp_path / "raw" / "Dataset018_ISIC2018")
    assert second.keys() != first.keys()
    assert json.loads(second["dataset.json"])["split_seed"] == 7


# ------------------------------------------------------------------------------------------------------------------
# The commands, with as many images as the real data sets have.


def run(*arguments):
    return CliRunner().invoke(app, ["prepare", *map(str, arguments)], env={"COLUMNS": "400"})


def encoded(array: np.ndarray, ending: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, ending)
    return buffer.getvalue()


def set_folders(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))


def test_command_isic2018(tmp_path, monkeypatch):
    label = encoded(mask(4, 5), "PNG")
    number = 0
    for part, count in isic2018.COUNTS.items():
        isic_image(tmp_path, part, 0).parent.mkdir()
        isic_mask(tmp_path, part, 0).parent.mkdir()
        for number in range(number, number + count):  # noqa: B020 continues after the last part
            isic_image(tmp_path, part, number).write_bytes(encoded(colours(4, 5), "JPEG"))
            isic_mask(tmp_path, part, number).write_bytes(label)
        number += 1
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    assert "nnUNet_raw is not set" in run("isic2018", tmp_path).output
    assert "nnUNet_preprocessed is not set" in run("isic2018", tmp_path, "--raw", tmp_path / "raw").output
    set_folders(monkeypatch, tmp_path)
    for size in ("big", "-1", "9" * 5000):
        wrong = run("isic2018", tmp_path, "--size", size).output
        assert f"--size must be a number of pixels or none, got '{size[:100]}'" in wrong
    done = run("isic2018", tmp_path, "--size", "none")
    assert done.exit_code == 0, done.output
    assert "Dataset018_ISIC2018 (2600 training and 1094 test cases)" in done.output
    assert "near duplicates: none found" in done.output
    assert "drawn with seed 12345" in done.output
    assert "Now: nnUNetv2_plan_and_preprocess -d 18" in done.output
    folder = tmp_path / "raw" / "Dataset018_ISIC2018"
    assert [len(list((folder / d).iterdir())) for d in ("imagesTr", "labelsTs")] == [2600, 1094]
    assert not (folder / "left_out.txt").exists()
    assert not (folder / "near_duplicates.csv").exists()
    folds = json.loads((tmp_path / "preprocessed/Dataset018_ISIC2018/splits_final.json").read_text())
    cases = sorted(file.name[:-4] for file in (folder / "labelsTr").iterdir())
    assert folds == generate_crossval_split(cases, seed=12345, n_splits=5)  # without groups, as nnU-Net would draw them


def write_whole_busi(source: Path) -> Path:
    """647 different images, but (benign 433) and (malignant 145) are one picture, and (benign 7) to (benign 9)."""
    label = encoded(mask(4, 4), "PNG")
    for kind, count in busi.COUNTS.items():
        (source / kind).mkdir(parents=True)
        for number in range(1, count + 1):
            busi_file(source, kind, number).write_bytes(encoded(colours(4, 4), "PNG"))
            busi_file(source, kind, number, "_mask").write_bytes(label)
    shutil.copy(busi_file(source, "benign", 433), busi_file(source, "malignant", 145))
    for number in (8, 9):
        shutil.copy(busi_file(source, "benign", 7), busi_file(source, "benign", number))
    return source


def test_command_busi(tmp_path, monkeypatch):
    source = write_whole_busi(tmp_path / "Dataset_BUSI_with_GT")
    set_folders(monkeypatch, tmp_path)
    done = run("busi", source, "--size", "8", "--seed", "3")
    assert done.exit_code == 0, done.output
    assert "Dataset019_BUSI (520 training and 87 test cases)" in done.output
    assert "drawn with seed 3" in done.output
    assert "near duplicates: 5 images in 2 groups, listed in near_duplicates.csv; each group is in one" in done.output
    assert "groups of near duplicates with different classes: 1 (benign_433 and malignant_145)" in done.output
    assert f"five folds, for every trainer: {tmp_path}/preprocessed/Dataset019_BUSI/splits_final.json" in done.output
    listed = (tmp_path / "raw/Dataset019_BUSI/left_out.txt").read_text().split()
    assert len(listed) == 40
    assert "left out: 40 images, listed in left_out.txt" in done.output
    again = run("busi", source)
    assert again.exit_code == 1
    assert "replace it with --overwrite" in again.output
    both = run("busi", source, "-d", "20", "--split", "paper", "--duplicates", "drop")
    assert both.exit_code == 1
    assert "choose one of the two" in both.output
    dropped = run("busi", source, "-d", "20", "--duplicates", "drop", "--size", "8")
    assert dropped.exit_code == 0, dropped.output
    assert "Dataset020_BUSI (520 training and 87 test cases)" in dropped.output
    assert "in 2 groups, listed in near_duplicates.csv; at most one of each group is used" in dropped.output
    out = (tmp_path / "raw/Dataset020_BUSI/left_out.txt").read_text().split()
    assert len(out) == 40
    assert {"benign_433", "malignant_145", "benign_008", "benign_009"} <= {*out}
    busi_file(source, "malignant", 210).unlink()
    wrong = run("busi", source, "--overwrite")
    assert wrong.exit_code == 1
    assert "malignant/malignant (210).png is missing" in wrong.output


def test_command_busi_paper(tmp_path, monkeypatch):
    """The draw of independent cases is unchanged, and reports near duplicates in both parts."""
    source = write_whole_busi(tmp_path / "Dataset_BUSI_with_GT")
    set_folders(monkeypatch, tmp_path)
    names = [f"{kind}_{number:03d}" for kind, count in busi.COUNTS.items() for number in range(1, count + 1)]
    seed = next(  # with exactly one of the three in the test part and another one in training
        seed
        for seed in range(100)
        if [sum(f"benign_{k:03d}" in part for k in (7, 8, 9)) for part in draw(names, (520, 87), seed)[:2]] == [2, 1]
        and "benign_433" in (training := draw(names, (520, 87), seed)[0])
        and "malignant_145" in training
    )
    done = run("busi", source, "--size", "8", "--split", "paper", "--seed", str(seed))
    assert done.exit_code == 0, done.output
    folder = tmp_path / "raw/Dataset019_BUSI"
    assert [
        sorted(file.name[:-4] for file in (folder / labels).iterdir()) for labels in ("labelsTr", "labelsTs")
    ] == draw(names, (520, 87), seed)[:2]
    assert "note: 1 of the 87 test cases have a near duplicate among the training cases" in done.output
    assert "2 groups, listed in near_duplicates.csv; every image was drawn independently" in done.output
    described = json.loads((folder / "dataset.json").read_text())
    assert (described["split"], described["split_seed"], described["near_duplicates"]) == ("paper", seed, "keep")
