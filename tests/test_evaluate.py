"""Folders of predictions and labels: which are refused, which scores count, and what is written."""

import csv
import gzip
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import SimpleITK as sitk
from rich.console import Console
from scipy import ndimage
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.study import evaluation as ev
from nnunet_dtc.study.evaluation.labels import find_dataset_json
from nnunet_dtc.study.evaluation.metrics import METRICS, metrics_for
from nnunet_dtc.study.evaluation.overlap import dice
from nnunet_dtc.study.evaluation.scoring import score_case
from nnunet_dtc.study.evaluation.surfaces import surface_distances

SHAPE, SPACING = (7, 13, 16), (3.0, 0.8, 0.9)  # of the array: z, y, x
TURNED = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
DATASET = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "spleen": 1, "liver": 2, "gallbladder": 3},
    "numTraining": 3,
    "file_ending": ".nii.gz",
}
LABELS = ev.LabelSet((ev.Organ("spleen", (1,)), ev.Organ("liver", (2,)), ev.Organ("gallbladder", (3,))))
CASES = ("case_a", "case_b", "case_c")


def write_image(file, array, spacing=SPACING, origin=(-12.5, 30.0, 7.25), direction=TURNED):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    image.SetOrigin(origin)
    image.SetDirection(direction)
    sitk.WriteImage(image, str(file))


def draw(seed, shape=SHAPE):
    """Three organs that touch each other and the image's border, and a prediction with errors at the borders."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    label = np.searchsorted(np.quantile(noise, (0.4, 0.6, 0.8)), noise).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.05, rng.integers(0, 4, shape), label).astype(np.uint8)
    return prediction, label


@pytest.fixture
def folders(tmp_path):
    """predictions/ and raw/labelsTs of three cases; the gallbladder is absent in the label of b and in both of c."""
    predictions, labels = tmp_path / "predictions", tmp_path / "raw" / "labelsTs"
    predictions.mkdir()
    labels.mkdir(parents=True)
    for seed, case in enumerate(CASES):
        prediction, label = draw(seed)
        if case != "case_a":
            label[label == 3] = 0
        if case == "case_c":
            prediction[prediction == 3] = 0
        write_image(predictions / f"{case}.nii.gz", prediction)
        write_image(labels / f"{case}.nii.gz", label)
    for folder in (predictions, labels.parent):
        (folder / "dataset.json").write_text(json.dumps(DATASET))
    (predictions / "case_a.npz").touch()  # nnU-Net writes these as well
    return predictions, labels


def change_pixdim(file, axis, value):
    """Write a number into the header of a compressed NIfTI-1 file, as no library would."""
    content = bytearray(gzip.decompress(file.read_bytes()))
    struct.pack_into("<f", content, 76 + 4 * axis, value)
    file.write_bytes(gzip.compress(bytes(content)))


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)], env={"COLUMNS": "400"})


def evaluate(predictions, labels, label_set=LABELS, ending=None, subset=False, **options):
    pairs = ev.find_pairs(predictions, labels, ending, subset)
    return ev.evaluate_pairs(pairs, label_set, **{"processes": 1} | options)


def case_rows(result, case):
    """Organ to its row of the scores."""
    return {row["organ"]: row for row in result.scores.to_dict("records") if row["case"] == case}


def score_arrays(prediction, label, spacing, labels=LABELS):
    """The same of two arrays."""
    rows = score_case(prediction, label, spacing, labels, metrics_for(ev.DEFAULT_TOLERANCES))
    return {row["organ"]: row for row in rows}


def arrays(folder, case):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(folder / f"{case}.nii.gz")))


# ---- which scores count --------------------------------------------------------------------------------------------


def test_scores_are_those_of_whole_uncropped_masks(folders):
    result = evaluate(*folders)
    assert list(result.scores["case"]) == [case for case in CASES for _ in LABELS.organs]
    for case in CASES:
        prediction, label = (arrays(folder, case) for folder in folders)
        for organ in LABELS.organs[:2]:
            masks = [array == organ.values[0] for array in (prediction, label)]
            padded = [np.pad(mask, ((3, 4), (5, 1), (2, 6))) for mask in masks]
            surfaces = surface_distances(*padded, SPACING)
            row = case_rows(result, case)[organ.name]
            assert {metric: row[metric] for metric in result.metrics} == pytest.approx(
                {
                    "dice": dice(*masks),
                    "nsd_1mm": surfaces.nsd(1),
                    "nsd_2mm": surfaces.nsd(2),
                    "hd95_mm": surfaces.hausdorff(95),
                }
            )


def test_cropping_of_small_organs_beside_the_ignore_label():
    """An organ of two distant parts; only a corner of one of them touches the ignore label."""
    prediction, label = np.zeros((2, 9, 10, 11), np.uint8)
    label[1:3, 2:4, 2:5] = prediction[1:3, 2:5, 2:5] = 1
    label[6, 7, 8] = prediction[6, 7, 8] = 1
    label[7, 8, 9] = 2
    labels = ev.LabelSet((ev.Organ("spleen", (1,)),), ignore=2)
    scores = score_arrays(prediction, label, SPACING, labels)["spleen"]
    surfaces = surface_distances(prediction == 1, label == 1, SPACING, ignored=label == 2)
    assert scores["nsd_1mm"] == pytest.approx(surfaces.nsd(1))
    assert scores["hd95_mm"] == pytest.approx(surfaces.hausdorff())
    assert (
        len(surface_distances(prediction == 1, label == 1, SPACING).prediction_areas)
        == len(surfaces.prediction_areas) + 1
    )


def test_absent_organs(folders):
    skip = evaluate(*folders)
    flare = evaluate(*folders, absent="flare")
    for result in (skip, flare):
        row = case_rows(result, "case_b")["gallbladder"]
        assert row["absent"] == "reference"
        assert {metric: row[metric] for metric in result.metrics} == {
            "dice": 0,
            "nsd_1mm": 0,
            "nsd_2mm": 0,
            "hd95_mm": math.inf,
        }
        assert result.infinite["hd95_mm"].to_dict() == {"spleen": 0, "liver": 0, "gallbladder": 1}
        assert case_rows(result, "case_c")["gallbladder"]["absent"] == "both"
        assert math.isfinite(result.mean["hd95_mm"])
    nothing, both = (case_rows(result, "case_c")["gallbladder"] for result in (skip, flare))
    assert all(math.isnan(nothing[metric]) for metric in skip.metrics)
    assert (both["dice"], both["nsd_1mm"], both["nsd_2mm"]) == (1, 1, 1)
    assert math.isnan(both["hd95_mm"])

    values = {case: {organ: row["dice"] for organ, row in case_rows(skip, case).items()} for case in CASES}
    a, b, c = (list(values[case].values()) for case in CASES)
    assert skip.case_means.loc["case_c", "dice"] == pytest.approx((c[0] + c[1]) / 2)
    assert skip.mean["dice"] == pytest.approx((sum(a) / 3 + (b[0] + b[1]) / 3 + (c[0] + c[1]) / 2) / 3)
    assert flare.mean["dice"] == pytest.approx((sum(a) / 3 + (b[0] + b[1]) / 3 + (c[0] + c[1] + 1) / 3) / 3)
    assert skip.organ_means.loc["gallbladder", "dice"] == pytest.approx(a[2] / 2)
    first = [(a[0] + b[0] + c[0]) / 3, (a[1] + b[1] + c[1]) / 3, a[2] / 2]
    assert skip.mean_cases_first["dice"] == pytest.approx(sum(first) / 3)
    assert skip.mean_cases_first["dice"] != pytest.approx(skip.mean["dice"])


def test_a_new_metric_is_its_function_and_one_entry(folders, tmp_path, monkeypatch):
    """It is scored, averaged, written and shown in its own unit and direction."""

    def volume_difference(organ):
        return abs(organ.prediction.sum() / organ.reference.sum() - 1)

    entry = ev.Metric(
        "volume_difference",
        "Volume difference",
        volume_difference,
        stored="ratio",
        unit="%",
        factor=100.0,
        higher_is_better=False,
        absent_in_one=math.inf,
        absent_in_both={"skip": math.nan, "flare": 0.0},
    )
    monkeypatch.setitem(METRICS, entry.key, entry)
    assert ev.metric("volume_difference") is entry
    assert (entry.heading, entry.difference_unit, entry.signed(-0.5)) == ("Volume difference (%)", "points", "-50.00")
    # a console that was made where COLUMNS and LINES were set, as in a worker of pytest-xdist, keeps their size
    monkeypatch.setattr("nnunet_dtc.cli.console.out", Console(width=400, emoji=False))
    monkeypatch.setattr("nnunet_dtc.cli.evaluate.out", Console(width=400, emoji=False), raising=False)
    done = run(*folders, "-np", 1, "-o", tmp_path / "out", "--absent", "flare")
    assert done.exit_code == 0, done.output

    ratios = {}
    for case in CASES:
        sizes = [np.bincount(arrays(folder, case).ravel(), minlength=4)[1:] for folder in folders]
        for organ, predicted, true in zip(LABELS.names, *sizes, strict=True):
            ratios[case, organ] = abs(predicted - true) / true if true else math.inf if predicted else 0.0
    written = pd.read_csv(tmp_path / "out.csv").set_index(["case", "organ"])["volume_difference"]
    assert written.to_dict() == pytest.approx(ratios)
    gallbladder = (ratios["case_a", "gallbladder"] + ratios["case_c", "gallbladder"]) / 2

    content = json.loads((tmp_path / "out.json").read_text())
    assert content["units"] == "dice and nsd: 0 to 1; hd95_mm: mm; volume_difference: ratio"
    found = content["organs"]["gallbladder"]
    assert found["volume_difference"] == pytest.approx(gallbladder)
    assert (found["hd95_infinite"], found["volume_difference_infinite"]) == (1, 1)
    assert content["cases"]["case_b"]["organs"]["gallbladder"]["volume_difference"] is None

    head, *lines = [line for line in done.output.splitlines() if line[0] in "┃│"]
    assert [cell.strip() for cell in head.split("┃")[-3:-1]] == ["HD95 (mm)", "Volume difference (%)"]
    row = next(line for line in lines if "gallbladder" in line)
    assert row.split("│")[-2].strip() == f"{100 * gallbladder:.2f} (1)"
    assert "means of HD95, Volume difference leave out (n) infinite ones" in done.output


def test_organs_that_are_absent_everywhere_have_no_score():
    empty = np.zeros(SHAPE, np.uint8)
    for row in score_arrays(empty, empty, SPACING).values():
        assert all(math.isnan(row[metric]) for metric in ("dice", "nsd_1mm", "nsd_2mm", "hd95_mm"))
        assert (row["absent"], row["prediction_voxels"], row["reference_voxels"]) == ("both", 0, 0)


def test_tolerances_per_organ_and_in_voxels(folders):
    texts = ("0.5voxel", "1,liver=2", "1voxel,liver=1mm", "2")
    result = evaluate(*folders, tolerances=[ev.parse_tolerance(text) for text in texts])
    assert result.metrics == (
        "dice",
        "nsd_0.5voxel",
        "nsd_1mm,liver=2mm",
        "nsd_1voxel,liver=1mm",
        "nsd_2mm",
        "hd95_mm",
    )
    prediction, label = (arrays(folder, "case_a") for folder in folders)
    for organ in LABELS.organs:
        masks = [array == organ.values[0] for array in (prediction, label)]
        mm, voxel = surface_distances(*masks, SPACING), surface_distances(*masks, (1, 1, 1))
        scores = case_rows(result, "case_a")[organ.name]
        liver = organ.name == "liver"
        assert scores["nsd_0.5voxel"] == pytest.approx(voxel.nsd(0.5)) == pytest.approx(voxel.nsd(0))
        assert scores["nsd_1mm,liver=2mm"] == pytest.approx(mm.nsd(2 if liver else 1))
        assert scores["nsd_1voxel,liver=1mm"] == pytest.approx(mm.nsd(1) if liver else voxel.nsd(1))
        assert scores["hd95_mm"] == pytest.approx(mm.hausdorff())


def test_dice_regions_and_ignore_label_as_nnunet(tmp_path):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    prediction, label = draw(7)
    label[2:5, 3:8, 4:9] = 4
    files = [tmp_path / "prediction.nii.gz", tmp_path / "label.nii.gz"]
    write_image(files[0], prediction)
    write_image(files[1], label)
    dataset = tmp_path / "dataset.json"
    names = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3, "ignore": 4}
    dataset.write_text(json.dumps(DATASET | {"labels": names, "regions_class_order": [1, 2, 3]}))
    labels, ending = ev.labels_from_dataset_json(dataset)
    assert labels.organs == (ev.Organ("whole", (1, 2, 3)), ev.Organ("core", (2, 3)), ev.Organ("enhancing", (3,)))
    assert (labels.ignore, ending) == (4, ".nii.gz")

    scores = case_rows(ev.evaluate_pairs([ev.Pair("case", *files)], labels, processes=1), "case")
    theirs = compute_metrics(str(files[1]), str(files[0]), SimpleITKIO(), [(1, 2, 3), (2, 3), 3], 4)["metrics"]
    for organ, values in zip(labels.organs, ((1, 2, 3), (2, 3), 3), strict=True):
        assert scores[organ.name]["dice"] == pytest.approx(theirs[values]["Dice"])
        assert scores[organ.name]["prediction_voxels"] == theirs[values]["n_pred"]
        assert scores[organ.name]["reference_voxels"] == theirs[values]["n_ref"]
        masks = [np.isin(array, organ.values) for array in (prediction, label)]
        surfaces = surface_distances(*masks, SPACING, ignored=label == 4)
        assert scores[organ.name]["nsd_1mm"] == pytest.approx(surfaces.nsd(1))
        assert scores[organ.name]["hd95_mm"] == pytest.approx(surfaces.hausdorff())


def test_processes_give_the_same_in_the_same_order(folders):
    seen = []
    alone = evaluate(*folders)
    together = evaluate(*folders, processes=2, progress=lambda what, done, total: seen.append((what, done, total)))
    pd.testing.assert_frame_equal(together.scores, alone.scores, check_exact=True)
    assert together.files == alone.files
    expected = [("checking files", done, 6) for done in range(7)] + [("scoring cases", done, 3) for done in range(4)]
    assert seen == expected


def test_png_and_single_slices_are_2d(tmp_path):
    """A pixel counts as 1 mm, and a volume of one slice is evaluated as an image of two axes."""
    prediction, label = (np.ascontiguousarray(array[3]) for array in draw(3))
    results = []
    for name, ending in (("png", ".png"), ("slice", ".nii.gz")):
        pair = []
        for kind, array in (("p", prediction), ("l", label)):
            folder = tmp_path / name / kind
            folder.mkdir(parents=True)
            if ending == ".png":
                sitk.WriteImage(sitk.GetImageFromArray(array), str(folder / "x.png"))
            else:
                write_image(folder / "x.nii.gz", array[None], (999.0, 1.0, 1.0))
            pair.append(folder)
        results.append(case_rows(evaluate(*pair), "x"))
    for organ in LABELS.organs:
        masks = [array == organ.values[0] for array in (prediction, label)]
        surfaces = surface_distances(*masks, (1, 1))
        for result in results:
            assert result[organ.name]["dice"] == pytest.approx(dice(*masks))
            assert result[organ.name]["nsd_1mm"] == pytest.approx(surfaces.nsd(1))
            assert result[organ.name]["hd95_mm"] == pytest.approx(surfaces.hausdorff())


def test_labels_stored_as_floats(folders):
    expected = evaluate(*folders)
    for folder in folders:
        for case in CASES:
            write_image(folder / f"{case}.nii.gz", arrays(folder, case).astype(np.float64))
    pd.testing.assert_frame_equal(evaluate(*folders).scores, expected.scores, check_exact=True)


# ---- files that are refused before anything is computed --------------------------------------------------------------


@pytest.fixture
def no_scoring(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("nothing may be computed before all files are checked")

    monkeypatch.setattr("nnunet_dtc.study.evaluation.folders.score_case", refuse)


def refused(folders, *parts, **options):
    with pytest.raises(ev.EvaluationError) as error:
        evaluate(*folders, **options)
    for part in parts:
        assert str(part) in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("no_scoring")
class TestRefused:
    def test_missing_and_surplus(self, folders):
        predictions, labels = folders
        (predictions / "case_c.nii.gz").rename(predictions / "case_d.nii.gz")
        refused(
            folders,
            f"prediction without a label: {predictions / 'case_d.nii.gz'}",
            f"label without a prediction: {labels / 'case_c.nii.gz'}",
        )
        message = refused(folders, predictions / "case_d.nii.gz", subset=True)
        assert "case_c" not in message

    def test_no_files(self, folders, tmp_path):
        predictions, labels = folders
        refused((tmp_path / "nowhere", labels), tmp_path / "nowhere")
        refused((tmp_path, labels), "no prediction", tmp_path)
        refused((predictions, tmp_path), "the same file ending", tmp_path)
        refused(folders, "no label", labels, ending=".mha")
        (labels / "case_x.png").touch()
        refused(folders, ".nii.gz, .png", labels)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"origin": (-12.5, 30.0, 8.25)}, ("origin (-12.5, 30, 8.25) and (-12.5, 30, 7.25)", "1 mm apart")),
            ({"direction": (1.0, 0, 0, 0, 1, 0, 0, 0, 1)}, ("direction",)),
        ],
    )
    def test_other_geometry_where_it_is_strict(self, folders, change, words):
        file = folders[0] / "case_b.nii.gz"
        write_image(file, arrays(folders[0], "case_b"), **change)
        message = refused(folders, file, *words, strict_geometry=True)
        assert "case_a" not in message

    @pytest.mark.parametrize("spacing", [(3.0, 0.8, 0.95), (3.0, 0.8, 0.902), (3.01, 0.8, 0.9)])
    def test_other_spacing(self, folders, spacing):
        file = folders[0] / "case_b.nii.gz"
        write_image(file, arrays(folders[0], "case_b"), spacing=spacing)
        shown = f"({spacing[2]:g}, {spacing[1]:g}, {spacing[0]:g})"
        message = refused(folders, file, f"spacing {shown} and (0.9, 0.8, 3)")
        assert "case_a" not in message

    def test_other_size(self, folders):
        file = folders[0] / "case_b.nii.gz"
        write_image(file, arrays(folders[0], "case_b")[:-1])
        refused(folders, file, "(16, 13, 6)", "(16, 13, 7)")

    def test_not_an_image(self, folders):
        (folders[1] / "case_b.nii.gz").write_bytes(b"no image")
        refused(folders, folders[1] / "case_b.nii.gz", "cannot read")

    @pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
    @pytest.mark.parametrize("cut", [1, 400])
    def test_cut_off_image(self, tmp_path, ending, cut):
        """SimpleITK reads a NIfTI file that is cut off without a warning."""
        folder = tmp_path / "images"
        folder.mkdir()
        for case in ("a", "b"):
            write_image(folder / f"{case}{ending}", draw(1)[0])
        content = (folder / f"b{ending}").read_bytes()
        (folder / f"b{ending}").write_bytes(content[:-cut])
        refused((folder, folder), folder / f"b{ending}")

    def test_colours(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), str(folder / "a.png"))
        refused((folder, folder), folder / "a.png", "one number per voxel", "3 numbers")

    @pytest.mark.parametrize("side", [0, 1])
    @pytest.mark.parametrize(
        ("value", "kind", "shown"),
        [
            (9, np.uint8, "9"),
            (-1, np.int16, "-1"),
            (0.5, np.float32, "0.5"),
            (1.0000001, np.float32, "1.0000001192092896"),  # rounded to single precision
            (1.0000002, np.float64, "1.0000002"),
            (1e300, np.float64, str(int(1e300))),
            (np.inf, np.float32, "inf"),
            (-np.inf, np.float64, "-inf"),
            (np.nan, np.float32, "nan"),
        ],
    )
    def test_unknown_values(self, folders, side, value, kind, shown):
        """Each exactly as it is stored; SimpleITK reads NaN and infinity in NIfTI files as 0."""
        array = arrays(folders[side], "case_b").astype(kind)
        array[6, 12, 15] = array[0, 0, 0] = value
        write_image(folders[side] / "case_b.nii.gz", array)
        refused(folders, f"unknown label values {shown} (known: 0, 1, 2, 3)", folders[side] / "case_b.nii.gz")

    @pytest.mark.parametrize("ending", [".nii", ".nrrd"])
    def test_nan_and_complex_numbers_of_any_format(self, tmp_path, ending):
        label = draw(3)[1].astype(np.float32)
        folder = tmp_path / "images"
        folder.mkdir()
        file = folder / f"a{ending}"
        for array, words in (
            (np.where(label == 2, np.nan, label).astype(np.float64), "unknown label values nan"),
            (label.astype(np.complex64), "complex numbers (complex64)"),
        ):
            if ending == ".nrrd" and array.dtype.kind == "c":
                continue  # SimpleITK does not write these
            write_image(file, array)
            refused((folder, folder), words, file)

    @pytest.mark.parametrize("size", [np.nan, np.inf, 0.0])
    def test_a_voxel_size_that_is_not_a_positive_number(self, folders, size):
        """ITK takes 1 mm for each of these."""
        file = folders[0] / "case_b.nii.gz"
        change_pixdim(file, 2, size)
        assert sitk.ReadImage(str(file)).GetSpacing()[1] == 1
        message = refused(
            folders, file, "the voxel size must be a positive number", f"pixdim (0.8999999761581421, {size}"
        )
        assert "case_a" not in message

    def test_a_name_that_is_not_utf_8(self, folders):
        """SimpleITK ends the process."""
        name = b"case_\xff.nii.gz"
        for folder in folders:
            (folder / "case_b.nii.gz").rename(Path(os.fsdecode(os.fsencode(folder) + b"/" + name)))
        message = refused(folders, "its path is not UTF-8")
        assert "case_\\xff.nii.gz" in message
        message.encode()

    def test_ignore_label_in_a_prediction(self, folders):
        labels = ev.LabelSet(LABELS.organs[:2], ignore=3)
        with pytest.raises(ev.EvaluationError, match=r"values 3 .*predictions.case_a"):
            evaluate(*folders, labels)

    def test_many_problems_are_counted(self, folders):
        for number in range(25):
            (folders[0] / f"more_{number:02}.nii.gz").touch()
        assert refused(folders, "more_00", "... and 15 more").count("\n") == 10

    def test_options(self, folders):
        for options, words in (
            ({"absent": "no"}, "skip, flare"),
            ({"processes": 0}, "at least 1"),
            ({"tolerances": []}, "at least one"),
            ({"tolerances": [ev.parse_tolerance("1"), ev.parse_tolerance("1mm")]}, "different"),
            ({"tolerances": [ev.parse_tolerance("1,lung=2")]}, "names lung"),
            (
                {"tolerances": [ev.parse_tolerance("liver=2")]},
                "distance for spleen, gallbladder",
            ),
        ):
            with pytest.raises(ValueError, match=words):
                evaluate(*folders, **options)


# ---- geometry: by voxels, as nnU-Net -----------------------------------------------------------------------------


def test_geometry_may_differ_by_rounding(folders):
    file = folders[0] / "case_b.nii.gz"
    write_image(file, arrays(folders[0], "case_b"), spacing=(3.00001, 0.8, 0.90001), origin=(-12.5001, 30.0, 7.25))
    assert evaluate(*folders, strict_geometry=True).displaced == {}


def test_voxels_are_compared_wherever_the_headers_put_them(folders):
    """The scores are those of the same arrays with one geometry, as in nnU-Net; the distance is that of the farthest
    voxels, computed here by SimpleITK."""
    expected = evaluate(*folders)
    assert (expected.displaced, expected.notes) == ({}, [])
    flipped = tuple(-value if index % 3 == 0 else value for index, value in enumerate(TURNED))  # the column of x
    files = {case: folders[0] / f"{case}.nii.gz" for case in CASES}
    write_image(files["case_b"], arrays(folders[0], "case_b"), origin=(-12.5, 34.0, 4.25))
    write_image(files["case_c"], arrays(folders[0], "case_c"), direction=flipped)
    found = evaluate(*folders, processes=2)
    pd.testing.assert_frame_equal(found.scores, expected.scores, check_exact=True)
    assert list(found.displaced) == ["case_b", "case_c"]
    assert found.displaced["case_b"].distance_mm == pytest.approx(5.0)
    assert [entry.turned for entry in found.displaced.values()] == [False, True]

    images = [sitk.ReadImage(str(folder / "case_c.nii.gz")) for folder in folders]
    corners = [(x, y, z) for x in (0, SHAPE[2] - 1) for y in (0, SHAPE[1] - 1) for z in (0, SHAPE[0] - 1)]
    points = [[image.TransformIndexToPhysicalPoint(corner) for corner in corners] for image in images]
    farthest = max(math.dist(a, b) for a, b in zip(*points, strict=True))
    assert farthest == pytest.approx(2 * 15 * 0.9)  # along x there and back
    assert found.displaced["case_c"].distance_mm == pytest.approx(farthest, rel=1e-5)
    (note,) = found.notes
    assert note.startswith("In 2 of 3 cases the prediction and the label have the same size and spacing")
    assert "up to 27 mm apart (case_c)" in note
    assert "In 1 of them (case_c) axes are flipped" in note


def test_permuted_axes_of_a_cube_are_compared_by_voxels(tmp_path):
    prediction, label = draw(5, (9, 9, 9))
    for name, array, direction in (
        ("p", prediction, (1, 0, 0, 0, 1, 0, 0, 0, 1)),
        ("l", label, (0, 1, 0, 1, 0, 0, 0, 0, 1)),
    ):
        (tmp_path / name).mkdir()
        write_image(tmp_path / name / "x.nii.gz", array, (2, 2, 2), direction=tuple(map(float, direction)))
    found = evaluate(tmp_path / "p", tmp_path / "l")
    expected = pd.DataFrame(score_arrays(prediction, label, (2, 2, 2)).values())
    pd.testing.assert_frame_equal(found.scores.drop(columns="case"), expected)
    assert found.displaced["x"].turned


def test_the_command_notes_other_geometry_or_refuses_it(folders, tmp_path):
    file = folders[0] / "case_b.nii.gz"
    write_image(file, arrays(folders[0], "case_b"), origin=(-12.5, 34.0, 4.25))
    done = run(*folders, "-np", 1, "-o", tmp_path / "strict", "--strict-geometry")
    assert done.exit_code == 1
    assert f"{file} is not on the grid of" in done.output
    assert not (tmp_path / "strict.json").exists()

    done = run(*folders, "-np", 1, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert "note: In 1 of 3 cases" in done.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["displaced"]["case_b"]["distance_mm"] == pytest.approx(5.0)
    assert content["notes"] == [
        "In 1 of 3 cases the prediction and the label have the same size and spacing, but not the same origin or "
        "direction: their voxels are up to 5 mm apart (case_b). They were compared voxel by voxel, as in nnU-Net."
    ]


def test_a_killed_process_is_reported(folders, monkeypatch):
    from concurrent.futures.process import BrokenProcessPool

    from nnunet_dtc.study.evaluation import workers as module

    class Killed:
        def __init__(self, *arguments, **more): ...
        def shutdown(self, **more): ...
        def submit(self, *arguments):
            raise BrokenProcessPool

    monkeypatch.setattr(module, "ProcessPoolExecutor", Killed)
    with pytest.raises(ev.EvaluationError, match="fewer processes"):
        evaluate(*folders, processes=2)


# ---- tolerances and labels as users write them -------------------------------------------------------------------


def test_parse_tolerance(tmp_path):
    names = {"1": "1mm", "1.50mm": "1.5mm", "0.5voxel": "0.5voxel", "2 voxels": "2voxel", ".5": "0.5mm", "0": "0mm"}
    for text, name in names.items():
        assert ev.parse_tolerance(text).name == name
    mixed = ev.parse_tolerance("2, right kidney=3, liver=0.5voxel")
    assert mixed.name == "2mm,right kidney=3mm,liver=0.5voxel"
    assert [str(mixed.of(organ)) for organ in ("right kidney", "liver", "aorta")] == ["3mm", "0.5voxel", "2mm"]
    file = tmp_path / "flare.json"
    file.write_text('{"default": 2, "liver": 5, "spleen": "0.5voxel"}')
    from_file = ev.parse_tolerance(str(file))
    assert from_file.name == "flare"
    assert [str(from_file.of(organ)) for organ in ("spleen", "liver", "aorta")] == ["0.5voxel", "5mm", "2mm"]
    for text in ("", "x", "-1", "1cm", "nan", "inf", "1,liver", "1,liver=2,liver=3", "1,=2", "1,liver=x"):
        with pytest.raises(ValueError, match="a tolerance is a distance"):
            ev.parse_tolerance(text)
    named = tmp_path / "a\x07.json"
    named.write_text('{"default": 2}')
    assert ev.parse_tolerance(str(named)).name == "a\\x07"
    file.write_text("[]")
    for name in (file, tmp_path / "none.json"):
        with pytest.raises(ValueError, match=name.name):
            ev.parse_tolerance(str(name))


def test_parse_labels():
    assert ev.parse_labels("1, 2") == ev.LabelSet((ev.Organ("1", (1,)), ev.Organ("2", (2,))))
    named = ev.parse_labels("background=0,right kidney=2,kidneys=2+3,ignore=4")
    assert named == ev.LabelSet((ev.Organ("right kidney", (2,)), ev.Organ("kidneys", (2, 3))), ignore=4)
    assert named.values == {0, 2, 3}
    for text in ("", "a", "a=b", "1,1", "-1", "0", "a=1,ignore=1"):
        with pytest.raises(ValueError, match="label"):
            ev.parse_labels(text)


def test_dataset_json_that_cannot_be_used(tmp_path):
    file = tmp_path / "dataset.json"
    for content in (
        None,
        "{",
        "[]",
        '{"labels": {"0": "background"}}',
        '{"labels": {"background": 0}}',
        '{"labels": 3}',
    ):
        if content is not None:
            file.write_text(content)
        with pytest.raises(ValueError, match=r"dataset\.json"):
            ev.labels_from_dataset_json(file)


def test_label_values_as_nnunet_takes_them(tmp_path):
    """nnU-Net takes 1.0 and "1" for 1, and a region may have the background's value."""
    labels = {"background": 0, "spleen": 1.0, "liver": "2", "not spleen": [0, 2.0]}
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels, "file_ending": ".nii.gz"}))
    found, _ = ev.labels_from_dataset_json(tmp_path / "dataset.json")
    assert [organ.values for organ in found.organs] == [(1,), (2,), (0, 2)]
    prediction, label = (np.minimum(array, 2) for array in draw(10))
    scores = score_arrays(prediction, label, SPACING, found)
    assert scores["not spleen"]["dice"] == pytest.approx(ev.dice(prediction != 1, label != 1))
    assert scores["not spleen"]["reference_voxels"] == np.count_nonzero(label != 1)


def test_dataset_json_is_found_where_nnunet_leaves_it(folders, tmp_path):
    predictions, labels = folders
    assert find_dataset_json(*folders) == predictions / "dataset.json"
    (predictions / "dataset.json").unlink()
    assert find_dataset_json(*folders) == labels.parent / "dataset.json"
    model = tmp_path / "model"
    (model / "fold_0" / "validation").mkdir(parents=True)
    (model / "dataset.json").touch()
    assert find_dataset_json(model / "fold_0" / "validation", labels) == model / "dataset.json"
    (labels.parent / "dataset.json").unlink()
    assert find_dataset_json(*folders) is None


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_writes_and_prints(folders, tmp_path):
    done = run(*folders, "-o", tmp_path / "out.v1", "-np", 1)
    assert done.exit_code == 0, done.output
    result = evaluate(*folders)

    content = json.loads((tmp_path / "out.v1.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert content["mean"]["dice"] == pytest.approx(result.mean["dice"])
    assert content["mean"]["hd95_infinite"] == content["organs"]["gallbladder"]["hd95_infinite"] == 1
    assert content["organs"]["liver"]["nsd_2mm"] == pytest.approx(result.organ_means.loc["liver", "nsd_2mm"])
    assert content["cases"]["case_c"]["organs"]["gallbladder"]["dice"] is None
    assert content["mean_order"].startswith("over the organs of each case, then over cases")

    with (tmp_path / "out.v1.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, scores in zip(rows, result.scores.to_dict("records"), strict=True):
        assert row == {column: str(value) if value == value else "" for column, value in scores.items()}
    assert [(row["case"], row["organ"]) for row in rows] == [(c, o) for c in CASES for o in LABELS.names]
    assert (rows[5]["absent"], rows[5]["hd95_mm"], rows[5]["dice"]) == ("reference", "inf", "0.0")
    assert (rows[8]["absent"], rows[8]["hd95_mm"], rows[8]["dice"]) == ("both", "", "")

    lines = [line for line in done.output.splitlines() if "│" in line]
    assert [line.split("│")[1].strip() for line in lines] == [*LABELS.names, "mean"]
    cells = [cell.strip() for cell in lines[-1].split("│")[2:-1]]
    assert cells[:3] == [f"{100 * result.mean[metric]:.2f}" for metric in ("dice", "nsd_1mm", "nsd_2mm")]
    assert cells[3] == f"{result.mean['hd95_mm']:.2f} (1)"
    assert not list(tmp_path.glob(".out*"))


def test_the_command_does_not_overwrite(folders, monkeypatch):
    predictions, labels = folders
    assert run(predictions, labels, "-np", 1).exit_code == 0
    before = (predictions / "metrics.json").read_text()
    with monkeypatch.context() as patched:
        patched.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", None)  # refused before any file is read
        done = run(predictions, labels, "-np", 1, "--tolerance", "3")
    assert done.exit_code == 1
    assert "will not overwrite" in done.output
    assert (predictions / "metrics.json").read_text() == before
    done = run(predictions, labels, "-np", 1, "--tolerance", "3", "--tolerance", "0.5voxel", "--overwrite")
    assert done.exit_code == 0, done.output
    assert json.loads((predictions / "metrics.json").read_text())["tolerances"] == ["3mm", "0.5voxel"]


def test_the_command_looks_first_whether_it_can_write(folders, monkeypatch):
    """Nobody can write into /proc, not even root."""
    if not Path("/proc").is_dir():
        pytest.skip("no /proc")
    monkeypatch.setattr("nnunet_dtc.study.evaluation.evaluate_pairs", None)
    done = run(*folders, "-o", "/proc/out")
    assert done.exit_code == 1
    assert "cannot write into /proc" in done.output


def test_the_command_shows_the_scores_that_it_cannot_write(folders, monkeypatch):
    def full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr("nnunet_dtc.study.evaluation.write_report", full)
    done = run(*folders, "-np", 1)
    assert done.exit_code == 1
    assert "Error: no space left on device" in done.output
    assert "spleen" in done.output


def test_the_command_with_given_labels_and_a_subset(folders, tmp_path):
    predictions, labels = folders
    (predictions / "case_c.nii.gz").unlink()
    given = "s=1,rest=2+3"
    arguments = (predictions, labels, "--labels", given, "--absent", "flare", "-o", tmp_path / "x.json", "-np", 1)
    assert "case_c.nii.gz" in run(*arguments).output
    assert not (tmp_path / "x.json").exists()
    assert run(*arguments, "--subset").exit_code == 0
    content = json.loads((tmp_path / "x.json").read_text())
    assert (list(content["cases"]), content["labels"]) == (["case_a", "case_b"], {"s": [1], "rest": [2, 3]})
    assert content["absent"] == "flare"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tolerance", "1cm"), "'1cm'"),
        (("-djfile", "nowhere.json"), "nowhere.json"),
        (("-djfile", "x.json", "--labels", "1"), "either"),
        (("--absent", "maybe"), "skip, flare"),
        (("-o", "no/such/folder/x"), "no/such/folder"),
    ],
)
def test_the_command_fails_with_one_message(folders, arguments, words):
    done = run(*folders, "-np", 1, *arguments)
    assert done.exit_code == 1
    assert words in done.output
    assert "Traceback" not in done.output
    assert not (folders[0] / "metrics.json").exists()


def test_without_dataset_json(folders):
    for folder in (folders[0], folders[1].parent):
        (folder / "dataset.json").unlink()
    assert "--labels" in run(*folders).output


def test_the_spacing_of_a_tiff_is_what_nnunet_reads(tmp_path):
    """It stands in the .json beside a TIFF of three axes. One of two axes has none; its resolution for prints is
    ignored."""
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
    from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
    from PIL import Image

    prediction, label = draw(3)
    for folder, array in (("predictions", prediction), ("labels", label)):
        (tmp_path / folder).mkdir()
        Tiff3DIO().write_seg(array, str(tmp_path / folder / "case.tif"), {"spacing": SPACING})
    found = evaluate(tmp_path / "predictions", tmp_path / "labels", ending=".tif")
    expected = pd.DataFrame(score_arrays(prediction, label, SPACING).values())
    pd.testing.assert_frame_equal(found.scores.drop(columns="case"), expected)
    assert Tiff3DIO().read_seg(str(tmp_path / "labels" / "case.tif"))[1]["spacing"] == list(SPACING)

    (tmp_path / "labels" / "case.json").write_text('{"spacing": [1, 0, 1]}')
    with pytest.raises(ev.EvaluationError, match=r"labels.case.tif: Spacing must be > 0, spacing: \[1, 0, 1\]"):
        evaluate(tmp_path / "predictions", tmp_path / "labels", ending=".tif")

    flat = tmp_path / "flat"
    flat.mkdir()
    Image.fromarray(label[2]).save(flat / "a.tif", dpi=(72, 72))
    NaturalImage2DIO().write_seg(prediction[2][None], str(flat / "b.tif"), {})
    reader = ev.find_reader(".tif", flat / "a.tif")
    assert reader.io_class is NaturalImage2DIO
    a, b = (reader.labels(flat / f"{name}.tif") for name in "ab")
    assert a.grid == b.grid
    assert a.grid.array_spacing_mm == (1.0, 1.0)
    np.testing.assert_array_equal(a.evaluated, label[2])
