"""A real training keeps the record of the coordinates, and the command shows those of the trained model."""

import csv
import json

import pytest

pytestmark = pytest.mark.nnunet

TRAINER = "nnUNetTrainerDTC_RF4_1epochs"
BOUND_MM = 4 / 4 * 1.6  # RF / 4 voxels of twice and four times the spacing


@pytest.fixture(scope="module")
def fold(workspace, dataset):
    workspace.shrink_plans(dataset, features_2d=(4, 8, 16))
    return workspace.train_shortly(dataset, "2d", 0, TRAINER)


def read(file):
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_training_keeps_the_record(workspace, fold):
    workspace.check_model(fold, epochs=1)
    rows = read(fold / "coordinates.csv")
    assert [(row["epoch"], row["stage"], row["axis"]) for row in rows] == [
        ("0", stage, axis) for stage in "12" for axis in "yx"
    ]
    assert [float(row["bound_mm"]) for row in rows] == pytest.approx([4 * BOUND_MM] * 2 + [2 * BOUND_MM] * 2)
    assert all(0 < float(row["mean_mm"]) < float(row["bound_mm"]) for row in rows)
    [log] = fold.glob("training_log_*.txt")
    assert log.read_text().count("DTC stage ") == 2
    assert "not recorded" not in log.read_text()


def test_the_command_shows_the_trained_model(workspace, fold):
    case = workspace.held_out[0]
    printed = workspace.run(
        *("nnunet-dtc", "coordinates", fold.parent, "-i", workspace.images_held_out / f"{case}_0000.nii.gz"),
        *("--labels", workspace.labels_held_out / f"{case}.nii.gz", "--device", "cpu"),
        env=workspace.environment(only_results=True),
    )
    out = workspace.root / f"coordinates_{case}"
    assert f"wrote coordinates_{case}/coordinates.json" in printed
    written = json.loads((out / "coordinates.json").read_text())
    assert written["model"]["epochs"] == 1
    [recorded, shown] = [read(folder / "coordinates.csv") for folder in (fold, out)]
    for key in ("epoch", "stage", "block", "axis", "size", "spacing_mm", "bound_mm"):
        assert [row[key] for row in shown] == [row[key] for row in recorded]
    # another image, the same network
    for row, other in zip(shown, recorded, strict=True):
        assert float(row["mean_mm"]) == pytest.approx(float(other["mean_mm"]), rel=1, abs=0.1)
    assert (out / "coordinates.png").stat().st_size > 50_000
