"""Files are read with the reader that plans.json or dataset.json names, as nnU-Net reads them."""

import json
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from scipy import ndimage
from typer.testing import CliRunner

from nnunet_dtc.cli import app
from nnunet_dtc.study import evaluation as ev
from nnunet_dtc.study.evaluation.metrics import metrics_for
from nnunet_dtc.study.evaluation.readers import find_reader, reader_of_planner
from nnunet_dtc.study.evaluation.scoring import score_case

SHAPE, SPACING = (6, 11, 14), (3.0, 0.75, 0.5)  # z, y, x
LABELS = ev.LabelSet((ev.Organ("liver", (1,)), ev.Organ("spleen", (2,))))
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spleen": 2}, "numTraining": 1}
SHEAR = np.array([[0.5, 0.3, 0, 7], [0, np.sqrt(0.75**2 - 0.3**2), 0, -4], [0, 0, 3, 1], [0, 0, 0, 1]])
"""From voxels x, y, z to mm (RAS). The lengths of the columns are the spacing, but they are not orthogonal."""


def draw(seed, shape=SHAPE):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 1.2)
    return np.searchsorted(np.quantile(noise, (0.6, 0.8)), noise).astype(np.uint8)


def spoil(label, seed):
    return np.where(np.random.default_rng(seed).random(label.shape) < 0.08, draw(seed, label.shape), label)


def write_nifti(file, array, affine):
    """Write an array (z, y, x) with nibabel."""
    nibabel.save(nibabel.Nifti1Image(array.transpose(2, 1, 0), affine), file)


@pytest.fixture
def folders(tmp_path):
    """Predictions and labels whose axes are not orthogonal."""
    label = draw(1)
    pair = {"predictions": spoil(label, 2), "labels": label}
    for folder, array in pair.items():
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "case.nii.gz", array, SHEAR)
    return tmp_path / "predictions", tmp_path / "labels", *pair.values()


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", "-np", "1", *map(str, arguments)], env={"COLUMNS": "400"})


def evaluate(folder, ending=None, **options):
    """Evaluate the predictions in `p` with the labels in `l`."""
    pairs = ev.find_pairs(folder / "p", folder / "l", ending)
    return ev.evaluate_pairs(pairs, LABELS, **{"processes": 1} | options)


def write_json(folder, name, content):
    (folder / name).write_text(json.dumps(content))


def assert_scores(predictions, prediction, label, spacing=SPACING):
    metrics = metrics_for(ev.DEFAULT_TOLERANCES)
    found = json.loads((predictions / "metrics.json").read_text())["cases"]["case"]["organs"]
    for row in score_case(prediction, label, spacing, LABELS, metrics):
        for metric in metrics:
            assert found[row["organ"]][metric.key] == pytest.approx(row[metric.key]), (row["organ"], metric.key)


@pytest.mark.parametrize("named_by", ["dataset.json", "plans.json"])
def test_axes_that_are_not_orthogonal(folders, named_by):
    """SimpleITK refuses these files; nnU-Net's maintainers advise NibabelIO for them."""
    predictions, labels, prediction, label = folders
    write_json(predictions, "dataset.json", DATASET | {"file_ending": ".nii.gz"})
    done = run(predictions, labels)
    assert done.exit_code == 1
    assert f"cannot read {predictions / 'case.nii.gz'}: ITK ERROR" in done.output
    assert '"overwrite_image_reader_writer": "NibabelIO"' in done.output

    if named_by == "plans.json":
        write_json(predictions, "plans.json", {"image_reader_writer": "NibabelIO"})
    else:
        more = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIO"}
        write_json(predictions, "dataset.json", DATASET | more)
    done = run(predictions, labels)
    assert done.exit_code == 0, done.output
    assert_scores(predictions, prediction, label)
    files = [str(folder / "case.nii.gz") for folder in (labels, predictions)]
    theirs = compute_metrics(*files, NibabelIO(), [1, 2])["metrics"]
    found = json.loads((predictions / "metrics.json").read_text())["cases"]["case"]["organs"]
    assert [found[organ]["dice"] for organ in LABELS.names] == pytest.approx([theirs[n]["Dice"] for n in (1, 2)])


def test_plain_nii_files_are_read_by_nibabel_as_nnunet_decides(tmp_path):
    """By the ending alone: nnU-Net's SimpleITKIO does not list .nii."""
    label = draw(3)
    prediction = spoil(label, 4)
    for folder, array in (("p", prediction), ("l", label)):
        (tmp_path / folder).mkdir()
        write_nifti(tmp_path / folder / "case.nii", array, SHEAR)
    write_json(tmp_path / "p", "dataset.json", DATASET | {"file_ending": ".nii"})
    done = run(tmp_path / "p", tmp_path / "l")
    assert done.exit_code == 0, done.output
    assert_scores(tmp_path / "p", prediction, label)


def test_reorienting_reader(tmp_path):
    """The prediction is stored along other axes than the label, but in the same place. Voxel by voxel, even their sizes
    differ."""
    label = draw(5)
    prediction = spoil(label, 6)
    affine = np.diag((0.5, 0.75, 3.0, 1.0))
    image = nibabel.Nifti1Image(prediction.transpose(2, 1, 0), affine)
    stored = image.as_reoriented(np.array([[2, 1], [0, -1], [1, -1]]))
    for folder in ("p", "l"):
        (tmp_path / folder).mkdir()
    nibabel.save(stored, tmp_path / "p" / "case.nii.gz")
    write_nifti(tmp_path / "l" / "case.nii.gz", label, affine)
    name = {"file_ending": ".nii.gz", "overwrite_image_reader_writer": "NibabelIOWithReorient"}
    write_json(tmp_path / "p", "dataset.json", DATASET | name)
    done = run(tmp_path / "p", tmp_path / "l")
    assert done.exit_code == 0, done.output
    assert "note" not in done.output
    assert_scores(tmp_path / "p", prediction, label)
    plain = ev.find_pairs(tmp_path / "p", tmp_path / "l")
    with pytest.raises(ev.EvaluationError, match="sizes"):
        ev.evaluate_pairs(plain, LABELS, processes=1)


@pytest.mark.parametrize(("ending", "reader"), [(".tif", Tiff3DIO), (".tiff", Tiff3DIO), (".png", NaturalImage2DIO)])
def test_formats_of_other_readers(tmp_path, ending, reader):
    """A TIFF of three axes has its spacing in the .json beside it; pictures have pixels of 1."""
    label = draw(7)
    spacing = SPACING
    if reader is NaturalImage2DIO:
        label, spacing = label[2:3], (1.0, 1.0)
    prediction = spoil(label, 8)
    for folder, array in (("p", prediction), ("l", label)):
        (tmp_path / folder).mkdir()
        reader().write_seg(array, str(tmp_path / folder / f"case{ending}"), {"spacing": SPACING})
    write_json(tmp_path / "p", "dataset.json", DATASET | {"file_ending": ending})
    done = run(tmp_path / "p", tmp_path / "l")
    assert done.exit_code == 0, done.output
    flat = reader is NaturalImage2DIO
    assert_scores(tmp_path / "p", prediction[0] if flat else prediction, label[0] if flat else label, spacing)


def test_a_tiff_without_a_spacing_has_that_of_its_prediction(tmp_path):
    """nnU-Net copies the labels of the validation without the file that holds their spacing."""
    label = draw(7)
    prediction = spoil(label, 8)
    for folder, array in (("p", prediction), ("l", label)):
        (tmp_path / folder).mkdir()
        Tiff3DIO().write_seg(array, str(tmp_path / folder / "case.tif"), {"spacing": SPACING})
    (tmp_path / "l" / "case.json").unlink()
    write_json(tmp_path / "p", "dataset.json", DATASET | {"file_ending": ".tif"})
    done = run(tmp_path / "p", tmp_path / "l")
    assert done.exit_code == 0, done.output
    assert_scores(tmp_path / "p", prediction, label)


def test_before_planning_the_first_image_decides_on_the_reader(tmp_path):
    """As in nnU-Net's planner: both endings have a reader that comes first and cannot read these."""
    tifffile.imwrite(tmp_path / "a_0000.tif", draw(3))
    described = DATASET | {"file_ending": ".tif"}
    assert reader_of_planner(tmp_path / "a_0000.tif", ".tif", described).io_class is Tiff3DIO
    write_nifti(tmp_path / "b_0000.nii.gz", draw(3), SHEAR)
    assert reader_of_planner(tmp_path / "b_0000.nii.gz", ".nii.gz", DATASET).name == "NibabelIO"
    named = DATASET | {"overwrite_image_reader_writer": "NibabelIOWithReorient"}
    assert reader_of_planner(tmp_path / "b_0000.nii.gz", ".nii.gz", named).name == "NibabelIOWithReorient"


def test_a_tiff_of_another_spacing_is_refused(tmp_path):
    for folder, spacing in (("p", (3.0, 0.75, 0.5)), ("l", (3.0, 0.75, 0.6))):
        (tmp_path / folder).mkdir()
        Tiff3DIO().write_seg(draw(9), str(tmp_path / folder / "case.tif"), {"spacing": spacing})
    with pytest.raises(ev.EvaluationError, match=r"spacing \(0.5, 0.75, 3\) and \(0.6, 0.75, 3\)"):
        evaluate(tmp_path)


OWN = """
import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter


class NumpyIO(BaseReaderWriter):
    supported_file_endings = [".npy"]

    def read_images(self, files):
        return np.stack([np.load(file) for file in files]).astype(np.float32), {"spacing": [3.0, 0.75, 0.5]}

    def read_seg(self, file):
        return self.read_images([file])

    def write_seg(self, seg, file, properties):
        np.save(file, seg)
"""


@pytest.mark.parametrize("named", [True, False])
def test_a_reader_that_somebody_registered(tmp_path, monkeypatch, named):
    """Found by name or by the ending, and used in other processes."""
    from nnunetv2.imageio import reader_writer_registry

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / f"own_readers_{named}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path / "code")
    own = getattr(__import__(f"own_readers_{named}"), "NumpyIO")  # noqa: B009
    monkeypatch.setattr(reader_writer_registry, "LIST_OF_IO_CLASSES", [*reader_writer_registry.LIST_OF_IO_CLASSES, own])
    for folder, seed in (("p", 10), ("l", 11)):
        (tmp_path / folder).mkdir()
        for case in "ab":
            np.save(tmp_path / folder / f"{case}.npy", draw(seed))
    plans = {"image_reader_writer": "NumpyIO"} if named else None
    reader = find_reader(".npy", tmp_path / "l" / "a.npy", {"file_ending": ".npy"}, plans)
    assert reader.name == "NumpyIO"
    found = evaluate(tmp_path, ".npy", processes=2, reader=reader)
    expected = score_case(draw(10), draw(11), SPACING, LABELS, metrics_for(ev.DEFAULT_TOLERANCES))
    assert found.scores.to_dict("records") == [{"case": case} | row for case in "ab" for row in expected]


@pytest.mark.parametrize(
    "name", ["os.system", "isfile", "np", "BaseReaderWriter", "NoSuchIO", "", 3, ["NibabelIO"], None]
)
def test_a_name_is_looked_up_among_readers_alone(name):
    """nnU-Net itself takes any attribute of its modules, such as a function of another name."""
    with pytest.raises(ev.EvaluationError, match=r"image_reader_writer in plans.json must be one of nnU-Net's readers"):
        find_reader(".nii.gz", plans={"image_reader_writer": name})
    warnings = []
    reader = find_reader(".nii.gz", dataset_json={"overwrite_image_reader_writer": name}, warn=warnings.append)
    assert reader.name == "SimpleITKIO"
    assert len(warnings) == (name is not None)


def test_which_reader_decides():
    nibabel_io, reorient = (
        {"image_reader_writer": "NibabelIO"},
        {"overwrite_image_reader_writer": "NibabelIOWithReorient"},
    )
    assert find_reader(".nii.gz", None, reorient, nibabel_io).io_class is NibabelIO
    assert find_reader(".nii.gz", None, reorient).io_class is NibabelIOWithReorient
    assert find_reader(".nii.gz", None, {"overwrite_image_reader_writer": "None"}).io_class is None
    assert find_reader(".nii.gz").io_class is None
    assert find_reader(".nii").io_class is None  # without dataset.json, images of two axes are read as well
    assert find_reader(".png").io_class is NaturalImage2DIO
    assert find_reader(".mhd").io_class is None


def test_a_reader_that_fails_is_named_with_its_file(tmp_path):
    file = tmp_path / "x.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    reader = find_reader(".png", plans={"image_reader_writer": "NaturalImage2DIO"})
    with pytest.raises(ev.EvaluationError, match=r"nnU-Net's NaturalImage2DIO cannot read .*x.png: ."):
        reader.labels(file)


def test_a_slice_as_an_image_of_two_axes_or_three_and_a_fourth_axis_of_one(tmp_path):
    """nnU-Net reads all of these as one slice, or as one channel."""
    label = draw(12)
    for folder, image in (
        ("p", sitk.GetImageFromArray(label[2])),
        ("l", sitk.GetImageFromArray(label[2:3])),
    ):
        (tmp_path / folder).mkdir()
        sitk.WriteImage(image, str(tmp_path / folder / "flat.nii.gz"))
    found = evaluate(tmp_path)
    assert found.mean["dice"] == 1
    for folder in ("p", "l"):
        (tmp_path / folder / "flat.nii.gz").unlink()
    write_nifti(tmp_path / "p" / "x.nii.gz", label, np.eye(4))
    nibabel.save(nibabel.Nifti1Image(label.transpose(2, 1, 0)[..., None], np.eye(4)), tmp_path / "l" / "x.nii.gz")
    assert evaluate(tmp_path).mean["dice"] == 1


def test_readers_do_not_load_torch():
    """They run in many processes."""
    code = """
import sys
from nnunet_dtc.study.evaluation.readers import find_reader
find_reader(".nii.gz")
assert "nnunetv2" not in sys.modules
find_reader(".nii.gz", plans={"image_reader_writer": "NibabelIO"})
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
