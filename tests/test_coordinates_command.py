"""The command ``nnunet-dtc coordinates``: its results, the patch that it selects, and what it refuses."""

import csv
import gzip
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from coordinates_example import PATCH
from matplotlib.figure import Figure
from model_folders import RGB, write_model
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import DATASET, small_plans
from typer.testing import CliRunner

from nnunet_dtc import trainers
from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.study.coordinates import sampling_report
from nnunet_dtc.study.coordinates.forward_pass import find_coordinates
from nnunet_dtc.study.coordinates.image_patch import load_patch
from nnunet_dtc.study.coordinates.trained_model import load_model
from nnunet_dtc.trainers.coordinates_csv import COLUMNS


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder; nnU-Net's folders are not set and the trainers are not registered."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_extTrainer"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(sampling_report, "DPI", 40)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return tmp_path


def write_volume(file, shape, spacing=(3.0, 0.8, 0.8), seed=0, labels=None):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32) if labels is None else labels
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing[::-1])
    sitk.WriteImage(image, str(file))
    return file


def run(*arguments):
    result = CliRunner().invoke(app, ["coordinates", *map(str, arguments), "--device", "cpu"], env={"COLUMNS": "400"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_command_on_a_volume(here):
    model = write_model(here / "results")
    image = write_volume(here / "case_7_0000.nii.gz", PATCH)
    code, printed = run(model, "-i", image)
    assert code == 0, printed
    out = here / "work" / "coordinates_case_7"
    assert sorted(file.name for file in out.iterdir()) == ["coordinates.csv", "coordinates.json", "coordinates.png"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out / "coordinates.png"))).shape[0] > 200
    for text in ("3 of 3", "6 x 8 x 12 to", "6 x 16 x 24"):
        assert text in printed

    # nnU-Net's own predictor with the hooks of this test
    predictor = nnUNetPredictor(use_gaussian=False, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    content = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    plans = PlansManager(json.loads((model / "plans.json").read_text()))
    configuration = plans.get_configuration("3d_fullres")
    network = trainers.nnUNetTrainerDTC_RF10.build_network_architecture(plans, configuration, 1, 3, False)
    network.load_state_dict(content["network_weights"])
    predictor.manual_initialization(network.eval(), plans, configuration, None, DATASET, "nnUNetTrainerDTC_RF10", None)
    predictor.list_of_parameters = [content["network_weights"]]
    seen = []
    for block in filter(is_dtc, network.modules()):
        block.coords.register_forward_hook(lambda _module, _inputs, coords: seen.append(coords))
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))[None]
    predictor.predict_single_npy_array(array, {"spacing": (3.0, 0.8, 0.8)})
    assert len(seen) == 3

    written = json.loads((out / "coordinates.json").read_text())
    assert written["model"] | {"folder": ""} == {
        "folder": "",
        "fold": "0",
        "checkpoint": "checkpoint_final.pth",
        "trainer": "nnUNetTrainerDTC_RF10",
        "configuration": "3d_fullres",
        "epochs": 7,
    }
    assert written["image"]["axes"] == ["z", "y", "x"]
    for stage, coords in zip(written["stages"], seen, strict=True):
        coords = coords.numpy()[0]
        for index, axis in enumerate(stage["axes"]):
            length = np.abs(2.5 * np.tanh(coords[index]) / (1 + np.exp(-coords[3 + index])))
            assert axis["mean_voxels"] == pytest.approx(length.mean(), rel=1e-4)
            assert axis["max_voxels"] == pytest.approx(length.max(), rel=1e-4)
            assert axis["mean_mm"] == pytest.approx(axis["mean_voxels"] * axis["spacing_mm"])
            assert sum(axis["histogram"]) == length.size
    with (out / "coordinates.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert {row["epoch"] for row in rows} == {"6"}  # the last one, counted from 0 as nnU-Net does
    assert [float(row["mean_mm"]) for row in rows] == pytest.approx(
        [axis["mean_mm"] for stage in written["stages"] for axis in stage["axes"]], rel=1e-5
    )

    code, printed = run(model, "-i", image)
    assert code == 1
    assert "will not overwrite" in printed
    assert run(model, "-i", image, "--overwrite")[0] == 0


def test_a_network_that_pads_and_a_receptive_field_with_decimals(here):
    """The U-Net pads its patch to (32, 48): a voxel of its deepest map is 16 pixels of 0.8 mm wide, and the samples are
    drawn over the padded patch."""
    plans = small_plans()
    plans["configurations"]["2d"].update(patch_size=[20, 33])
    plans["configurations"]["2d"]["architecture"]["nnunet_dtc"] = {"UNet": {"width": 4}}
    model = write_model(here / "results", "nnUNetTrainerUNetDTC_RF2.5", "2d", plans=plans)
    image = write_volume(here / "case_8_0000.nii.gz", (3, 20, 33))
    code, printed = run(model, "-i", image)
    assert code == 0, printed
    assert "The network pads the patch of (20, 33) with zeros to (32, 48)" in " ".join(printed.split())
    written = json.loads((here / "work" / "coordinates_case_8" / "coordinates.json").read_text())
    widths = [[axis["spacing_mm"] for axis in stage["axes"]] for stage in written["stages"]]
    assert widths == [pytest.approx([0.8 * step] * 2) for step in (16, 8, 4, 2)]
    found = find_coordinates(load_model(model), load_patch(load_model(model), [image]))
    first = sampling_report.draw(found).axes[0]
    assert first.images[0].get_array().shape[:2] == (32, 48)


def patch_of(here, *arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling_report, "draw", lambda _found: Figure((1, 1)))  # the figure takes seconds
        code, printed = run(*arguments, "-o", here / "out", "--overwrite")
    assert code == 0, printed
    return json.loads((here / "out" / "coordinates.json").read_text())["image"]


def test_the_patch_is_cut_at_the_centre_or_the_labels(here):
    """The image has other spacings than the model, is transposed and cropped, and is larger than the patch."""
    plans = small_plans() | {"transpose_forward": [1, 2, 0], "transpose_backward": [2, 0, 1]}
    model = load_model(write_model(here / "results", plans=plans))
    array = np.random.default_rng(0).normal(size=(70, 20, 50)).astype(np.float32)
    array[:10] = 0  # nnU-Net crops that
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.8, 1.5, 0.8))  # x, y, z
    sitk.WriteImage(image, str(here / "a_0000.nii.gz"))
    labels = np.zeros(array.shape, np.uint8)
    labels[60:66, 2:6, 40:48] = 1
    sitk.WriteImage(_like(labels, image), str(here / "labels.nii.gz"))

    def look(**options):
        patch = load_patch(model, [here / "a_0000.nii.gz"], **options)
        assert patch.data.shape == (1, 6, 16, 24)
        assert patch.image_size == (10, 50, 60)  # y, x, z; y is halved, and z has no zeros
        return patch

    assert model.axes == ("y", "x", "z")
    assert look().start == (2, 17, 18)
    for center, expected in (((40, 10, 30), (2.25, 22.5, 18.5)), ((0, 0, 0), (0, 0, 0)), ((69, 19, 49), (4, 34, 36))):
        patch = look(center=center)
        assert patch.start == pytest.approx(expected, abs=0.6)
    y, x, z = look(labels=here / "labels.nii.gz").start
    assert (y <= 1, x <= 40 < 48 <= x + 16, z <= 50 < 56 <= z + 24) == (True, True, True)
    # x and z are not resampled and y is halved, so that neighbouring patches do not correlate
    whole = array[10:].transpose(1, 2, 0)
    halved = (whole[0::2] + whole[1::2]) / 2
    content = look(center=(40, 10, 30)).data[0].ravel()

    def similar(y, x, z):
        return np.corrcoef(content, halved[y : y + 6, x : x + 16, z : z + 24].ravel())[0, 1]

    assert similar(2, 22, 18) > 0.6
    assert all(
        abs(similar(y, x, z)) < 0.1 for y, x, z in ((1, 22, 18), (2, 21, 18), (2, 23, 18), (2, 22, 17), (2, 22, 19))
    )


def _like(array, image):
    made = sitk.GetImageFromArray(array)
    made.CopyInformation(image)
    return made


def test_the_command_on_colour_images(here):
    from PIL import Image

    model = write_model(here / "results", configuration="2d", dataset=RGB)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(here / "skin_0000.png")
    code, printed = run(model, "-i", here / "skin_0000.png", "-o", here / "out", "--center", "35,5")
    assert code == 0, printed
    assert "a pixel as 1 mm" in printed
    assert "pixels" in printed
    written = json.loads((here / "out" / "coordinates.json").read_text())
    assert written["image"]["unit"] == "pixels"
    # the model's spacing is 0.8: 40 x 60 pixels become 50 x 75
    assert written["image"]["preprocessed_size"] == [50, 75]
    assert written["image"]["patch_start"] == [34, 0]
    assert written["image"]["slice"] is None
    Image.fromarray(pixels[..., 0]).save(here / "grey_0000.png")
    code, printed = run(model, "-i", here / "grey_0000.png", "-o", here / "grey")
    assert code == 1
    assert "the model needs 3 channels, got 1" in printed
    assert not (here / "grey").exists()


def test_a_2d_model_on_a_volume_with_two_channels(here):
    two = DATASET | {"channel_names": {"0": "T1", "1": "T2"}}
    model = write_model(here / "results", configuration="2d", dataset=two)
    for channel in range(2):
        write_volume(here / f"b_{channel:04d}.nii.gz", (9, 20, 30), seed=channel)
    found = patch_of(here, model, "-i", here / "b_0000.nii.gz", "--center", "7,3,29")
    assert found["slice"] == 7
    assert found["patch_start"] == [0, 6]
    assert [Path(file).name for file in found["files"]] == ["b_0000.nii.gz", "b_0001.nii.gz"]
    given = patch_of(here, model, "-i", here / "b_0000.nii.gz", "-i", here / "b_0001.nii.gz")
    assert given["slice"] == 4


def test_the_second_stage_of_a_cascade_needs_the_first_ones_prediction(here):
    model = write_model(here / "results", configuration="3d_cascade_fullres")
    image = write_volume(here / "c_0000.nii.gz", PATCH)
    code, printed = run(model, "-i", image, "-o", here / "out")
    assert code == 1
    assert "needs the prediction of 3d_lowres as labels" in printed
    labels = np.random.default_rng(0).integers(0, 3, PATCH).astype(np.uint8)
    labels = write_volume(here / "c.nii.gz", PATCH, labels=labels)
    assert patch_of(here, model, "-i", image, "--labels", labels)["patch_start"] == [0, 0, 0]


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (str(Path.cwd() / "run"),))


def test_what_the_command_refuses(here):
    model = write_model(here / "results")
    image = write_volume(here / "case_0000.nii.gz", PATCH)
    vanilla = write_model(here / "results", "nnUNetTrainer_7epochs")
    fold = model / "fold_0"

    def refused(*arguments):
        before = sorted(here.rglob("*"))
        code, printed = run(*arguments)
        assert code == 1, printed
        assert sorted(here.rglob("*")) == before
        return " ".join(printed.split())

    assert "there is no plans.json and no dataset.json" in refused(here, "-i", image)
    assert "has no fold 3; it has 0" in refused(model, "-i", image, "-f", "3")
    assert "there is no checkpoint" in refused(model, "-i", image, "-chk", "checkpoint_best.pth")
    assert "has no DTC block (its trainer is nnUNetTrainer_7epochs)" in refused(vanilla, "-i", image)
    assert "there is no file" in refused(model, "-i", here / "none_0000.nii.gz")
    assert "there is no file" in refused(model, "-i", image, "--labels", here / "none.nii.gz")
    assert "images end in .nii.gz, got" in refused(model, "-i", model / "plans.json")
    assert "must be a voxel of the image, (6, 16, 24) large, got (6, 0, 0)" in refused(
        model, "-i", image, "--center", "6,0,0"
    )
    assert "--center takes two or three whole numbers" in refused(model, "-i", image, "--center", "a,b")
    assert "is the folder of a training" in refused(model, "-i", image, "-o", fold, "--overwrite")
    assert "the output must be a folder, got the file" in refused(model, "-i", image, "-o", image)
    assert "there is no folder" in refused(model, "-i", image, "-o", here / "no" / "out")
    content = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    torch.save(content | {"more": Bomb()}, fold / "checkpoint_bomb.pth")
    assert "is refused" in refused(model, "-i", image, "-chk", "checkpoint_bomb.pth")
    assert not (here / "work" / "run").exists()
    pickle.loads(pickle.dumps(Bomb()))
    (here / "work" / "run").rmdir()  # the pickle does run code
    (here / "bad_0000.nii.gz").write_bytes(b"no image")
    assert f"cannot read {here / 'bad_0000.nii.gz'}" in refused(model, "-i", here / "bad_0000.nii.gz")
    assert "the model needs 1 channels, got 2: " in refused(model, "-i", image, "-i", image)
    (here / "cut_0000.nii.gz").write_bytes(image.read_bytes()[:-900])
    assert "cut_0000.nii.gz" in refused(model, "-i", here / "cut_0000.nii.gz")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 9, 7), np.uint8)), str(here / "other.nii.gz"))
    message = refused(model, "-i", image, "--labels", here / "other.nii.gz")
    assert f"{here / 'other.nii.gz'} is not on the grid of {image} (are they labels of this image?)" in message
    if not torch.cuda.is_available():
        result = CliRunner().invoke(app, ["coordinates", str(model), "-i", str(image), "--device", "cuda"])
        assert "torch finds no CUDA GPU" in result.output


@pytest.mark.parametrize("which", ["image", "second channel", "labels"])
def test_a_truncated_file_is_refused(here, which):
    """SimpleITK, and therefore nnU-Net, reads the missing part as background."""
    dataset = DATASET | {"channel_names": {"0": "T1", "1": "T2"}}
    model = write_model(here / "results", dataset=dataset)
    files = {
        "image": write_volume(here / "case_0000.nii.gz", PATCH),
        "second channel": write_volume(here / "case_0001.nii.gz", PATCH, seed=1),
        "labels": write_volume(here / "labels.nii.gz", PATCH, labels=np.ones(PATCH, np.uint8)),
    }
    damaged = files[which]
    content = gzip.decompress(damaged.read_bytes())
    damaged.write_bytes(gzip.compress(content[: len(content) // 2]))
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(damaged))).shape == PATCH
    code, printed = run(model, "-i", files["image"], "--labels", files["labels"])
    assert code == 1
    assert f"cannot read {damaged}: it is cut off" in printed
    assert not any((here / "work").iterdir())


def test_labels_with_another_origin_are_accepted_and_with_another_spacing_refused(here):
    model = load_model(write_model(here / "results"))
    image = write_volume(here / "case_0000.nii.gz", (8, 40, 50))
    labels = np.zeros((8, 40, 50), np.uint8)
    labels[5:, 22:38, 24:48] = 1
    for name, origin, spacing in (("same", (0, 0, 0), (0.8, 0.8, 3)), ("shifted", (50, -7, 3), (0.8, 0.8, 3))):
        stored = sitk.GetImageFromArray(labels)
        stored.SetSpacing(spacing)
        stored.SetOrigin(origin)
        sitk.WriteImage(stored, str(here / f"{name}.nii.gz"))
    same, shifted = (load_patch(model, [image], here / f"{name}.nii.gz") for name in ("same", "shifted"))
    assert same.start == shifted.start != load_patch(model, [image]).start
    write_volume(here / "other.nii.gz", labels.shape, (3.0, 0.8, 0.9), labels=labels)
    with pytest.raises(NnunetDtcError, match=r"other.nii.gz is not on the grid of .*spacing \(0.9, 0.8, 3\)"):
        load_patch(model, [image], here / "other.nii.gz")
