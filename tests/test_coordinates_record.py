"""The record of the coordinates: its file, and the trainings that write it."""

import csv
from pathlib import Path

import pytest
import torch
from plans import DATASET, small_plans
from torch._dynamo.utils import counters

from nnunet_dtc import trainers
from nnunet_dtc.architectures.unet import UNet
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.coordinates import collect, measure
from nnunet_dtc.trainers.coordinates_csv import COLUMNS, FILE_NAME, POSITIONS, record_epoch, write_epoch


def rows_of(epoch, count=2):
    return [
        dict.fromkeys(COLUMNS, 0.5) | {"epoch": epoch, "stage": k, "block": "up", "axis": "z"} for k in range(count)
    ]


def epochs_in(file):
    with Path(file).open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows = list(reader)
    assert tuple(reader.fieldnames) == COLUMNS
    assert all(None not in row and None not in row.values() for row in rows)
    return [int(row["epoch"]) for row in rows]


def test_every_epoch_is_recorded_once(tmp_path):
    file = tmp_path / "coordinates.csv"
    for epoch in range(5):
        write_epoch(file, epoch, rows_of(epoch))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for epoch in (3, 4, 5):  # a training that continues from a checkpoint of epoch 2
        write_epoch(file, epoch, rows_of(epoch, 1))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    with file.open("a") as stream:
        stream.write("6,1,up,z,0.5,0.")  # killed in the middle of a row
    write_epoch(file, 7, rows_of(7))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 7, 7]
    write_epoch(file, 0, rows_of(0))  # a new training
    assert epochs_in(file) == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["coordinates.csv"]


def test_lengths_in_mm_of_a_network_that_pads(tmp_path):
    """The U-Net pads (20, 33) to (32, 48), so that a voxel of its deepest map is 16 pixels wide."""
    network = UNet(1, 3, receptive_field=10, width=4)
    record_epoch(tmp_path / FILE_NAME, 0, network, torch.randn(1, 1, 20, 33), (0.5, 0.75), ("y", "x"))
    with (tmp_path / FILE_NAME).open(newline="") as stream:
        widths = [float(row["spacing_mm"]) for row in csv.DictReader(stream)]
    assert widths == pytest.approx([step * side for step in (16, 8, 4, 2) for side in (0.5, 0.75)])


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "coordinates.csv"
    file.write_text("x,y\n1,2\n")
    with pytest.raises(NnunetDtcError, match="has other columns"):
        write_epoch(file, 0, rows_of(0))
    assert file.read_text() == "x,y\n1,2\n"


FORMER = """\
epoch,stage,block,axis,size,spacing_mm,bound_voxels,mean_voxels,p95_voxels,max_voxels,bound_mm,mean_mm,p95_mm,max_mm,\
used,saturated,shut,open,variation,states
0,1,decoder.open.0,y,8,1.6,1,0.1,0.2,0.3,1.6,0.16,0.32,0.48,0.1,0,0.75,0.25,0.2,dead shut
0,1,decoder.open.0,x,6,3.2,1,0.1,0.2,0.3,3.2,0.32,0.64,0.96,0.1,0.625,,,0.2,saturated
1,1,decoder.open.0,y,8,1.6,1,,,,1.6,,,,,,,,,not finite
2,1,decoder.open.0,y,8,1.6,1,0.1,0.2,0.3,1.6,0.16,0.32,0.48,0.1,0,0,1,0.2,open
"""


@pytest.mark.parametrize("epoch", [2, 3])
def test_a_file_with_the_column_names_of_an_earlier_version_is_continued(tmp_path, epoch):
    file = tmp_path / "coordinates.csv"
    file.write_text(FORMER)
    write_epoch(file, epoch, rows_of(epoch))
    write_epoch(file, epoch + 1, rows_of(epoch + 1, 1))
    assert epochs_in(file) == [0, 0, 1, *([2] if epoch == 3 else []), epoch, epoch, epoch + 1]
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["states"] for row in rows[:3]] == ["constant weight_at_0", "offset_saturated", "not finite"]
    assert [row["block"] for row in rows[:3]] == ["decoder.open.0"] * 3
    assert [(row["weight_at_0"], row["weight_at_1"]) for row in rows[:3]] == [("0.75", "0.25"), ("", ""), ("", "")]
    assert [row["offset_saturated"] for row in rows[:3]] == ["0", "0.625", ""]
    assert [row["max_mm"] for row in rows[:3]] == ["0.48", "0.96", ""]
    if epoch == 3:
        assert rows[3]["states"] == "weight_at_1"
    assert [path.name for path in tmp_path.iterdir()] == ["coordinates.csv"]


# ---- in a training -------------------------------------------------------------------------------------------------


class Batches:
    """An endless data loader of random batches with its own generator."""

    def __init__(self, trainer, seed):
        self.patch, self.generator = trainer.configuration_manager.patch_size, torch.Generator().manual_seed(seed)
        self.regions = trainer.label_manager.has_regions
        scales = trainer._get_deep_supervision_scales()
        self.sizes = [[round(size * step) for size, step in zip(self.patch, scale, strict=True)] for scale in scales]

    def __next__(self):
        data = torch.randn(2, 1, *self.patch, generator=self.generator)
        heads, top = (2, 2) if self.regions else (1, 3)
        target = [torch.randint(0, top, (2, heads, *size), generator=self.generator).float() for size in self.sizes]
        return {"data": data, "target": target}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A trainer that trains on random batches and is otherwise unchanged."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("NNUNET_DTC_COORDINATES", raising=False)

    def make(name="nnUNetTrainerDTC_RF4_2epochs", configuration="2d", dataset=DATASET, results=None):
        if results is not None:
            monkeypatch.setenv("nnUNet_results", str(tmp_path / results))
        torch.manual_seed(3)
        plans = small_plans() | {"continue_training": False}
        trainer = getattr(trainers, name)(plans, configuration, 0, dataset, torch.device("cpu"))
        arguments = (
            trainer.plans_manager,
            trainer.configuration_manager,
            1,
            trainer.label_manager.num_segmentation_heads,
        )
        trainer.network = trainer.build_network_architecture(*arguments, True)
        trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
        trainer.loss = trainer._build_loss()
        trainer.was_initialized = True
        trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 2
        trainer.dataloader_train, trainer.dataloader_val = Batches(trainer, 1), Batches(trainer, 2)
        monkeypatch.setattr(trainer.logger, "plot_progress_png", lambda _folder: None)  # slow
        monkeypatch.setattr(trainer, "on_train_start", lambda: None)  # it asks for a preprocessed data set
        return trainer

    return make


def record_of(trainer):
    return Path(trainer.output_folder) / "coordinates.csv"


def log_of(trainer):
    return Path(trainer.log_file).read_text()


def test_a_training_keeps_the_record(make):
    trainer = make()
    trainer.run_training()
    with record_of(trainer).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["epoch"], row["stage"], row["axis"]) for row in rows] == [
        (str(epoch), str(stage), axis) for epoch in range(2) for stage in (1, 2) for axis in "yx"
    ]
    assert [row["block"] for row in rows[:4]] == [f"decoder.transpconvs.{k}" for k in (0, 0, 1, 1)]
    # plans: patch 16 x 24, spacing 0.8, strides (2, 2) and (1, 2)
    assert [(row["size"], row["spacing_mm"], row["bound_mm"]) for row in rows[:4]] == [
        ("8", "1.6", "1.6"),
        ("6", "3.2", "3.2"),
        ("8", "1.6", "1.6"),
        ("12", "1.6", "1.6"),
    ]
    assert all(0 < float(row["mean_mm"]) < float(row["max_mm"]) <= float(row["bound_mm"]) for row in rows)
    log = log_of(trainer)
    assert log.count("DTC stage 1 of 2 (8 x 6 to 8 x 12): shift mm mean (max) y ") == 2
    assert log.count("DTC coordinates go to coordinates.csv") == 1
    assert "not recorded" not in log
    assert not any("coord" in key for key in trainer.logger.local_logger.my_fantastic_logging)


def test_the_rows_are_those_of_the_last_case_of_the_first_validation_batch(make):
    trainer = make("nnUNetTrainerDTC_RF4_1epochs")
    trainer.run_training()
    # the network after the last training step
    data = next(Batches(trainer, 2))["data"][-1:]
    [*_, last] = measure(collect(trainer.network, data, POSITIONS)[1], data.shape[2:], (0.8, 0.8), "yx")
    with record_of(trainer).open(newline="") as stream:
        row = list(csv.DictReader(stream))[-1]
    assert float(row["mean_mm"]) == pytest.approx(last.axes[1].mean_mm, rel=1e-5)
    assert float(row["variation"]) == pytest.approx(last.axes[1].variation, rel=1e-5)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_the_training_is_the_same_with_and_without_the_record(make, monkeypatch, configuration):
    ended = []
    for value in ("1", "0"):
        monkeypatch.setenv("NNUNET_DTC_COORDINATES", value)
        trainer = make(configuration=configuration, results=f"results_{value}")
        trainer.run_training()
        assert record_of(trainer).exists() is (value == "1")
        assert ("DTC stage" in log_of(trainer)) is (value == "1")
        logged = trainer.logger.get_checkpoint()
        ended.append(
            (logged["train_losses"], logged["val_losses"], torch.get_rng_state(), trainer.network.state_dict())
        )
    (*losses, random, weights), (*others, other_random, other_weights) = ended
    assert losses == others
    assert torch.equal(random, other_random)
    assert all(torch.equal(weights[key], other_weights[key]) for key in weights)


def test_resuming_leaves_every_epoch_once(make):
    trainer = make("nnUNetTrainerDTC_5epochs")
    trainer.num_epochs = 3
    trainer.on_train_end = lambda: None  # killed: checkpoint_latest stays
    trainer.run_training()
    assert epochs_in(record_of(trainer))[::4] == [0, 1, 2]  # the checkpoint is of the first two
    first = record_of(trainer).read_text().splitlines()[:9]

    resumed = make("nnUNetTrainerDTC_5epochs")
    resumed.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    assert resumed.current_epoch == 2
    resumed.run_training()
    assert epochs_in(record_of(resumed)) == [epoch for epoch in range(5) for _ in range(4)]
    assert record_of(resumed).read_text().splitlines()[:9] == first


def test_a_training_continues_a_record_of_an_earlier_version(make):
    trainer = make("nnUNetTrainerDTC_3epochs")
    trainer.current_epoch = 2
    record_of(trainer).write_text(FORMER)
    trainer.run_training()
    assert epochs_in(record_of(trainer)) == [0, 0, 1, 2, 2, 2, 2]
    assert "not recorded" not in log_of(trainer)


def test_a_record_that_fails_does_not_stop_the_training(make):
    trainer = make()
    record_of(trainer).mkdir()  # a folder where the file should be
    trainer.run_training()
    log = log_of(trainer)
    assert log.count("The DTC coordinates of this epoch are not recorded: ") == 2
    assert "Training done." in log
    assert len(trainer.logger.get_checkpoint()["val_losses"]) == 2


def test_other_ranks_record_nothing(make):
    trainer = make()
    trainer.local_rank = 1
    trainer.network.eval()
    with torch.no_grad():
        trainer.validation_step(next(trainer.dataloader_val))
    assert not record_of(trainer).exists()


def test_vanilla_trainers_record_nothing():
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    assert trainers.nnUNetTrainer_rep2.validation_step is nnUNetTrainer.validation_step


@pytest.mark.parametrize("name", ["nnUNetTrainerDTC_RF0_1epochs", "nnUNetTrainerDTC_RFinf_noweight_1epochs",
                                  "nnUNetTrainerDTC_nosigmoid_notanh_Adam1en3_1epochs_NoMirroring"])  # fmt: skip
def test_every_variant_and_regions_are_recorded(make, name):
    regions = DATASET | {"labels": {"background": 0, "body": [1, 2], "organ": 2}, "regions_class_order": [1, 2]}
    trainer = make(name, dataset=regions)
    trainer.run_training()
    with record_of(trainer).open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 4
    assert {row["bound_voxels"] for row in rows} == {
        "nnUNetTrainerDTC_RF0_1epochs": {"0"},
        "nnUNetTrainerDTC_RFinf_noweight_1epochs": {"4", "3", "6"},
        "nnUNetTrainerDTC_nosigmoid_notanh_Adam1en3_1epochs_NoMirroring": {""},
    }[name]
    assert ("fixed" in rows[0]["states"]) is ("RF0" in name)
    assert "not recorded" not in log_of(trainer)


def test_a_compiled_network_is_not_compiled_more_often(make, monkeypatch):
    graphs = {}
    for value in ("0", "1"):
        monkeypatch.setenv("NNUNET_DTC_COORDINATES", value)
        torch._dynamo.reset()
        counters.clear()
        trainer = make("nnUNetTrainerDTC_2epochs", results=f"results_{value}")
        trainer.network = torch.compile(trainer.network, backend="eager", fullgraph=True)
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        trainer.disable_checkpointing = True
        ended, after = trainer.on_epoch_end, []
        trainer.on_epoch_end = lambda ended=ended, after=after: (ended(), after.append(dict(counters["stats"])))
        trainer.run_training()
        graphs[value] = [stats["unique_graphs"] for stats in after]
    torch._dynamo.reset()
    assert epochs_in(record_of(trainer))[::4] == [0, 1]
    assert "not recorded" not in log_of(trainer)
    assert graphs["0"][0] >= 1
    assert graphs["1"] == graphs["0"]
