"""The synthetic data set is a valid nnU-Net data set, reproducible, correctly oriented, and not trivial."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from nnunet_dtc.study.datasets import phantom
from nnunet_dtc.study.datasets.phantom import LABELS, PhantomCase, draw_case, write_phantom

CASES, TEST_CASES = 5, 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("raw"), 917, CASES, TEST_CASES)


@pytest.fixture(scope="module")
def files(dataset) -> list[tuple[Path, Path]]:
    """Every image with its labels."""
    pairs = []
    for part in ("Tr", "Ts"):
        for image in sorted((dataset / f"images{part}").iterdir()):
            pairs.append((image, dataset / f"labels{part}" / image.name.replace("_0000.nii.gz", ".nii.gz")))
    return pairs


def drawn(seed: int, held_out: int, count: int) -> list[PhantomCase]:
    return [draw_case(np.random.default_rng([seed, held_out, k])) for k in range(count)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_layout(dataset):
    assert dataset.name == "Dataset917_Phantom"
    assert [len(list((dataset / d).iterdir())) for d in ("imagesTr", "labelsTr", "imagesTs", "labelsTs")] == [
        5,
        5,
        2,
        2,
    ]
    described = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    assert described["channel_names"] == {"0": "CT"}
    assert described["numTraining"] == CASES
    assert described["file_ending"] == ".nii.gz"
    assert described["labels"] == LABELS
    assert list(LABELS.values()) == list(range(14))
    assert LABELS["spleen"] == 1
    assert LABELS["liver"] == 6
    assert LABELS["left_adrenal_gland"] == 13
    assert not [f for f in dataset.parent.iterdir() if f != dataset]  # no temporary folder is left


def test_nnunet_accepts_it(dataset, capfd):
    verify_dataset_integrity(str(dataset), num_processes=1)
    assert "verify_dataset_integrity Done" in capfd.readouterr().out


def test_same_seed_same_bytes(dataset, tmp_path):
    first, second = content(dataset), content(write_phantom(tmp_path, 917, CASES, 1))
    assert len(second) == len(first) - 2
    assert all(first[name] == second[name] for name in second)  # a case does not depend on the number of cases
    image = sitk.GetArrayFromImage(sitk.ReadImage(str(dataset / "imagesTr" / "phantom_001_0000.nii.gz")))
    assert np.array_equal(draw_case(np.random.default_rng([917, 0, 0])).image, image)
    assert not np.array_equal(draw_case(np.random.default_rng([3, 0, 0])).image, image)


def test_all_cases_differ(files):
    assert len({image.read_bytes() for image, _ in files}) == CASES + TEST_CASES
    arrays = [sitk.GetArrayFromImage(sitk.ReadImage(str(labels))) for _, labels in files]
    small = [ndimage.zoom(a, [32 / n for n in a.shape], order=0) for a in arrays]  # on one grid
    for i, a in enumerate(small):
        for b in small[:i]:
            both, either = ((a == b) & (a > 0)).sum(), ((a > 0) | (b > 0)).sum()
            assert both < 0.75 * either


def test_images(files):
    for image_file, label_file in files:
        image, labels = sitk.ReadImage(str(image_file)), sitk.ReadImage(str(label_file))
        assert image.GetPixelID() == sitk.sitkInt16
        assert labels.GetPixelID() == sitk.sitkUInt8
        for geometry in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            assert getattr(image, geometry)() == getattr(labels, geometry)()
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        x, y, z = image.GetSpacing()
        assert x == y
        assert 2 < z / x < 3  # a first stride of (1, 2, 2), and no 2D augmentation
        hu, organs = sitk.GetArrayFromImage(image), sitk.GetArrayFromImage(labels)
        assert hu.min() < -950  # air
        assert 300 < hu.max() <= 1500  # bone
        assert set(np.unique(organs)) == set(range(14))
        assert np.bincount(organs.ravel()).min() >= phantom.MIN_VOXELS
        for name in ("liver", "spleen", "right_kidney", "left_kidney", "pancreas", "aorta"):
            assert 30 < np.median(hu[organs == LABELS[name]]) < 350


def test_orientation(files):
    """In world coordinates (LPS): x to the left, y to the back, z to the head."""
    for image_file, label_file in files:
        labels = sitk.ReadImage(str(label_file))
        organs = sitk.GetArrayFromImage(labels)
        at = {
            name: np.array(
                labels.TransformContinuousIndexToPhysicalPoint(np.argwhere(organs == n).mean(0)[::-1].tolist())
            )
            for name, n in LABELS.items()
            if n
        }
        for right, left in (
            ("right_kidney", "left_kidney"),
            ("right_adrenal_gland", "left_adrenal_gland"),
            ("liver", "spleen"),
            ("gallbladder", "stomach"),
            ("inferior_vena_cava", "aorta"),
        ):
            assert at[right][0] < at[left][0], (label_file.name, right, left)
        for front, back in (("stomach", "spleen"), ("pancreas", "left_kidney"), ("gallbladder", "right_kidney")):
            assert at[front][1] < at[back][1], (label_file.name, front, back)
        for upper, lower in (("right_adrenal_gland", "right_kidney"), ("esophagus", "pancreas")):
            assert at[upper][2] > at[lower][2], (label_file.name, upper, lower)
        hu = sitk.GetArrayFromImage(sitk.ReadImage(str(image_file)))
        lung = ndimage.binary_erosion((hu > -930) & (hu < -650), np.ones((1, 3, 3)))
        assert lung[-3:].sum() > 2 * lung[:3].sum(), image_file.name  # index 0 is the lowest slice; gas is in the bowel


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 4}, "cases must be an integer of at least 5.*five folds.*got 4"),
        ({"cases": 6.5}, "cases must be an integer"),
        ({"test_cases": 0}, "test_cases must be an integer of at least 1, got 0"),
        ({"dataset_id": 0}, r"1\.\.999, got 0"),
        ({"dataset_id": 1000}, r"1\.\.999, got 1000"),
        ({"dataset_id": True}, r"1\.\.999, got True"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_phantom(tmp_path / "raw", **arguments)
    assert not (tmp_path / "raw").exists()


@pytest.mark.parametrize("name", ["Dataset917_Phantom", "Dataset917_Other"])
def test_nothing_is_overwritten(tmp_path, name):
    mine = tmp_path / name / "imagesTr" / "mine.nii.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=f"id 917.*{name}"):
        write_phantom(tmp_path, 917)
    assert content(tmp_path) == {f"{name}/imagesTr/mine.nii.gz": b"mine"}


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, 918, progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_progress_and_an_empty_folder_of_that_name(tmp_path):
    (tmp_path / "Dataset919_Phantom").mkdir()
    calls = []
    write_phantom(tmp_path, 919, 5, 1, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(k, 6) for k in range(1, 7)]


def voxels(case: PhantomCase) -> tuple[np.ndarray, np.ndarray]:
    """Features of the voxels in the body (n, 5): position, z (mm), HU, smoothed HU; and their labels."""
    hu = case.image.astype(np.float32)
    smooth = ndimage.gaussian_filter(hu, (0.5, 1, 1))
    body = smooth > -400
    index = np.argwhere(body).astype(np.float32)
    low, high = np.percentile(index, [1, 99], axis=0)
    place = (index - low) / (high - low)
    place[:, 0] = index[:, 0] * case.spacing_mm[2]
    return np.column_stack([place, hu[body], smooth[body]]), case.labels[body]


def test_position_and_density_do_not_identify_the_organ():
    """A random forest on the position and density of voxels, trained on 12 cases and tested on 4 others."""
    rng = np.random.default_rng(0)
    training = [voxels(case) for case in drawn(917, 0, 12)]
    x, y = np.concatenate([a for a, _ in training]), np.concatenate([b for _, b in training])
    some = rng.permutation(len(y))[:150_000]
    rare = np.concatenate([rng.permutation(np.flatnonzero(y == n))[:5000] for n in range(1, 14)])
    use = np.union1d(some, rare)
    forest = RandomForestClassifier(15, min_samples_leaf=5, n_jobs=1, random_state=0).fit(x[use], y[use])
    dice = []
    for features, truth in (voxels(case) for case in drawn(917, 1, 4)):
        guess = forest.predict(features)
        for n in range(1, 14):
            a, b = guess == n, truth == n
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert 0.15 < np.mean(dice) < 0.6
