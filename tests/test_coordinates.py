"""Where the samples go: the numbers, their record in a training, and the command for a trained model."""

import csv
import gzip
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from matplotlib.collections import PathCollection
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from plans import DATASET, architecture, small_plans
from torch import nn
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from nnunet_dtc import deformable_upsample, trainers
from nnunet_dtc.architectures import with_dtc
from nnunet_dtc.cli import app
from nnunet_dtc.errors import NnunetDtcError
from nnunet_dtc.ops.coordinates import BINS, StageCoordinates, _thin, axis_names, collect, measure
from nnunet_dtc.ops.deformation import Deformation, sampling_shifts
from nnunet_dtc.ops.dtc import is_dtc
from nnunet_dtc.study.coordinates import report
from nnunet_dtc.study.coordinates.figure import coordinates_figure
from nnunet_dtc.study.coordinates.model import load_model, load_patch
from nnunet_dtc.study.coordinates.sentences import describe
from nnunet_dtc.study.figures.views import informative_slices
from nnunet_dtc.trainers.record import COLUMNS, POSITIONS, write_epoch

VARIANTS = [("tanh", "sigmoid"), ("tanh", "none"), ("tanh", "linear"), ("linear", "sigmoid"), ("linear", "none")]
UNEVEN = {"kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]], "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 1]]}
PATCH = (6, 16, 24)


def draw(sizes, stride, *, receptive_field=4.0, offset="tanh", weight="sigmoid", batch=2, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    channels = len(sizes) * (1 if weight == "none" else 2)
    shape = (batch, channels, *(size * step for size, step in zip(sizes, stride, strict=True)))
    coords = scale * torch.randn(shape, generator=generator)
    return StageCoordinates("up", tuple(sizes), tuple(stride), Deformation(receptive_field, offset, weight), coords)


def build_network(receptive_field=2.0, seed=0, strides=UNEVEN, **more):
    torch.manual_seed(seed)
    planned = architecture(**strides)
    arguments = planned["arch_kwargs"] | more
    network = get_network_from_plans(
        *(planned["network_class_name"], arguments, planned["_kw_requires_import"], 1, 3),
        allow_init=True,
        deep_supervision=False,
    )
    network = with_dtc(network, receptive_field)
    for block in filter(is_dtc, network.modules()):
        nn.init.normal_(block.coords.weight, std=0.5)  # as if it had learned something
    return network


# ---- the mathematics ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "weight"), VARIANTS)
@pytest.mark.parametrize("receptive_field", [0, 2.5, 10, math.inf])
def test_shifts_element_by_element(offset, weight, receptive_field):
    sizes = (3, 1, 5)
    stage = draw(sizes, (2, 1, 3), receptive_field=receptive_field, offset=offset, weight=weight)
    found = stage.shifts()
    assert found.shape == (2, 3, *stage.coords.shape[2:])
    for index in itertools.product(*map(range, found.shape)):
        case, axis, *place = index
        raw = stage.coords[(case, axis, *place)].item()
        expected = math.tanh(raw) if offset == "tanh" else raw
        if weight != "none":
            gate = stage.coords[(case, 3 + axis, *place)].item()
            expected *= 1 / (1 + math.exp(-gate)) if weight == "sigmoid" else gate
        expected *= sizes[axis] / 2 if math.isinf(receptive_field) else receptive_field / 4
        assert found[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(("sizes", "stride"), [((5, 3), (2, 2)), ((1, 7), (3, 1)), ((3, 1, 4), (2, 1, 3))])
@pytest.mark.parametrize("receptive_field", [0, 10, math.inf])
def test_positions_are_those_that_the_operator_samples(sizes, stride, receptive_field):
    stage = draw(sizes, stride, receptive_field=receptive_field)
    ramps = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in sizes), indexing="ij"))  # (g, *S)
    sampled = deformable_upsample(ramps.expand(2, *ramps.shape), stage.coords, stride, receptive_field)
    torch.testing.assert_close(stage.positions(), sampled, rtol=0, atol=2e-6)


def test_reads_are_the_sums_of_interpolation_weights():
    stage = draw((3, 4), (2, 3), receptive_field=10, scale=2)
    expected = np.zeros((2, 3, 4))
    for case, sample in enumerate(stage.positions().flatten(2).numpy()):  # (2, samples)
        for place in sample.T:
            low = np.minimum(np.floor(place).astype(int), (1, 2))
            for corner in itertools.product((0, 1), repeat=2):
                part = np.where(corner, place - low, 1 - (place - low))
                expected[(case, *(low + corner))] += part.prod() / 6
    np.testing.assert_allclose(stage.reads().numpy(), expected, atol=2e-5)
    assert stage.reads().mean().item() == pytest.approx(1)
    assert np.ptp(expected) > 0.5
    unmoved = draw((3, 4), (2, 3), receptive_field=0)
    torch.testing.assert_close(unmoved.reads(), torch.ones(2, 3, 4))


def test_shifts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"coords must be \(N, 4, \.\.\) for 2 axes"):
        sampling_shifts(torch.zeros(1, 6, 4, 4), (2, 2))
    with pytest.raises(TypeError, match=r"coords\.dtype=torch\.int64"):
        sampling_shifts(torch.zeros(1, 4, 4, 4, dtype=torch.long), (2, 2))
    assert sampling_shifts(torch.zeros(1, 4, 3, dtype=torch.float16), (2, 2)).dtype == torch.float32
    assert Deformation(math.inf).scale(7) == 3.5


# ---- collecting --------------------------------------------------------------------------------------------------


def test_collect_keeps_what_the_blocks_saw(monkeypatch):
    network = build_network()
    data = torch.randn(2, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    seen = {}
    for name, block in network.named_modules():
        if is_dtc(block):
            monkeypatch.setattr(
                block, "forward", lambda x, name=name, forward=block.forward: (seen.update({name: x}), forward(x))[1]
            )
    logits, stages = collect(network, data)
    assert [stage.block for stage in stages] == list(seen) == ["decoder.transpconvs.0", "decoder.transpconvs.1"]
    assert [stage.sizes for stage in stages] == [(3, 4, 12), (6, 8, 12)]
    assert [stage.stride for stage in stages] == [(2, 2, 1), (1, 2, 2)]
    for stage in stages:
        block = network.get_submodule(stage.block)
        torch.testing.assert_close(stage.coords, block.coords(seen[stage.block]).detach(), rtol=0, atol=0)
        assert not stage.coords.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(logits, network.eval()(data), rtol=0, atol=0)


def test_collect_leaves_the_network_and_the_random_state_alone():
    network = build_network(
        norm_op="torch.nn.BatchNorm3d", dropout_op="torch.nn.Dropout3d", dropout_op_kwargs={"p": 0.5}
    )
    network.decoder.stages.eval()  # a mixed state
    before = {name: module.training for name, module in network.named_modules()}
    state = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    _, stages = collect(network, torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1)), 100)
    assert len(stages) == 2
    assert {name: module.training for name, module in network.named_modules()} == before
    assert len(set(before.values())) == 2
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    with pytest.raises(RuntimeError, match="expected"):
        collect(network, torch.zeros(1, 5, *PATCH))  # an input that does not fit
    assert not any(module._forward_hooks for module in network.modules())
    assert {name: module.training for name, module in network.named_modules()} == before


def test_collect_finds_nothing_without_dtc():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ConvTranspose2d(2, 1, 2, 2))
    result, stages = collect(network, torch.zeros(1, 1, 5, 5))
    assert result.shape == (1, 1, 6, 6)
    assert stages == []


@pytest.mark.parametrize("shape", [(2, 4, 30, 42), (1, 6, 12, 20, 30), (3, 2, 6, 10)])
def test_thinning_is_even(shape):
    places = torch.stack(torch.meshgrid(*(torch.arange(size) for size in shape[2:]), indexing="ij"))  # (g, *O)
    coords = places[:1].float().expand(shape[0], shape[1], *shape[2:]).clone()
    total = shape[0] * math.prod(shape[2:])
    for limit in (50, 300, 10**6):
        thinned = _thin(coords, limit)
        assert thinned.shape[:2] == (1, shape[1])
        assert thinned.shape[2] <= max(limit + shape[0], 1)
        assert thinned.shape[2] >= min(total, limit / 6)
        if limit >= total:
            assert thinned.shape[2] == total
    # no place within a stride is left out, along no axis
    for axis in range(len(shape) - 2):
        coords[:] = places[axis]
        kept = _thin(coords, max(1, total // 7))[0, 0]
        for remainder in range(2):
            assert (kept % 2 == remainder).float().mean() == pytest.approx(0.5, abs=0.15)


def test_the_record_of_a_sample_is_close_to_that_of_all_positions():
    network = build_network(10)
    data = torch.randn(1, 1, 12, 32, 48, generator=torch.Generator().manual_seed(1))
    everything, sample = (
        measure(collect(network, data, limit)[1], (12, 32, 48), (3, 1, 1), "zyx") for limit in (None, 2000)
    )
    assert [stage.positions for stage in sample] != [stage.positions for stage in everything]
    for one, other in zip(everything, sample, strict=True):
        assert one.sizes == other.sizes
        for all_of_it, part in zip(one.axes, other.axes, strict=True):
            assert part.mean_mm == pytest.approx(all_of_it.mean_mm, rel=0.1)
            assert part.used == pytest.approx(all_of_it.used, rel=0.1)


# ---- the numbers -------------------------------------------------------------------------------------------------


def test_numbers_by_hand():
    stage = draw((3, 4, 6), (1, 2, 2), receptive_field=10, scale=3)
    [number] = measure([stage], (6, 16, 24), (3.0, 0.8, 0.5), ("z", "y", "x"))
    assert number.positions == 2 * 3 * 8 * 12
    assert number.title == "stage 1 of 1 (3 x 4 x 6 to 3 x 8 x 12)"
    coords = stage.coords.double().numpy()
    for index, axis in enumerate(number.axes):
        tanh = np.tanh(coords[:, index])
        sigmoid = 1 / (1 + np.exp(-coords[:, 3 + index]))
        length = np.abs(2.5 * tanh * sigmoid).ravel()
        spacing = (6.0, 3.2, 2.0)[index]
        assert axis.spacing_mm == pytest.approx(spacing)
        assert (axis.scale_voxels, axis.bound_voxels) == (2.5, 2.5)
        assert axis.bound_mm == pytest.approx(2.5 * spacing)
        assert axis.mean_voxels == pytest.approx(length.mean(), rel=1e-5)
        assert axis.mean_mm == pytest.approx(length.mean() * spacing, rel=1e-5)
        assert axis.p95_mm == pytest.approx(np.sort(length)[round(0.95 * (len(length) - 1))] * spacing, rel=0.02)
        assert axis.max_mm == pytest.approx(length.max() * spacing, rel=1e-5)
        assert axis.used == pytest.approx(length.mean() / 2.5, rel=1e-5)
        assert axis.saturated == pytest.approx((np.abs(tanh) > 0.98).mean())
        assert axis.shut == pytest.approx((sigmoid < 0.02).mean())
        assert axis.open == pytest.approx((sigmoid > 0.98).mean())
        bins = [(length >= 2.5 * k / BINS) & (length < 2.5 * (k + 1) / BINS) for k in range(BINS)]
        assert axis.histogram == (*(inside.sum() for inside in bins), 0)
        assert 0 < axis.saturated < 0.5
        assert axis.shut > 0
        assert axis.states == ()
    assert describe([number]) == ["No coordinate is dead, saturated, shut or open at most positions."]


def named(coords, sizes=(4, 6), receptive_field=4.0, offset="tanh", weight="sigmoid"):
    stage = StageCoordinates("decoder.up", sizes, (2, 2), Deformation(receptive_field, offset, weight), coords)
    [number] = measure([stage], (16, 12), (1.0, 2.0), ("y", "x"))
    return number, "\n".join(describe([number]))


def test_dead_saturated_shut_and_open_are_named():
    healthy = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    coords = healthy.clone()
    coords[:, 1], coords[:, 3] = 0.2, 0.1
    number, text = named(coords)
    assert [axis.states for axis in number.axes] == [(), ("dead",)]
    assert "Stage 1 of 1 (4 x 6 to 8 x 12), decoder.up, axis x: dead" in text
    moved = math.tanh(0.2) / (1 + math.exp(-0.1)) * 1 * (2.0 * 12 / 6)
    assert f"({moved:.2g} mm long)" in text

    coords = healthy.clone()
    coords[:, 0, :5] = -4.0  # 5 of 8 rows
    number, text = named(coords)
    assert [axis.states for axis in number.axes] == [("saturated",), ()]
    assert "axis y: saturated, the offset is at its limit (tanh beyond 0.98) at 6" in text

    coords = healthy.clone()
    coords[:, 2:, :, :7], coords[:, 2:, :, 7:] = -6.0, 1.0
    number, text = named(coords)
    assert [axis.states for axis in number.axes] == [("shut",), ("shut",)]
    assert "axes y and x: shut, the weight is below 0.02 at 58 % and 58 % of the positions" in text

    coords = healthy.clone()
    coords[:, 3] = 6.0
    number, text = named(coords)
    assert [axis.states for axis in number.axes] == [(), ("open",)]
    assert "axis x: open, the weight is above 0.98 at 100 %" in text

    coords[:, 1] = 9.0  # all samples at the bound: both
    assert named(coords)[0].axes[1].states == ("dead", "saturated", "open")


def test_a_new_block_is_not_dead():
    """Coordinates start from small weights; features of ordinary size move them by more than what counts as dead."""
    network = build_network(10)
    for block in filter(is_dtc, network.modules()):
        block.reset_coords()
    _, stages = collect(network, torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1)))
    numbers = measure(stages, PATCH, (1, 1, 1), "zyx")
    assert all(axis.states == () for stage in numbers for axis in stage.axes)
    assert all(axis.used < 0.02 for stage in numbers for axis in stage.axes)


def test_special_fields_and_variants():
    coords = 2 * torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    number, text = named(coords, receptive_field=0)
    assert [axis.states for axis in number.axes] == [("fixed",)] * 2
    assert [axis.max_mm for axis in number.axes] == [0, 0]
    assert math.isnan(number.axes[0].used)
    assert text == "The receptive field is 0: no sample is shifted, this is the control with the same parameters."

    number, _ = named(coords, receptive_field=math.inf)
    assert [axis.bound_voxels for axis in number.axes] == [2, 3]

    for variant in ({"offset": "linear"}, {"weight": "linear"}):
        number, _ = named(coords, **variant)
        for axis in number.axes:
            assert math.isnan(axis.bound_voxels)
            assert axis.scale_voxels == 1
            assert axis.histogram[BINS] > 0  # longer than RF / 4
            assert sum(axis.histogram) == 8 * 12
            assert math.isnan(axis.saturated) is ("offset" in variant)
            assert math.isnan(axis.shut) is ("weight" in variant)

    number, text = named(coords[:, :, :2], sizes=(1, 6))
    assert number.axes[0].states == ("single",)
    assert "axis y: the map has one voxel along it" in text

    coords[0, 1, 3, 3] = math.nan
    number, text = named(coords)
    assert [axis.states for axis in number.axes] == [(), ("not finite",)]
    assert "axis x: not finite" in text
    with pytest.raises(ValueError, match="a size, a spacing and a name for each of 2 axes"):
        measure([draw((3, 4), (2, 2))], (6, 8), (1, 1, 1), "yx")


@pytest.mark.parametrize(
    ("transpose", "axes", "names"),
    [((0, 1, 2), 3, "zyx"), ((2, 0, 1), 3, "xzy"), ((0, 1, 2), 2, "yx"), ((1, 0, 2), 2, "zx")],
)
def test_axis_names(transpose, axes, names):
    assert "".join(axis_names(transpose, axes)) == names


# ---- the record's file -------------------------------------------------------------------------------------------


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


def test_every_epoch_is_there_once(tmp_path):
    file = tmp_path / "coordinates.csv"
    for epoch in range(5):
        write_epoch(file, epoch, rows_of(epoch))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    for epoch in (3, 4, 5):  # a training that goes on from a checkpoint of epoch 2
        write_epoch(file, epoch, rows_of(epoch, 1))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 4, 5]
    with file.open("a") as stream:
        stream.write("6,1,up,z,0.5,0.")  # killed in the middle of a row
    write_epoch(file, 7, rows_of(7))
    assert epochs_in(file) == [0, 0, 1, 1, 2, 2, 3, 4, 5, 7, 7]
    write_epoch(file, 0, rows_of(0))  # a new training
    assert epochs_in(file) == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["coordinates.csv"]


def test_a_file_of_other_columns_is_left_alone(tmp_path):
    file = tmp_path / "coordinates.csv"
    file.write_text("x,y\n1,2\n")
    with pytest.raises(ValueError, match="has other columns"):
        write_epoch(file, 0, rows_of(0))
    assert file.read_text() == "x,y\n1,2\n"


# ---- in a training -----------------------------------------------------------------------------------------------


class Batches:
    """Endless random batches of nnU-Net's form, from a generator of their own."""

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
    """A trainer of nnU-Net's with our network that trains on random batches, everything else as it is."""
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
    # the network is as the last training step has left it
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
        trainer = make("nnUNetTrainerDTC_3epochs", results=f"results_{value}")
        trainer.network = torch.compile(trainer.network, backend="eager", fullgraph=True)
        trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 1
        trainer.disable_checkpointing = True
        ended, after = trainer.on_epoch_end, []
        trainer.on_epoch_end = lambda ended=ended, after=after: (ended(), after.append(dict(counters["stats"])))
        trainer.run_training()
        graphs[value] = [stats["unique_graphs"] for stats in after]
    torch._dynamo.reset()
    assert epochs_in(record_of(trainer))[::4] == [0, 1, 2]
    assert "not recorded" not in log_of(trainer)
    assert graphs["0"][0] >= 1
    assert graphs["1"] == graphs["0"]


def test_autocast_gives_float32_numbers():
    network = build_network(10)
    data = torch.randn(1, 1, *PATCH, generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, stages = collect(network, data, 500)
    _, exact = collect(network, data, 500)
    for stage, expected in zip(stages, exact, strict=True):
        assert stage.coords.dtype == torch.float32
        assert (stage.coords - expected.coords).abs().mean() < 0.05 * expected.coords.abs().mean()
        assert not torch.equal(stage.coords, expected.coords)


# ---- the picture -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3])
def test_the_picture_shows_every_stage(axes, tmp_path):
    if axes == 3:
        network, size, spacing, names = build_network(10), (6, 16, 24), (3.0, 0.8, 1.0), "zyx"
    else:
        flat = {"kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [1, 2]]}
        network, size, spacing, names = build_network(10, strides=flat), (64, 96), (0.8, 1.0), "yx"
    image = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
    logits, stages = collect(network, image)
    numbers = measure(stages, size, spacing, names)
    segmentation = logits[0].argmax(0).numpy()
    colour = np.repeat(image[0, 0].numpy()[..., None], 3, -1)
    figure = coordinates_figure(stages, numbers, colour if axes == 2 else image[0, 0].numpy(), segmentation, spacing)
    texts = {text.get_text() for ax in figure.axes for text in ax.texts}
    for stage in numbers:
        assert f"S{stage.title[1:]}, RF 10" in texts
    drawn = [ax.collections[0] for ax in figure.axes if ax.collections and not ax.images]
    drawn = [dots for dots in drawn if isinstance(dots, PathCollection)]
    assert len(drawn) == len(stages)
    samples = np.asarray(drawn[-1].get_offsets())  # the last stage's, (x, y) in pixels
    last = stages[-1]
    cut = () if axes == 2 else (informative_slices(segmentation)[0],)  # the last stage has as many slices
    expected = last.positions()[0].numpy()
    expected = expected[(slice(axes - 2, None), *cut)].reshape(2, -1)
    for row, axis in ((1, -2), (0, -1)):
        ratio = size[axis] / last.sizes[axis]
        np.testing.assert_allclose(samples[:, row], (expected[axis] + 0.5) * ratio - 0.5, atol=1e-4)
    file = tmp_path / "figure.png"
    figure.savefig(file, dpi=40)
    assert file.stat().st_size > 10_000


def test_the_picture_of_what_cannot_be_drawn(tmp_path):
    broken = draw((4, 6), (2, 2), batch=1)
    broken.coords[0, 0, 0, 0] = math.nan
    fixed = draw((8, 12), (2, 2), receptive_field=0, batch=1)
    numbers = measure([broken, fixed], (16, 24), (1, 1), "yx")
    figure = coordinates_figure([broken, fixed], numbers, np.zeros((16, 24)), np.zeros((16, 24), int), (1, 1))
    figure.savefig(tmp_path / "figure.png", dpi=40)
    texts = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    assert "y not finite" in texts
    assert "y fixed, x fixed" in texts
    assert "no shift" in texts
    with pytest.raises(ValueError, match="one shape of 2 axes"):
        coordinates_figure([fixed], numbers[1:], np.zeros((16, 20)), np.zeros((16, 24), int), (1, 1))


# ---- the command -------------------------------------------------------------------------------------------------

RGB = DATASET | {"channel_names": {"0": "R", "1": "G", "2": "B"}, "file_ending": ".png"}


def write_model(folder, name="nnUNetTrainerDTC_RF10", configuration="3d_fullres", dataset=DATASET, seed=0, plans=None):
    """A trained model's folder as nnU-Net leaves it, with weights as if its coordinates had learned something."""
    plans = plans or small_plans()
    for parts in plans["configurations"].values():
        for what, is_seg, order in (("data", False, 3), ("seg", True, 1), ("probabilities", False, 1)):
            parts[f"resampling_fn_{what}"] = "resample_data_or_seg_to_shape"
            options = {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}
            parts[f"resampling_fn_{what}_kwargs"] = options
        if "normalization_schemes" in parts:
            channels = len(dataset["channel_names"])
            parts.update(normalization_schemes=["ZScoreNormalization"] * channels, use_mask_for_norm=[False] * channels)
    plans["foreground_intensity_properties_per_channel"] = {str(k): {} for k in range(len(dataset["channel_names"]))}
    if dataset["file_ending"] == ".png":
        plans["image_reader_writer"] = "NaturalImage2DIO"
    os.environ["nnUNet_results"] = str(folder)
    torch.manual_seed(seed)
    given = json.loads(json.dumps(plans)) | {"continue_training": False}
    trainer = getattr(trainers, name)(given, configuration, 0, dataset, torch.device("cpu"))
    arguments = (trainer.plans_manager, trainer.configuration_manager)
    channels = len(dataset["channel_names"]) + 2 * trainer.is_cascaded
    trainer.network = trainer.build_network_architecture(*arguments, channels, 3, True)
    for block in filter(is_dtc, trainer.network.modules()):
        nn.init.normal_(block.coords.weight, std=0.5)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.current_epoch = 6
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset))
    return model


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working folder; nnU-Net's folders are not set, nor are the trainers registered."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_extTrainer"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "results"))
    monkeypatch.setattr(report, "DPI", 40)
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
    code, said = run(model, "-i", image)
    assert code == 0, said
    out = here / "work" / "coordinates_case_7"
    assert sorted(file.name for file in out.iterdir()) == ["coordinates.csv", "coordinates.json", "coordinates.png"]
    assert sitk.GetArrayFromImage(sitk.ReadImage(str(out / "coordinates.png"))).shape[0] > 200
    for text in ("3 of 3", "6 x 8 x 12 to", "6 x 16 x 24"):
        assert text in said

    # what nnU-Net's own predictor makes of the image, with the hooks of this test
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

    code, said = run(model, "-i", image)
    assert code == 1
    assert "will not overwrite" in said
    assert run(model, "-i", image, "--overwrite")[0] == 0


def patch_of(here, *arguments):
    code, said = run(*arguments, "-o", here / "out", "--overwrite")
    assert code == 0, said
    return json.loads((here / "out" / "coordinates.json").read_text())["image"]


def test_where_it_looks(here):
    """The image has other spacings than the model, is turned, cropped, and larger than the patch."""
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
        assert patch.image_size == (10, 50, 60)  # y, x, z; of y every second voxel, of z without the zeros
        return patch

    assert model.axes == ("y", "x", "z")
    assert look().start == (2, 17, 18)
    for center, expected in (((40, 10, 30), (2.25, 22.5, 18.5)), ((0, 0, 0), (0, 0, 0)), ((69, 19, 49), (4, 34, 36))):
        patch = look(center=center)
        assert patch.start == pytest.approx(expected, abs=0.6)
    y, x, z = look(labels=here / "labels.nii.gz").start
    assert (y <= 1, x <= 40 < 48 <= x + 16, z <= 50 < 56 <= z + 24) == (True, True, True)
    # x and z are not resampled, y is halved: a neighbouring patch of the image would not fit
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
    code, said = run(model, "-i", here / "skin_0000.png", "-o", here / "out", "--center", "35,5")
    assert code == 0, said
    assert "a pixel as 1 mm" in said
    assert "pixels" in said
    written = json.loads((here / "out" / "coordinates.json").read_text())
    assert written["image"]["unit"] == "pixels"
    # the model's spacing is 0.8: 40 x 60 pixels become 50 x 75
    assert written["image"]["preprocessed_size"] == [50, 75]
    assert written["image"]["patch_start"] == [34, 0]
    assert written["image"]["slice"] is None
    Image.fromarray(pixels[..., 0]).save(here / "grey_0000.png")
    code, said = run(model, "-i", here / "grey_0000.png", "-o", here / "grey")
    assert code == 1
    assert "the model needs 3 channels, got 1" in said
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
    code, said = run(model, "-i", image, "-o", here / "out")
    assert code == 1
    assert "needs the prediction of 3d_lowres as labels" in said
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
        code, said = run(*arguments)
        assert code == 1, said
        assert sorted(here.rglob("*")) == before
        return " ".join(said.split())

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
    assert "-o takes a folder, got the file" in refused(model, "-i", image, "-o", image)
    assert "there is no folder" in refused(model, "-i", image, "-o", here / "no" / "out")
    content = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    torch.save(content | {"more": Bomb()}, fold / "checkpoint_bomb.pth")
    assert "is refused" in refused(model, "-i", image, "-chk", "checkpoint_bomb.pth")
    assert not (here / "work" / "run").exists()
    pickle.loads(pickle.dumps(Bomb()))
    (here / "work" / "run").rmdir()  # it does go off
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
def test_a_file_that_is_cut_off_is_refused(here, which):
    """SimpleITK reads it as if the rest were background, and so does nnU-Net."""
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
    code, said = run(model, "-i", files["image"], "--labels", files["labels"])
    assert code == 1
    assert f"cannot read {damaged}: it is cut off" in said
    assert not any((here / "work").iterdir())


def test_labels_of_another_place_are_taken_by_voxels_and_of_another_spacing_refused(here):
    model = load_model(write_model(here / "results"))
    image = write_volume(here / "case_0000.nii.gz", (8, 40, 50))
    labels = np.zeros((8, 40, 50), np.uint8)
    labels[5:, 22:38, 24:48] = 1
    for name, origin, spacing in (("same", (0, 0, 0), (0.8, 0.8, 3)), ("moved", (50, -7, 3), (0.8, 0.8, 3))):
        stored = sitk.GetImageFromArray(labels)
        stored.SetSpacing(spacing)
        stored.SetOrigin(origin)
        sitk.WriteImage(stored, str(here / f"{name}.nii.gz"))
    same, moved = (load_patch(model, [image], here / f"{name}.nii.gz") for name in ("same", "moved"))
    assert same.start == moved.start != load_patch(model, [image]).start
    write_volume(here / "other.nii.gz", labels.shape, (3.0, 0.8, 0.9), labels=labels)
    with pytest.raises(NnunetDtcError, match=r"other.nii.gz is not on the grid of .*spacing \(0.9, 0.8, 3\)"):
        load_patch(model, [image], here / "other.nii.gz")
