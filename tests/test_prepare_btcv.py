"""BTCV in nnU-Net's raw layout: nnU-Net accepts valid sources, and invalid ones are refused with all problems."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from nnunetv2.utilities.crossval_split import generate_crossval_split
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.datasets import btcv
from nnunet_dtc.study.datasets.btcv import write_btcv
from nnunet_dtc.study.datasets.sources import SourceError

CASES = (1, 2, 3, 9, 21, 22, 40)
SPACING, ORIGIN = (0.71, 0.83, 3.1), (-170.25, 12.5, -904.125)
DIRECTION = (0, -1, 0, 1, 0, 0, 0, 0, 1)


def write_volume(file: Path, array: np.ndarray, spacing=SPACING, origin=ORIGIN, direction=DIRECTION) -> Path:
    volume = sitk.GetImageFromArray(array, isVector=False)
    volume.SetSpacing(spacing)
    volume.SetOrigin(origin)
    volume.SetDirection(direction)
    file.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(volume, str(file))
    return file


def write_source(folder: Path, cases=CASES) -> Path:
    """`RawData` in `folder`, with (z, y, x) = (4, 6, 5) voxels, and an unlabelled case."""
    rng = np.random.default_rng(0)
    for number in cases:
        image = rng.integers(-1000, 1000, (4, 6, 5)).astype(np.int16)
        write_volume(folder / f"RawData/Training/img/img{number:04d}.nii.gz", image)
        labels = rng.integers(0, 14, (4, 6, 5)).astype(np.uint8)
        write_volume(folder / f"RawData/Training/label/label{number:04d}.nii.gz", labels)
    write_volume(folder / "RawData/Testing/img/img0061.nii.gz", image)
    (folder / "RawData/.DS_Store").write_bytes(b"")
    return folder / "RawData"


def write_zip(file: Path, folder: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
        archive.writestr("__MACOSX/RawData/Training/img/._img0001.nii.gz", b"")
    return file


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    return write_source(tmp_path_factory.mktemp("source"))


@pytest.fixture
def source(pristine, tmp_path) -> Path:
    return shutil.copytree(pristine, tmp_path / "source" / "RawData")


def prepare(source: Path, tmp_path: Path, **more):
    arguments = {"test_cases": (2, 40), "cases": CASES, **more}
    return write_btcv(source, tmp_path / "raw", tmp_path / "preprocessed", **arguments)


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def nothing_written(tmp_path: Path) -> bool:
    return not (tmp_path / "raw").exists() and not (tmp_path / "preprocessed").exists()


def image_file(source: Path, number: int) -> Path:
    return source / f"Training/img/img{number:04d}.nii.gz"


def label_file(source: Path, number: int) -> Path:
    return source / f"Training/label/label{number:04d}.nii.gz"


def test_the_cases_and_the_split():
    assert len(btcv.CASES) == 30
    assert [n for n in btcv.CASES if n not in btcv.TEST_CASES] == [
        *(5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40)
    ]
    assert list(btcv.LABELS) == [
        "background",
        "spleen",
        "right_kidney",
        "left_kidney",
        "gallbladder",
        "esophagus",
        "liver",
        "stomach",
        "aorta",
        "inferior_vena_cava",
        "portal_and_splenic_vein",
        "pancreas",
        "right_adrenal_gland",
        "left_adrenal_gland",
    ]
    assert list(btcv.LABELS.values()) == list(range(14))


@pytest.mark.parametrize("kind", ["folder", "parent", "zip"])
def test_layout_and_bytes(source, tmp_path, kind):
    given = {"folder": source, "parent": source.parent}.get(kind) or write_zip(tmp_path / "RawData.zip", source)
    steps = []
    done = prepare(given, tmp_path, progress=lambda *step: steps.append(step))
    assert done.folder == tmp_path / "raw" / "Dataset017_BTCV"
    assert done.test == ["BTCV_0002", "BTCV_0040"]
    assert done.training == ["BTCV_0001", "BTCV_0003", "BTCV_0009", "BTCV_0021", "BTCV_0022"]
    assert not done.notes
    expected = {
        f"{what}s{'Ts' if number in (2, 40) else 'Tr'}/BTCV_{number:04d}{'_0000' * (what == 'image')}.nii.gz": (
            image_file if what == "image" else label_file
        )(source, number).read_bytes()
        for number in CASES
        for what in ("image", "label")
    }
    written = content(done.folder)
    described = json.loads(written.pop("dataset.json"))
    assert written == expected  # byte for byte, including the geometry
    assert described["channel_names"] == {"0": "CT"}
    assert described["numTraining"] == 5
    assert described["labels"] == btcv.LABELS
    assert described["test_cases"] == "2, 40"
    assert [f.name for f in (tmp_path / "raw").iterdir()] == ["Dataset017_BTCV"]  # no temporary folder is left
    assert steps == [(step, k, 14) for step in ("checking", "copying") for k in range(1, 15)]


def test_nnunet_accepts_it_and_would_draw_these_folds(source, tmp_path, capfd):
    done = prepare(source, tmp_path)
    verify_dataset_integrity(str(done.folder), num_processes=1)
    printed = capfd.readouterr().out
    assert "verify_dataset_integrity Done" in printed
    assert "mismatch" not in printed
    assert done.splits == tmp_path / "preprocessed" / "Dataset017_BTCV" / "splits_final.json"
    splits = json.loads(done.splits.read_text(encoding="utf-8"))
    assert splits == generate_crossval_split(list(np.sort(done.training)), seed=12345, n_splits=5)


def test_a_plain_nii_is_compressed_unchanged(source, tmp_path):
    plain = gzip.decompress(image_file(source, 1).read_bytes())
    image_file(source, 1).unlink()
    (source / "Training/img/img0001.nii").write_bytes(plain)
    written = prepare(source, tmp_path).folder / "imagesTr/BTCV_0001_0000.nii.gz"
    assert gzip.decompress(written.read_bytes()) == plain
    volume = sitk.ReadImage(str(written))
    assert np.allclose(volume.GetOrigin(), ORIGIN)
    assert np.allclose(volume.GetSpacing(), SPACING)
    assert np.allclose(volume.GetDirection(), DIRECTION)


def test_endings_in_capitals(source, tmp_path):
    expected = content(prepare(source, tmp_path / "plain").folder)
    plain = gzip.decompress(image_file(source, 3).read_bytes())
    image_file(source, 3).unlink()
    (source / "Training/img/img0003.NII").write_bytes(plain)
    for file, ending in (
        (image_file(source, 1), ".NII.GZ"),
        (label_file(source, 1), ".nii.GZ"),  # SimpleITK itself does not read this one
        (label_file(source, 40), ".Nii.gz"),
    ):
        file.rename(str(file).removesuffix(".nii.gz") + ending)
    archive = write_zip(tmp_path / "RawData.ZIP", source)
    for given, where in ((source, "folder"), (archive, "zip")):
        written = content(prepare(given, tmp_path / where).folder)
        assert written.keys() == expected.keys()
        assert gzip.decompress(written.pop("imagesTr/BTCV_0003_0000.nii.gz")) == plain
        assert all(expected[name] == written[name] for name in written)


def test_a_path_that_is_not_utf8(source, tmp_path):
    """SimpleITK ends the process for such a path."""
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    shutil.copytree(source, odd / "RawData")
    with pytest.raises(SourceError) as caught:
        prepare(odd, tmp_path)
    assert len(caught.value.problems) == 14
    assert all(problem.endswith("cannot be read (its path is not UTF-8)") for problem in caught.value.problems)
    assert nothing_written(tmp_path)
    with pytest.raises(NnunetDtcError, match="the path of nnUNet_raw must be UTF-8"):
        write_btcv(source, odd / "raw", tmp_path / "preprocessed", test_cases=(2, 40), cases=CASES)
    assert not (odd / "raw").exists()


def test_a_long_list_of_problems_is_shortened(source, tmp_path):
    for number in range(100, 250):
        shutil.copy(image_file(source, 1), image_file(source, number))
    with pytest.raises(SourceError, match=r"^150 problems in ") as caught:
        prepare(source, tmp_path)
    assert len(caught.value.problems) == 150
    lines = str(caught.value).splitlines()
    assert len(lines) == 102
    assert "img0199.nii.gz" in lines[100]
    assert lines[101] == "  ... and 50 more"


def missing(source: Path) -> list[str]:
    image_file(source, 3).unlink()
    label_file(source, 21).unlink()
    return [r"Training/img/img0003\.nii\.gz is missing", r"Training/label/label0021\.nii\.gz is missing"]


def doubled_elsewhere(source: Path) -> list[str]:
    shutil.copytree(source / "Training/label", source / "RawData/Training/label")
    return [
        r"label0001.* 2 times: .*RawData/RawData/Training/label/label0001\.nii\.gz, .*RawData/Training/label/label0"
    ]


def doubled_by_ending(source: Path) -> list[str]:
    (source / "Training/img/img0009.nii").write_bytes(gzip.decompress(image_file(source, 9).read_bytes()))
    return [r"img0009.* 2 times: .*img0009\.nii, .*img0009\.nii\.gz"]


def unknown_case(source: Path) -> list[str]:
    shutil.copy(image_file(source, 1), image_file(source, 11))
    return [r"img0011\.nii\.gz: is not one of the labelled cases 0001-0003, 0009, 0021-0022, 0040"]


def labelled_test_case(source: Path) -> list[str]:
    shutil.copy(label_file(source, 1), label_file(source, 61))
    return [r"label0061\.nii\.gz: is not one of the labelled cases"]


def truncated(source: Path) -> list[str]:
    whole = image_file(source, 2).read_bytes()
    image_file(source, 2).write_bytes(whole[: len(whole) * 2 // 3])
    plain = gzip.decompress(image_file(source, 3).read_bytes())
    image_file(source, 3).write_bytes(gzip.compress(plain[:-7]))
    return [
        r"img0002\.nii\.gz: cannot be read",
        rf"img0003\.nii\.gz: cannot be read \(it is cut off: {len(plain)} bytes are needed",
    ]


def damaged(source: Path) -> list[str]:
    whole = bytearray(label_file(source, 2).read_bytes())
    whole[-6] ^= 255  # the checksum
    label_file(source, 2).write_bytes(whole)
    label_file(source, 3).write_bytes(b"no volume")
    return [r"label0002\.nii\.gz: cannot be read", r"label0003\.nii\.gz: cannot be read"]


def other_size(source: Path) -> list[str]:
    write_volume(label_file(source, 22), np.ones((4, 6, 7), np.uint8))
    return [r"label0022\.nii\.gz: must have the size of .*img0022\.nii\.gz, \(5, 6, 4\), has \(7, 6, 4\)"]


def other_spacing(source: Path) -> list[str]:
    write_volume(label_file(source, 22), np.ones((4, 6, 5), np.uint8), spacing=(0.71, 0.83, 3.0))
    return [r"label0022\.nii\.gz: must have the spacing of .*img0022"]


def four_axes(source: Path) -> list[str]:
    write_volume(image_file(source, 1), np.zeros((2, 3, 4, 5), np.int16), (1,) * 4, (0,) * 4, np.eye(4).ravel())
    return [r"img0001\.nii\.gz: must be a volume with three axes, has the size \(5, 4, 3, 2\)"]


def unknown_labels(source: Path) -> list[str]:
    labels = np.zeros((4, 6, 5))
    labels[0, 0, :3] = 14, 200, 13
    write_volume(label_file(source, 1), labels.astype(np.int16))
    labels[0, 0, :3] = -1, 13, 5
    write_volume(label_file(source, 2), labels.astype(np.int16))
    labels[0, 0, :3] = 2.5, 13, 5
    write_volume(label_file(source, 3), labels.astype(np.float32))
    for number, value in ((9, np.nan), (21, np.inf)):  # which SimpleITK reads as 0
        labels[0, 0, :3] = value, 13, 5
        write_volume(label_file(source, number), labels.astype(np.float32))
    write_volume(label_file(source, 22), labels.astype(np.complex64))
    return [
        r"label0001.*0\.\.13, found 14, 200$",
        r"label0002.*found -1$",
        r"label0003.*found 2\.5$",
        r"label0009.*found nan$",
        r"label0021.*found inf$",
        r"label0022.*complex",
    ]


def no_organ(source: Path) -> list[str]:
    write_volume(label_file(source, 9), np.zeros((4, 6, 5), np.uint8))
    write_volume(label_file(source, 40), np.zeros((4, 6, 5), np.float32))
    return [
        r"label0009\.nii\.gz: must contain organs, all of its voxels are background$",
        r"label0040\.nii\.gz: must contain organs",
    ]


WRONG = [
    missing,
    doubled_elsewhere,
    doubled_by_ending,
    unknown_case,
    labelled_test_case,
    truncated,
    damaged,
    other_size,
    other_spacing,
    four_axes,
    unknown_labels,
    no_organ,
]


def assert_named(error: SourceError, patterns: list[str]) -> None:
    for pattern in patterns:
        assert any(re.search(pattern, problem) for problem in error.problems), (pattern, error.problems)
        assert any(re.search(pattern, line) for line in str(error).splitlines())


@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("spoil", WRONG, ids=lambda spoil: spoil.__name__)
def test_problems_are_listed_before_anything_is_written(source, tmp_path, spoil, zipped):
    patterns = spoil(source)
    given = write_zip(tmp_path / "RawData.zip", source) if zipped else source
    with pytest.raises(SourceError, match="nothing was written") as caught:
        prepare(given, tmp_path)
    assert_named(caught.value, patterns)
    assert len(caught.value.problems) == (7 if spoil is doubled_elsewhere else len(patterns))
    assert nothing_written(tmp_path)


def test_one_error_lists_all_problems(source, tmp_path):
    patterns = [p for spoil in (missing, damaged, other_size, doubled_by_ending, unknown_case) for p in spoil(source)]
    with pytest.raises(SourceError, match=f"^{len(patterns)} problems in ") as caught:
        prepare(source, tmp_path)
    assert_named(caught.value, patterns)


def test_labels_of_any_type_are_accepted_and_another_origin_is_reported(source, tmp_path):
    labels = np.zeros((4, 6, 5))
    labels[1] = 13
    write_volume(label_file(source, 1), labels.astype(np.float64))
    write_volume(label_file(source, 3), labels.astype(np.int16), origin=(0, 0, 0))
    done = prepare(source, tmp_path)
    assert len(done.notes) == 1
    assert "label0003.nii.gz: its origin is not that of the image" in done.notes[0]


def test_links_in_a_folder_are_followed_once(source, tmp_path):
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "Training").symlink_to(source / "Training")
    (source / "Training" / "back").symlink_to(linked)
    assert len(prepare(linked, tmp_path).training) == 5


def test_no_source(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere"):
        prepare(tmp_path / "nowhere", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="empty: must contain img0001"):
        prepare(tmp_path / "empty", tmp_path)
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(SourceError, match=r"cut\.zip: must be a folder or a zip archive"):
        prepare(tmp_path / "cut.zip", tmp_path)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "RawData/../../evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_a_zip_that_points_outside_is_refused(source, tmp_path, name):
    file = write_zip(tmp_path / "RawData.zip", source)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"evil")
    before = content(tmp_path)
    with pytest.raises(SourceError, match=r"evil\.txt: points outside of the archive"):
        prepare(file, tmp_path)
    assert content(tmp_path) == before
    assert nothing_written(tmp_path)


def test_a_zip_with_a_link_or_a_duplicate_or_damaged_member_is_refused(source, tmp_path):
    file = write_zip(tmp_path / "link.zip", source)
    with zipfile.ZipFile(file, "a") as archive:
        link = zipfile.ZipInfo("RawData/Training/img/img0010.nii.gz")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(SourceError, match=r"img0010\.nii\.gz: is a link"):
        prepare(file, tmp_path)

    file = write_zip(tmp_path / "duplicate.zip", source)
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.write(image_file(source, 1), "RawData/Training/img/img0001.nii.gz")
    with pytest.raises(SourceError, match=r"img0001\.nii\.gz exists 2 times"):
        prepare(file, tmp_path)

    file = write_zip(tmp_path / "damaged.zip", source)
    whole = bytearray(file.read_bytes())
    whole[whole.index(image_file(source, 9).read_bytes()) + 30] ^= (
        255  # stored without compression, so that the archive's checksum is wrong
    )
    file.write_bytes(whole)
    with pytest.raises(SourceError, match=r"img0009\.nii\.gz: cannot be read \(Bad CRC"):
        prepare(file, tmp_path)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset_id": 1000}, r"1\.\.999, got 1000"),
        ({"test_cases": (2, 4)}, "different ones of 0001-0003, .* got 2, 4"),
        ({"test_cases": (2, 2)}, "different ones of .* got 2, 2"),
        ({"test_cases": ()}, "1 to 2 test cases .*five folds.* got 0"),
        ({"test_cases": (1, 2, 3)}, "1 to 2 test cases .* got 3"),
        ({"test_cases": range(10**6)}, r"different ones of .* got 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, \.\.\.$"),
    ],
)
def test_bad_arguments(source, tmp_path, arguments, message):
    with pytest.raises(NnunetDtcError, match=message):
        prepare(source, tmp_path, **arguments)
    assert nothing_written(tmp_path)


@pytest.mark.parametrize("at", [("checking", 5), ("copying", 1), ("copying", 14)])
@pytest.mark.parametrize("zipped", [False, True], ids=["folder", "zip"])
def test_an_interrupted_run_leaves_nothing_and_can_be_repeated(source, tmp_path, at, zipped):
    def interrupt(step: str, done: int, total: int) -> None:
        if (step, done) == at:
            raise KeyboardInterrupt

    given = write_zip(tmp_path / "RawData.zip", source) if zipped else source
    with pytest.raises(KeyboardInterrupt):
        prepare(given, tmp_path, progress=interrupt)
    assert not list((tmp_path / "raw").glob("*"))
    assert not (tmp_path / "preprocessed").exists()
    assert len(prepare(given, tmp_path).training) == 5


def test_interrupted_between_the_folds_and_the_data_set(source, tmp_path, monkeypatch):
    real = btcv.write_splits

    def write_and_stop(*arguments) -> None:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(btcv, "write_splits", write_and_stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path)
    monkeypatch.undo()
    assert not list((tmp_path / "raw").iterdir())
    assert prepare(source, tmp_path).folder.is_dir()


@pytest.mark.parametrize("name", ["Dataset017_BTCV", "Dataset017_Other"])
def test_nothing_is_overwritten_unless_asked(source, tmp_path, name):
    mine = tmp_path / "raw" / name / "imagesTr" / "mine.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=f"id 17.*{name}") as caught:
        prepare(source, tmp_path)
    assert ("--overwrite" in str(caught.value)) == (name == "Dataset017_BTCV")
    if name == "Dataset017_Other":
        with pytest.raises(FileExistsError, match="Other"):  # nnU-Net allows one name per id
            prepare(source, tmp_path, overwrite=True)
    else:

        def interrupt(step: str, done: int, total: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path, overwrite=True, progress=interrupt)
        assert mine.read_bytes() == b"mine"
        done = prepare(source, tmp_path, overwrite=True)
        assert not mine.exists()
        assert len(content(done.folder)) == 15
    assert [f.name for f in (tmp_path / "raw").iterdir()] == [name]


def test_the_old_data_set_is_restored_if_replacing_fails(source, tmp_path, monkeypatch):
    first = content(prepare(source, tmp_path).folder)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.parent.name.startswith(".Dataset017_BTCV."):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no"):
        prepare(source, tmp_path, overwrite=True)
    assert content(tmp_path / "raw" / "Dataset017_BTCV") == first
    assert [f.name for f in (tmp_path / "raw").iterdir()] == ["Dataset017_BTCV"]


def test_a_source_inside_the_data_set_that_would_be_replaced(source, tmp_path):
    inside = tmp_path / "raw" / "Dataset017_BTCV" / "RawData"
    shutil.copytree(source, inside)
    with pytest.raises(NnunetDtcError, match="the source must be outside"):
        prepare(inside, tmp_path, overwrite=True)
    assert inside.is_dir()


def test_existing_folds(source, tmp_path):
    done = prepare(source, tmp_path)
    splits = json.loads(done.splits.read_text(encoding="utf-8"))
    splits[0]["train"].reverse()  # the same folds
    done.splits.write_text(json.dumps(splits), encoding="utf-8")
    mine = done.splits.read_bytes()
    prepare(source, tmp_path, overwrite=True)
    assert done.splits.read_bytes() == mine

    before = content(tmp_path)
    for other in ({"test_cases": (1, 3)}, {"cases": (*CASES, 23), "test_cases": (2, 40)}):
        with pytest.raises(FileExistsError, match=r"splits_final\.json exists with other splits"):
            prepare(source, tmp_path, overwrite=True, **other)
    assert content(tmp_path) == before
    done.splits.write_text("{", encoding="utf-8")
    with pytest.raises(FileExistsError, match="with other splits"):
        prepare(source, tmp_path, overwrite=True)


def test_another_preprocessed_data_set_of_this_id(source, tmp_path):
    (tmp_path / "preprocessed" / "Dataset017_Other").mkdir(parents=True)
    with pytest.raises(FileExistsError, match=r"one name per id, found .*Dataset017_Other"):
        prepare(source, tmp_path)
    assert not (tmp_path / "raw").exists()


def test_command(tmp_path, monkeypatch):
    def run(*arguments):
        return CliRunner().invoke(app, ["prepare", "btcv", *arguments], env={"COLUMNS": "400"})

    source = write_source(tmp_path / "source", btcv.CASES)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.delenv(variable, raising=False)
    assert "nnUNet_raw is not set" in run(str(source)).output
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert "nnUNet_preprocessed is not set" in run(str(source)).output
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "preprocessed"))
    for text in ("1;2", "1,-2", "\u0661", ",", "9" * 5000):
        wrong = run(str(source), "--test-cases", text)
        assert wrong.exit_code == 1
        assert f"must be numbers with commas between them, got '{text[:100]}'" in wrong.output
    done = run(str(source), "-d", "17")
    assert done.exit_code == 0, done.output
    assert "Dataset017_BTCV (18 training and 12 test cases)" in done.output
    assert "0001, 0002, 0003, 0004, 0008, 0022, 0025, 0029, 0032, 0035, 0036, 0038 (those of TransUNet" in done.output
    assert "uses 18/12 and names no cases" in done.output
    assert "Now: nnUNetv2_plan_and_preprocess -d 17" in done.output
    assert [len(list((tmp_path / "raw/Dataset017_BTCV" / d).iterdir())) for d in ("imagesTr", "labelsTs")] == [18, 12]
    again = run(str(source))
    assert again.exit_code == 1
    assert "replace it with --overwrite" in again.output
    other = run(str(source), "--test-cases", "5, 6", "-d", "16")
    assert "Dataset016_BTCV (28 training and 2 test cases)" in other.output
    image_file(source, 7).unlink()
    wrong = run(str(source), "--overwrite")
    assert wrong.exit_code == 1
    assert "Training/img/img0007.nii.gz is missing" in wrong.output
