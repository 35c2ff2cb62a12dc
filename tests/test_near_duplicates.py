"""Near duplicates are found, kept in the same part of every split, listed, and left out if requested."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from image_trees import busi_file, content, isic_image, isic_mask, mask, save
from nnunetv2.utilities.crossval_split import generate_crossval_split
from PIL import Image, ImageEnhance
from scipy import ndimage

from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.study.datasets.busi import write_busi
from nnunet_dtc.study.datasets.isic2018 import write_isic2018
from nnunet_dtc.study.datasets.near_duplicates import THRESHOLD, find_near_duplicates, thumbnail
from nnunet_dtc.study.datasets.splits import draw, draw_groups, five_folds

DATA = Path(os.environ.get("NNUNET_DTC_DATA", Path(__file__).parents[2] / "shared" / "data"))


def picture(seed: int, height: int = 192, width: int = 244) -> np.ndarray:
    """A smooth scene with speckle, (height, width, 3) uint8; different seeds show different scenes."""
    rng = np.random.default_rng(seed)
    scene = ndimage.gaussian_filter(rng.standard_normal((height, width)), 15) * 50
    grey = np.exp(0.5 * scene) * 70 * rng.rayleigh(0.8, (height, width))
    return np.repeat(np.clip(grey, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def brighter(image: np.ndarray) -> np.ndarray:
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(image)).enhance(0.8))


def as_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=60)
    return np.asarray(Image.open(buffer))


def cropped(image: np.ndarray) -> np.ndarray:
    return image[:-1, 1:]


def area_means(image: np.ndarray) -> np.ndarray:
    """16 x 16 grey means of an RGB image whose sides are multiples of 16, by ITU-R 601 as Pillow's L."""
    grey = image.astype(float) @ [0.299, 0.587, 0.114]
    height, width = grey.shape
    return np.array(
        [
            [grey[i * height // 16 : (i + 1) * height // 16, j * width // 16 : (j + 1) * width // 16].mean()]
            for i in range(16)
            for j in range(16)
        ]
    ).reshape(16, 16)


def groups_of(thumbnails: list[np.ndarray], threshold: float = THRESHOLD) -> list[list[int]]:
    """The definition for every pair, by np.corrcoef and a flood fill."""
    n = len(thumbnails)
    near = [
        [j for j in range(n) if j != i and np.corrcoef(thumbnails[i].ravel(), thumbnails[j].ravel())[0, 1] > threshold]
        for i in range(n)
    ]
    seen, groups = set(), []
    for i in range(n):
        if i in seen or not near[i]:
            continue
        reached, waiting = set(), [i]
        while waiting:
            k = waiting.pop()
            if k not in reached:
                reached.add(k)
                waiting += near[k]
        seen |= reached
        groups.append(sorted(reached))
    return groups


def test_thumbnail():
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (64, 128, 3)).astype(np.uint8)
    assert thumbnail(Image.fromarray(image)).shape == (16, 16)
    assert np.allclose(thumbnail(Image.fromarray(image)), area_means(image), atol=0.6)  # Pillow rounds to integers
    assert np.allclose(thumbnail(Image.fromarray(np.full((3, 700), 77, np.uint8))), 77)


def test_modified_copies_are_found_and_other_pictures_are_not():
    images = [picture(seed) for seed in range(12)]
    images += [brighter(images[3]), as_jpeg(images[5]), cropped(images[7]), brighter(as_jpeg(images[3]))]
    thumbnails = [thumbnail(Image.fromarray(image)) for image in images]
    found = find_near_duplicates(thumbnails)
    assert [group.members for group in found] == [[3, 12, 15], [5, 13], [7, 14]] == groups_of(thumbnails)
    for group in found:
        for k, correlation in zip(group.members, group.correlations, strict=True):
            others = [np.corrcoef(thumbnails[k].ravel(), thumbnails[j].ravel())[0, 1] for j in group.members if j != k]
            assert np.isclose(correlation, max(others))
            assert THRESHOLD < correlation < 1


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8, 0.95, THRESHOLD])
def test_groups_are_connected_components(threshold):
    """More images than rows of a block; with lower thresholds the chains are longer."""
    rng = np.random.default_rng(11)
    centres = rng.standard_normal((60, 3, 5))
    thumbnails = [
        np.round(100 + 20 * (centres[rng.integers(60)] + rng.choice([0.01, 0.1, 0.4]) * rng.standard_normal((3, 5))), 1)
        for _ in range(540)
    ]
    matrix = np.corrcoef([t.ravel() for t in thumbnails])
    np.fill_diagonal(matrix, -1)
    component = np.arange(540)  # the smallest index that can be reached
    while (new := np.minimum(component, np.where(matrix > threshold, component, 540).min(axis=1))).tolist() != (
        component.tolist()
    ):
        component = new
    expected = [np.flatnonzero(component == k).tolist() for k in range(540) if (component == k).sum() > 1]
    found = find_near_duplicates(thumbnails, threshold)
    assert [group.members for group in found] == expected
    assert expected
    for group in found:
        assert np.allclose(group.correlations, matrix[group.members].max(axis=1))


def test_images_without_contrast():
    grey = [np.full((16, 16), value, float) for value in (0, 7, 0, 7, 9)]
    other = np.arange(256.0).reshape(16, 16)
    found = find_near_duplicates([*grey, other, other + 1])
    assert [group.members for group in found] == [[0, 2], [1, 3], [5, 6]]
    assert np.allclose([group.correlations for group in found], 1)
    assert find_near_duplicates([]) == []
    assert find_near_duplicates([other]) == []
    everything = find_near_duplicates([other] * 700)
    assert [group.members for group in everything] == [list(range(700))]


def test_no_false_pair_among_real_images():
    """The threshold must separate 900 images of different lesions."""
    files = sorted((DATA / "isic2017" / "images").glob("*.png"))
    if not files:
        pytest.skip(f"no ISIC 2017 images in {DATA}/isic2017 (NNUNET_DTC_DATA)")
    thumbnails = [thumbnail(Image.open(file)) for file in files]
    assert find_near_duplicates(thumbnails) == []
    assert find_near_duplicates(thumbnails, 0.97) == []
    assert len(find_near_duplicates(thumbnails, 0.95)) > 0
    darker = [thumbnail(ImageEnhance.Brightness(Image.open(file)).enhance(0.7)) for file in files[::9]]
    found = find_near_duplicates(thumbnails + darker)
    assert [group.members for group in found] == [[9 * k, len(files) + k] for k in range(len(darker))]


# ------------------------------------------------------------------------------------------------------------------
# Draws and folds that do not divide groups.

NAMES = [f"case_{k:03d}" for k in range(200)]


def random_groups(seed: int, names: list[str], most: int = 6) -> list[list[str]]:
    rng = np.random.default_rng(seed)
    order = list(rng.permutation(names))
    groups = []
    while len(order) > len(names) // 3:
        size = int(rng.integers(2, most + 1))
        groups.append([str(order.pop()) for _ in range(size)])
    return groups


def divided(groups, *parts) -> list[list[str]]:
    """The groups with cases in several parts."""
    return [group for group in groups if sum(bool({*group} & {*part}) for part in parts) > 1]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("counts", [(120, 50), (150, 50), (3, 190)])
def test_a_draw_that_divides_no_group(seed, counts):
    groups = random_groups(seed, NAMES)
    training, test, rest = draw_groups(NAMES, groups, counts, seed)
    assert (len(training), len(test)) == counts
    assert sorted([*training, *test, *rest]) == NAMES
    assert not divided(groups, training, test)
    assert draw_groups(NAMES[::-1], [group[::-1] for group in groups[::-1]], counts, seed) == [training, test, rest]
    assert draw_groups(NAMES, groups, counts, seed + 1)[0] != training
    assert draw_groups(NAMES, [], counts, seed) == draw(NAMES, counts, seed)
    assert divided(groups, *draw(NAMES, counts, seed)[:2])  # the draw of independent cases divides some


def test_groups_are_as_often_in_the_test_part_as_single_cases():
    groups = [[f"case_{k:03d}", f"case_{k + 100:03d}"] for k in range(30)]
    grouped = {name for group in groups for name in group}
    tests = [draw_groups(NAMES, groups, (140, 60), seed)[1] for seed in range(60)]
    fraction = np.mean([sum(name in grouped for name in test) for test in tests]) / 60
    assert 0.25 < fraction < 0.35  # 60 of the 200 are in groups


def test_groups_that_leave_no_exact_draw():
    """Groups of three for parts of four and five: a group may be divided between a part and the unused rest."""
    groups = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]
    names = [name for group in groups for name in group]
    training, test, rest = draw_groups(names, groups, (4, 5))
    assert (len(training), len(test)) in ((4, 3), (3, 5))
    assert len(rest) == 9 - len(training) - len(test)
    assert not divided(groups, training, test)
    with pytest.raises(NnunetDtcError, match=r"cannot draw \[4, 5\] from 9 cases in 1 groups .* a part would be empty"):
        draw_groups(names, [names], (4, 5))
    with pytest.raises(NnunetDtcError, match=r"cannot draw \[4, 6\] from 9 names"):
        draw_groups(names, groups, (4, 6))


def test_folds_that_divide_no_group():
    groups = random_groups(1, NAMES)
    folds = five_folds(NAMES[::-1], groups)
    assert len(folds) == 5
    assert sorted(name for fold in folds for name in fold["val"]) == NAMES
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == NAMES
        assert not divided(groups, fold["train"], fold["val"])
        assert 20 < len(fold["val"]) < 60
    plain = generate_crossval_split(NAMES, seed=12345, n_splits=5)
    assert five_folds(NAMES, [["case_003", "elsewhere"], ["nowhere"]]) == five_folds(NAMES) == plain
    with pytest.raises(NnunetDtcError, match="at least 5 training cases of different groups, got 200 cases in 4"):
        five_folds(NAMES, [NAMES[:50], NAMES[50:100], NAMES[100:150], NAMES[150:]])


# ------------------------------------------------------------------------------------------------------------------
# BUSI and ISIC with constructed near duplicates.

COUNTS = {"benign": 14, "malignant": 10}
COPIES = {  # copy: (original, how it was made)
    ("malignant", 4): (("benign", 13), as_jpeg),  # both classes
    ("benign", 5): (("benign", 2), brighter),
    ("benign", 9): (("benign", 2), cropped),
    ("malignant", 10): (("malignant", 1), np.array),  # the same pixels
}
GROUPS = [
    ["benign_002", "benign_005", "benign_009"],
    ["benign_013", "malignant_004"],
    ["malignant_001", "malignant_010"],
]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("busi") / "Dataset_BUSI_with_GT"
    cases = [(kind, number) for kind, count in COUNTS.items() for number in range(1, count + 1)]
    for seed, case in enumerate(cases):
        image = picture(seed)
        if case in COPIES:
            original, alter = COPIES[case]
            image = alter(picture(cases.index(original)))
        save(busi_file(folder, *case), image)
        save(busi_file(folder, *case, "_mask"), mask(*image.shape[:2]))
    return folder


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "near_duplicates.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("seed", range(6))
def test_busi_keeps_each_group_in_one_part(source, tmp_path, seed):
    done = write_busi(
        source, tmp_path / "raw", tmp_path / "pre", size=16, seed=seed, counts=COUNTS, training=15, test=6
    )
    assert (len(done.training), len(done.test), len(done.left_out)) == (15, 6, 3)
    assert done.groups == GROUPS
    assert not divided(GROUPS, done.training, done.test)
    part = {name: "training" for name in done.training} | {name: "test" for name in done.test}
    table = read_table(done.folder)
    assert [row["case"] for row in table] == [name for group in GROUPS for name in group]
    assert [row["group"] for row in table] == ["1", "1", "1", "2", "2", "3", "3"]
    assert [row["part"] for row in table] == [part.get(row["case"], "left out") for row in table]
    assert all(THRESHOLD < float(row["correlation"]) <= 1 for row in table)
    assert table[4]["source"] == "malignant/malignant (4).png"
    assert done.notes == ["groups of near duplicates with different classes: 1 (benign_013 and malignant_004)"]
    described = json.loads((done.folder / "dataset.json").read_text(encoding="utf-8"))
    assert (described["split"], described["split_seed"], described["near_duplicates"]) == ("grouped", seed, "keep")
    assert done.splits == tmp_path / "pre" / "Dataset019_BUSI" / "splits_final.json"
    folds = json.loads(done.splits.read_text(encoding="utf-8"))
    assert sorted(name for fold in folds for name in fold["val"]) == done.training
    assert not any(divided(GROUPS, fold["train"], fold["val"]) for fold in folds)


def test_busi_with_independent_cases(source, tmp_path):
    names = [f"{kind}_{number:03d}" for kind, count in COUNTS.items() for number in range(1, count + 1)]
    some = False
    for seed in range(4):
        done = write_busi(
            source, tmp_path / str(seed), size=16, seed=seed, split="paper", counts=COUNTS, training=15, test=6
        )
        assert [done.training, done.test, done.left_out] == draw(names, (15, 6), seed)
        leaks = sum(name in done.test and bool({*group} & {*done.training}) for group in GROUPS for name in group)
        message = f"{leaks} of the 6 test cases have a near duplicate among the training cases"
        assert (message in done.notes) == (leaks > 0)
        some |= leaks > 0
        assert done.splits is None
    assert some


def test_duplicates_left_out(source, tmp_path):
    """One case of each group can be drawn, but none of the group with both classes."""
    gone = {"benign_005", "benign_009", "benign_013", "malignant_004", "malignant_010"}
    enough = write_busi(source, tmp_path / "a", size=16, duplicates="drop", counts=COUNTS, training=13, test=5)
    assert (len(enough.training), len(enough.test)) == (13, 5)
    assert gone < {*enough.left_out}
    assert (enough.folder / "left_out.txt").read_text().split() == enough.left_out
    assert json.loads((enough.folder / "dataset.json").read_text())["near_duplicates"] == "drop"

    fewer = write_busi(  # 19 cases instead of 24
        source, tmp_path / "b", size=16, duplicates="drop", counts=COUNTS, training=18, test=6
    )
    assert (len(fewer.training), len(fewer.test)) == (14, 5)
    assert {*fewer.left_out} == gone
    assert "14 training and 5 test cases were drawn, not 18 and 6" in fewer.notes[1]
    assert all(row["part"] == "left out" for row in read_table(fewer.folder) if row["case"] in gone)


def test_too_few_cases_without_duplicates(tmp_path):
    for number in (1, 2, 3):
        save(busi_file(tmp_path / "source", "benign", number), picture(0))
        save(busi_file(tmp_path / "source", "benign", number, "_mask"), mask(192, 244))
    counts = {"benign": 3, "malignant": 0}
    with pytest.raises(NnunetDtcError, match="need at least 2 cases, 1 remain without near duplicates"):
        write_busi(tmp_path / "source", tmp_path / "raw", duplicates="drop", counts=counts, training=2, test=1)
    assert not (tmp_path / "raw").exists()


def test_isic(tmp_path):
    counts = {"Training": 9, "Validation": 3, "Test": 4}
    number = 0
    for part, count in counts.items():
        for number in range(number, number + count):  # noqa: B020 continues after the last part
            original = {15: 0, 10: 4}.get(number, number)  # a near duplicate in another part of the challenge
            save(isic_image(tmp_path / "isic", part, number), picture(original))
            save(isic_mask(tmp_path / "isic", part, number), mask(192, 244))
        number += 1
    groups = [["ISIC_0000000", "ISIC_0000015"], ["ISIC_0000004", "ISIC_0000010"]]
    for seed in range(3):
        done = write_isic2018(
            tmp_path / "isic", tmp_path / str(seed), seed=seed, size=16, counts=counts, training=11, test=5
        )
        assert (len(done.training), len(done.test), done.left_out) == (11, 5, [])
        assert done.groups == groups
        assert not divided(groups, done.training, done.test)
        assert not done.notes
        assert [row["case"] for row in read_table(done.folder)] == [name for group in groups for name in group]


def test_other_folds_are_kept(source, tmp_path):
    arguments = {"size": 16, "counts": COUNTS, "training": 15, "test": 6}
    done = write_busi(source, tmp_path / "raw", tmp_path / "pre", **arguments)
    before = content(tmp_path)
    with pytest.raises(FileExistsError, match=r"splits_final\.json exists with other splits"):
        write_busi(source, tmp_path / "raw", tmp_path / "pre", seed=5, overwrite=True, **arguments)
    assert content(tmp_path) == before
    again = write_busi(source, tmp_path / "raw", tmp_path / "pre", overwrite=True, **arguments)
    assert again == done
    assert content(tmp_path) == before
    (tmp_path / "pre" / "Dataset020_Other").mkdir()
    with pytest.raises(FileExistsError, match=r"one name per id, found .*Dataset020_Other"):
        write_busi(tmp_path, tmp_path / "raw", tmp_path / "pre", 20, **arguments)  # before the source is read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "plain"}, r"split must be 'grouped' or 'paper', got 'plain'"),
        ({"duplicates": "remove"}, r"duplicates must be 'keep' or 'drop', got 'remove'"),
        ({"split": "paper", "duplicates": "drop"}, "choose one of the two"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    with pytest.raises(NnunetDtcError, match=message):
        write_busi(tmp_path, tmp_path / "raw", **arguments)
    with pytest.raises(NnunetDtcError, match=message):
        write_isic2018(tmp_path, tmp_path / "raw", **arguments)
    assert not (tmp_path / "raw").exists()
