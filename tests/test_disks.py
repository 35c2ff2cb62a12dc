"""Disks that are full or read-only, places that are taken, and names that are not UTF-8: refused, by name."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_prepare_btcv import CASES, write_source, write_zip
from typer.testing import CliRunner

from nnunet_dtc import files
from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.comparison import output_folder as comparison_report
from nnunet_dtc.study.coordinates import sampling_report
from nnunet_dtc.study.datasets.btcv import write_btcv
from nnunet_dtc.study.datasets.nnunet_raw import new_raw_dataset
from nnunet_dtc.study.datasets.phantom import PhantomCase, write_phantom

NOT_UTF8 = os.fsdecode(b"caf\xe9")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "400"})


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels of two cases."""
    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
        for seed in range(2):
            array = np.random.default_rng(seed).integers(0, 2, (5, 7, 6)).astype(np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / name / f"case_{seed}.nii.gz"))
    return tmp_path / "predictions", tmp_path / "labels"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small file system needs root on Linux")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(place, but=0):
    """Leave as many bytes as ``but``."""
    with (place / "filling").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(place / "filling", (place / "filling").stat().st_size - but)


# ---- reports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".json", ".csv"])
@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_evaluate_refuses_a_folder_in_the_place_of_a_file_before_scoring(folders, monkeypatch, ending, overwrite):
    (folders[0] / f"metrics{ending}").mkdir()
    before = sorted(folders[0].iterdir())
    monkeypatch.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", None)
    done = run("evaluate", *folders, "--labels", "1", "-np", 1, *overwrite)
    assert done.exit_code == 1, done.output
    assert f"cannot write the file {folders[0] / f'metrics{ending}'}: a folder has this name" in done.output
    assert sorted(folders[0].iterdir()) == before


def test_every_report_refuses_a_folder_in_the_place_of_a_file(tmp_path):
    for name, check in (
        ("costs.md", lambda: files.output_files(tmp_path / "costs", (".json", ".csv", ".md"), True)),
        ("coordinates.png", lambda: sampling_report.output_files(tmp_path, True)),
        ("index.html", lambda: comparison_report.check_output(tmp_path, True)),
    ):
        check()
        (tmp_path / name).mkdir()
        with pytest.raises(IsADirectoryError, match=f"{name}: a folder has this name"):
            check()


def test_all_files_of_a_report_are_written_or_none(small_disk):
    old, new = small_disk / "old.json", small_disk / "new.csv"
    old.write_text("as it was")
    with pytest.raises(files.WriteError, match=f"cannot write {new}: No space left on device"):
        files.write_all({old: "short", new: "x" * 100_000})
    assert [file.name for file in small_disk.iterdir()] == ["old.json"]
    assert old.read_text() == "as it was"
    written = files.write_all({old: "é\n", new: b"\x00"})
    assert [file.read_bytes() for file in written] == ["é\n".encode(), b"\x00"]


def test_a_full_disk_is_found_before_the_work(folders, small_disk, monkeypatch):
    fill(small_disk)
    monkeypatch.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", None)
    done = run("evaluate", *folders, "--labels", "1", "-o", small_disk / "metrics")
    assert done.exit_code == 1
    assert f"cannot write into {small_disk} (No space left on device)" in done.output
    for check in (
        lambda: sampling_report.output_files(small_disk / "coordinates"),
        lambda: comparison_report.check_output(small_disk / "comparison" / "of_two", False),
    ):
        with pytest.raises(OSError, match=f"cannot write into {small_disk} "):
            check()


def test_a_disk_that_fills_meanwhile(folders, small_disk, monkeypatch):
    from nnunet_dtc.study import evaluation

    def fill_and_evaluate(*arguments):
        result = evaluation.folders.evaluate_pairs(*arguments)
        fill(small_disk)
        return result

    monkeypatch.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", fill_and_evaluate)
    done = run("evaluate", *folders, "--labels", "1", "-np", 1, "-o", small_disk / "metrics")
    assert done.exit_code == 1
    assert f"Error: cannot write {small_disk / 'metrics.json'}: No space left on device" in done.output
    assert "Dice" in done.output
    assert [file.name for file in small_disk.iterdir()] == ["filling"]


# ---- data sets ---------------------------------------------------------------------------------------------------


def prepare(source, folder):
    return write_btcv(source, folder, folder.parent / "preprocessed", 17, (2, 22), cases=CASES)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_full_disk_is_no_fault_of_the_source(tmp_path, small_disk, zipped):
    source = write_source(tmp_path)
    source = write_zip(tmp_path / "RawData.zip", source) if zipped else source
    fill(small_disk, but=0 if zipped else 4 * 4096)  # for the first files
    with pytest.raises(files.WriteError) as caught:
        prepare(source, small_disk)
    target = small_disk if zipped else small_disk / "Dataset017_BTCV"
    assert str(caught.value) == f"cannot write {target}: No space left on device"
    assert [entry.name for entry in small_disk.iterdir()] == ["filling"]
    (small_disk / "filling").unlink()
    assert prepare(source, small_disk).folder == small_disk / "Dataset017_BTCV"


def test_a_place_where_nobody_can_write(tmp_path):
    """Into /proc nobody can, not even root."""
    if not Path("/proc").is_dir():
        pytest.skip("no /proc")
    source = write_source(tmp_path)
    for given in (source, write_zip(tmp_path / "RawData.zip", source)):
        with pytest.raises(files.WriteError, match=r"^cannot write /proc(/raw)?: "):
            prepare(given, Path("/proc/raw"))
    with pytest.raises(files.WriteError, match=r"^cannot write /proc(/raw)?: "):
        write_phantom(Path("/proc/raw"))


def test_an_image_that_itk_cuts_off_without_an_error(small_disk, monkeypatch):
    """As SimpleITK does where the disk is full."""
    noise = np.random.default_rng(0)
    image, labels = noise.integers(-1000, 1000, (20, 50, 50)).astype(np.int16), noise.integers(0, 14, (20, 50, 50))
    case = PhantomCase(image, labels.astype(np.uint8), (1.5, 2.0, 3.0), (0.0, 0.0, 0.0))
    monkeypatch.setattr("nnunet_dtc.study.datasets.phantom.draw_case", lambda rng: case)
    with pytest.raises(files.WriteError, match=f"^cannot write {small_disk / 'Dataset917_Phantom'}: "):
        write_phantom(small_disk)
    assert not list(small_disk.iterdir())


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), new_raw_dataset(tmp_path, 17, "BTCV"):
        (tmp_path / "nowhere").read_bytes()
    splits = tmp_path / "splits_final.json"
    splits.mkdir()
    with pytest.raises(files.WriteError, match=f"cannot write {splits}: "), new_raw_dataset(tmp_path, 17, "BTCV"):
        files.write_whole(splits, "[]")


# ---- names that are not UTF-8 ------------------------------------------------------------------------------------


def test_paths_for_messages():
    assert files.printable(Path("/a") / NOT_UTF8 / "b") == r"/a/caf\xe9/b"
    assert files.printable("/a/café/\ud83d") == r"/a/café/\ud83d"
    assert files.check_utf8(Path("/a/café")) == Path("/a/café")
    with pytest.raises(NnunetDtcError, match=r"the path of a label must be UTF-8, got /caf\\xe9"):
        files.check_utf8(Path("/") / NOT_UTF8, "a label")


def command(*arguments):
    """In a process of its own, which SimpleITK used to end."""
    done = subprocess.run(
        [sys.executable, "-m", "nnunet_dtc", *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def odd(tmp_path):
    """A folder whose name is not UTF-8."""
    folder = tmp_path / NOT_UTF8
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    return folder


def test_evaluate_names_a_case_that_is_not_utf8(folders, odd):
    for folder in folders:
        (folder / "case_0.nii.gz").rename(folder / f"{NOT_UTF8}.nii.gz")
    done = command("evaluate", *folders, "--labels", "1", "-np", 1)
    assert done.returncode == 1
    assert rf"{folders[0]}/caf\xe9.nii.gz" in done.stderr
    assert "UTF-8" in done.stderr
    assert not (folders[0] / "metrics.json").exists()


def test_evaluate_in_folders_that_are_not_utf8(folders, odd, monkeypatch):
    given = folders[0].rename(odd / "predictions"), folders[1]
    done = command("evaluate", *given, "--labels", "1", "-np", 1, "-o", odd.parent / "out")
    assert done.returncode == 1
    assert r"caf\xe9" in done.stderr
    assert "UTF-8" in done.stderr
    (odd / "predictions").rename(folders[0])
    monkeypatch.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", None)
    done = run("evaluate", *folders, "--labels", "1", "-o", odd / "out")
    assert done.exit_code == 1
    assert rf"the path of a file or folder must be UTF-8, got {odd.parent}/caf\xe9/out.json" in done.output


def test_prepare_with_a_source_that_is_not_utf8(odd):
    """SimpleITK cannot read there; what is read by Pillow or copied can lie anywhere."""
    source = write_source(odd.parent).rename(odd / "RawData")
    done = run("prepare", "btcv", source, "--raw", odd.parent / "raw", "--preprocessed", odd.parent / "p")
    assert done.exit_code == 1
    assert r"caf\xe9/RawData/Training/img/img0001.nii.gz" in done.output
    assert not (odd.parent / "raw").exists()
    done = run("prepare", "phantom", "--raw", odd / "raw")
    assert done.exit_code == 1
    assert rf"nnUNet_raw must be UTF-8, got {odd.parent}/caf\xe9/raw" in done.output


def test_compare_and_coordinates_take_no_such_path(odd):
    from nnunet_dtc.study.comparison.case_images import image_cases

    (odd.parent / "images").mkdir()
    (odd.parent / "images" / f"{NOT_UTF8}_0000.nii.gz").touch()
    for check in (
        lambda: image_cases(odd.parent / "images", ".nii.gz"),
        lambda: comparison_report.check_output(odd / "out", False),
        lambda: sampling_report.output_files(odd / "out"),
    ):
        with pytest.raises(NnunetDtcError, match=r"must be UTF-8, got .*caf\\xe9"):
            check()
